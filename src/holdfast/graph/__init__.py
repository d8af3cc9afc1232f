"""One simplified graph of a model, from `torch.export` and from ONNX, shared by bounds and verification."""

from holdfast.graph.model import Graph, GraphModule, Node

__all__ = ["Graph", "GraphModule", "Node"]
