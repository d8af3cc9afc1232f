"""The graph of a model: nodes in topological order over one small vocabulary (`holdfast.graph.operations`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from typing_extensions import override

from holdfast.graph.operations import compute

__all__ = ["Graph", "GraphModule", "Node", "Written"]


@dataclass(frozen=True, eq=False, kw_only=True)
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
        origin: the model's own operation that it was read from, ``folded`` where it stands for a chain of several;
            empty: it was built by hand and is its own.
    """

    op: str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    tensors: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    attributes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tolerance: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    origin: str = ""


@dataclass(frozen=True, eq=False)
class Written:
    """A graph as the model has it, operation by operation: what runs rounds after each of them.

    Attributes:
        of: the nodes that were made of it; for other nodes it says nothing.
        nodes: with no chain folded into one.
        computed: operations by which the model computes constants of its own each time that it runs.
    """

    of: tuple[Node, ...]
    nodes: tuple[Node, ...]
    computed: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Graph:
    """A model with one input and one output, for any batch size.

    Tensors are the model's own where nothing had to be folded (so gradients of a bound reach the model's parameters),
    and float64 where something was.

    Attributes:
        nodes: in topological order; the first is the input and the last the output.
        dtype: the floating-point type in which the model runs.
        deployed: the type whose rounding bounds shall account for, or None: the model in real numbers. The nodes of a
            graph that is given one are those of ``written``, behind the rounding of the input to the type.
        whole: the model takes whole numbers only: bounds over the reals between them are bounds, but a witness must be
            whole.
    """

    nodes: tuple[Node, ...]
    dtype: torch.dtype = torch.float32
    deployed: torch.dtype | None = None
    whole: bool = False
    written: Written | None = None

    def __post_init__(self) -> None:
        if self.deployed is None or any(node.origin == "input" for node in self.nodes):
            return
        own = self.written is not None and self.written.of is self.nodes
        object.__setattr__(self, "nodes", _rounded_input(self.written.nodes if own and self.written else self.nodes))

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.nodes[0].shape

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one sample's output."""
        return self.nodes[-1].shape

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Graph:
        """The same graph with its floating-point tensors in another type or on another device (differentiably)."""

        def convert(t: Tensor) -> Tensor:
            return t.to(device=device, dtype=dtype if t.is_floating_point() else None)

        def converted(nodes: tuple[Node, ...]) -> tuple[Node, ...]:
            return tuple(
                replace(
                    n,
                    tensors={k: convert(t) for k, t in n.tensors.items()},
                    tolerance={k: convert(t) for k, t in n.tolerance.items()},
                )
                for n in nodes
            )

        nodes, written = converted(self.nodes), self.written
        if written is not None:
            written = Written(nodes if written.of is self.nodes else (), converted(written.nodes), written.computed)
        return replace(self, nodes=nodes, dtype=dtype or self.dtype, written=written)

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


class SourceFile(Protocol):
    """The file that a graph was read from."""

    def hold(self, low: Tensor, high: Tensor) -> str:
        """Holds what was read against the file on a box (\\*features), and says what evaluated the file."""
        ...


class GraphModule(nn.Module):
    """Runs a graph. Floating-point tensors are parameters, index tensors buffers, named ``OP_POSITION_TENSOR``.

    Args:
        graph: the graph; its tensors are copied.

    Attributes:
        source: the file that it stands for, if it was read from one.

    Example:
        >>> from holdfast.graph import trace
        >>> graph = trace(nn.Linear(2, 1, bias=False), torch.zeros(1, 2))
        >>> list(graph.as_module().state_dict())
        ['linear_1_weight']
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = replace(graph, nodes=tuple(replace(n, tensors={}, tolerance={}) for n in graph.nodes))
        self.dtype = graph.dtype
        self.source: SourceFile | None = None
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

    @override
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
        found = GraphModule(replace(self.graph, nodes=nodes))
        found.source = self.source
        return found


def _rounded_input(nodes: tuple[Node, ...]) -> tuple[Node, ...]:
    """The same behind a node that passes the input on: where it is rounded to the type that runs. Not whole numbers."""
    if any(node.op == "embedding" for node in nodes):
        return nodes
    moved = (replace(node, inputs=tuple(i + 1 for i in node.inputs)) for node in nodes[1:])
    one = torch.ones((1,) * len(nodes[0].shape), dtype=torch.float64)
    device = next((t.device for node in nodes for t in node.tensors.values()), one.device)
    given = Node(op="affine", inputs=(0,), shape=nodes[0].shape, tensors={"scale": one.to(device)}, origin="input")
    return (nodes[0], given, *moved)
