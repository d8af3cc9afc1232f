"""One simplified graph of a model, from `torch.export` and from ONNX, shared by bounds and verification."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from holdfast.graph.model import Graph, GraphModule, Node

if TYPE_CHECKING:
    from holdfast.graph.tracing import trace

__all__ = ["Graph", "GraphModule", "Node", "trace"]

if not TYPE_CHECKING:  # so that a misspelt name is no type of anything

    def __getattr__(name: str) -> Any:
        """`trace` once it is asked for: torch.export takes a tenth of a second to import."""
        if name == "trace":
            from holdfast.graph.tracing import trace

            return trace
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
