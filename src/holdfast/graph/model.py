"""The graph of a model: nodes in topological order over one small vocabulary (`holdfast.graph.ops`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.graph.ops import compute

__all__ = ["Graph", "GraphModule", "Node"]


@dataclass(frozen=True, eq=False)
class Node:
    """One operation.

    Attributes:
        op: its name in the vocabulary.
        inputs: positions in the graph of the nodes that it reads.
        shape: shape of its value for one sample (no batch dimension).
        tensors: its constants. ``size``, where a linear operation has it, bounds the sum of the magnitudes that were
            added up to get its bias, so that the rounding of folding is a few units of ``size``.
        attributes: its plain attributes.
        tolerance: for some of its tensors, how far each entry may lie from what is written, at least 0; the graph then
            stands for all networks within it.
    """

    op: str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    tensors: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    attributes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tolerance: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])


@dataclass(frozen=True, eq=False)
class Graph:
    """A model with one input and one output, for any batch size.

    Tensors are the model's own where nothing had to be folded (so gradients of a bound reach the model's parameters),
    and float64 where something was.

    Attributes:
        nodes: in topological order; the first is the input and the last the output.
        dtype: the floating-point type in which the model runs.
        deployed: the type whose rounding bounds shall account for, or None: the model in real numbers.
        whole: the model takes whole numbers only: bounds over the reals between them are bounds, but a witness must be
            whole.
    """

    nodes: tuple[Node, ...]
    dtype: torch.dtype = torch.float32
    deployed: torch.dtype | None = None
    whole: bool = False

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.nodes[0].shape

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one sample's output."""
        return self.nodes[-1].shape

    @staticmethod
    def from_module(module: nn.Module, example: Tensor) -> Graph:
        """Captures a module through ``torch.export``, in eval mode; the module itself is left as it was.

        Args:
            module: the model.
            example: (n, \\*features), any n of at least 1; only its shape, type and device matter.

        Returns:
            The simplified graph: batch norms folded, dropout and the like gone, any batch size.

        Raises:
            UnsupportedError: an operation outside the vocabulary; the message names it.
            ModelError: the model cannot be captured for any batch size.

        Example:
            >>> graph = Graph.from_module(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), torch.zeros(1, 2))
            >>> [node.op for node in graph.nodes]
            ['input', 'linear', 'relu']
        """
        from holdfast.graph.capture import capture

        return capture(module, example)

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Graph:
        """The same graph with its floating-point tensors in another type or on another device (differentiably)."""

        def convert(t: Tensor) -> Tensor:
            return t.to(device=device, dtype=dtype if t.is_floating_point() else None)

        nodes = (
            replace(
                n,
                tensors={k: convert(t) for k, t in n.tensors.items()},
                tolerance={k: convert(t) for k, t in n.tolerance.items()},
            )
            for n in self.nodes
        )
        return replace(self, nodes=tuple(nodes), dtype=dtype or self.dtype)

    def logits(self) -> Graph:
        """The graph without a softmax at its end, which keeps the order of the classes."""
        last = self.nodes[-1]
        return (
            replace(self, nodes=self.nodes[:-1])
            if last.op == "softmax" and last.inputs[0] == len(self.nodes) - 2
            else self
        )

    def consumers(self) -> list[list[int]]:
        """For each node, the positions of the nodes that read it."""
        found: list[list[int]] = [[] for _ in self.nodes]
        for i, node in enumerate(self.nodes):
            for j in node.inputs:
                found[j].append(i)
        return found

    def as_module(self) -> GraphModule:
        """The graph as a differentiable module of its own, with copies of the tensors in the model's type."""
        return GraphModule(self)


class GraphModule(nn.Module):
    """Runs a graph. Floating-point tensors are parameters, index tensors buffers, named ``OP_POSITION_TENSOR``.

    Args:
        graph: the graph; its tensors are copied.

    Example:
        >>> graph = Graph.from_module(nn.Linear(2, 1, bias=False), torch.zeros(1, 2))
        >>> list(graph.as_module().state_dict())
        ['linear_1_weight']
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = replace(graph, nodes=tuple(replace(n, tensors={}, tolerance={}) for n in graph.nodes))
        self.dtype = graph.dtype
        self._names: list[dict[str, str]] = []
        for i, node in enumerate(graph.nodes):
            names = {key: f"{node.op}_{i}_{key}" for key in node.tensors if key != "size"}
            self._names.append(names)
            for key, name in names.items():
                tensor = node.tensors[key].detach()
                if tensor.is_floating_point():
                    self.register_parameter(name, nn.Parameter(tensor.to(graph.dtype, copy=True)))
                else:
                    self.register_buffer(name, tensor.clone())

    def forward(self, x: Tensor) -> Tensor:
        """The output (n, \\*output shape) for inputs (n, \\*input shape)."""
        consumers = self.graph.consumers()
        values: dict[int, Tensor] = {0: x}
        for i, node in enumerate(self.graph.nodes[1:], 1):
            tensors = {key: getattr(self, name) for key, name in self._names[i].items()}
            values[i] = compute(node.op, [values[j] for j in node.inputs], tensors, node.attributes)
            for j in node.inputs:
                if consumers[j][-1] == i:  # its last reader: free it
                    values.pop(j, None)
        return values[len(self.graph.nodes) - 1]

    def before_last(self) -> GraphModule:
        """The module without its last operation."""
        held = ({key: getattr(self, name).detach() for key, name in names.items()} for names in self._names[:-1])
        nodes = tuple(replace(n, tensors=t) for n, t in zip(self.graph.nodes[:-1], held, strict=True))
        return GraphModule(replace(self.graph, nodes=nodes))
