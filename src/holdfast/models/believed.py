"""The graph of a model, held against the thing itself where it is asked about: the one place before any certificate.

A graph is compared with the module on the smallest box around all sets in question, and a module that was read from a file is
compared with the file there as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from holdfast.graph.model import Graph, GraphModule

__all__ = ["Believed", "believed"]


@dataclass(frozen=True, eq=False)
class Believed:
    """A graph that stands for a model on a box.

    Attributes:
        graph: the model's.
        held_against: what evaluated the thing itself, in words: ``the module itself``, ``onnxruntime 1.23.2``.
    """

    graph: Graph
    held_against: str


def believed(module: nn.Module, example: Tensor, low: Tensor, high: Tensor) -> Believed:
    """Captures a module and holds its graph against it.

    Args:
        module: the model.
        example: (n, \\*features), any n of at least 1; its shape, type and device matter.
        low: (\\*features), the least inputs that are asked about.
        high: (\\*features), the largest.

    Raises:
        UnsupportedError: an operation outside the vocabulary; the message names it.
        ModelError: the module cannot be captured, or a graph is another function than what it was read from.
    """
    from holdfast.graph.tracing import trace  # torch.export takes seconds to import

    graph = trace(module, example, (low, high))
    against = [
        part.source.hold(*_reached(module, part, example, low, high))
        for part in module.modules()
        if isinstance(part, GraphModule) and part.source is not None
    ]
    return Believed(graph, "; ".join(dict.fromkeys(against)) or "the module itself")


def _reached(module: nn.Module, part: nn.Module, example: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The box in which a part gets its inputs; what we put in front of one maps each entry by itself, up or down."""
    seen: list[Tensor] = []
    hook = part.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    try:
        with torch.no_grad():
            for end in (low, high):
                module(end.to(example)[None])
    finally:
        hook.remove()
    ends = torch.cat(seen)
    return ends.amin(0), ends.amax(0)
