"""What is known of a graph before any box: who reads what, and which boxes a backward pass may improve."""

from __future__ import annotations

from collections.abc import Sequence

from holdfast.certifiers.propagation.operation import Operation, node_size
from holdfast.graph.model import Graph
from holdfast.graph.operations import OPERATIONS

__all__ = ["Structure"]


class Structure:
    """The graph as bounds see it.

    Args:
        graph: the graph.
        operations: the entry of each node in the table; None for the input.
        independent: every feature of the input ranges over its interval whatever the others do.

    Attributes:
        consumers: of each node, the nodes that read it.
        affine: which nodes are affine functions of the input.
        settled: the nodes whose boxes no backward pass can improve.
        compared: which nodes have entries that are compared with each other in a max pool, themselves or increasing
            functions of them.
        partial: some function is not of all numbers, so that the sign of an end counts.
    """

    def __init__(self, graph: Graph, operations: Sequence[Operation | None], independent: bool) -> None:
        self.graph = graph
        self.consumers = graph.consumers()
        self.partial = any(not OPERATIONS[node.op].total for node in graph.nodes[1:])
        self.affine, self.settled, separable = [True], [True], [independent]
        for node, op in zip(graph.nodes[1:], operations[1:], strict=True):
            assert op is not None
            free = len(node.inputs) == 1 and separable[node.inputs[0]]
            separable.append(free and op.elementwise)
            self.settled.append(free or not op.linear or (op.elementwise and self.settled[node.inputs[0]]))
            self.affine.append(op.linear and all(self.affine[i] for i in node.inputs))
        self.compared = [False] * len(graph.nodes)
        for i in range(len(graph.nodes) - 1, -1, -1):
            readers = ((operations[j], self.compared[j]) for j in self.consumers[i])
            self.compared[i] = any(op and (later if op.elementwise else not op.linear) for op, later in readers)

    def ancestors(self, i: int) -> set[int]:
        """A node and all that it depends on."""
        needed = {i}
        for k in range(i, 0, -1):
            if k in needed:
                needed.update(self.graph.nodes[k].inputs)
        return needed

    def terms(self, i: int) -> int:
        """How many roundings a node's output may have seen: the k of gamma_k."""
        node = self.graph.nodes[i]
        return 16 + node_size(node.shape) + sum(node_size(self.graph.nodes[j].shape) for j in node.inputs)
