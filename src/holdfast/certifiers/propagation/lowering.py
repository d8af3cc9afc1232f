"""Rewrites a graph so that its bounds are tighter: what the table has no good entry for becomes several nodes.

A softmax is ``1 / (1 + sum exp(x_j - x_i))`` over j other than i: differences are linear, so what two scores share
cancels, where ``exp(x_i) / sum exp(x_j)`` would bound numerator and denominator apart. ``x x`` is a square and
``x sigmoid(x)`` a silu, of one variable each.
"""

from __future__ import annotations

from dataclasses import replace
from math import exp, isfinite
from typing import Any

import torch
from torch import Tensor

from holdfast.certifiers.propagation.deployment import check_runs
from holdfast.core.errors import UnsupportedError
from holdfast.graph.model import Graph, Node
from holdfast.graph.operations import OPERATIONS, Rounding

__all__ = ["lowered"]

_HIDDEN = 300.0  # between constants that are added to scores: a mask
_FARTHEST = 20.0  # of two scores where there is a mask; the rounding of larger exponentials would drown the rest


class _Nodes:
    """Nodes of the new graph."""

    def __init__(self, graph: Graph) -> None:
        self.nodes: list[Node] = []
        self.dtype = graph.dtype
        tensors = (t for node in graph.nodes for t in node.tensors.values())
        self.device = next((t.device for t in tensors), torch.device("cpu"))

    def add(self, op: str, inputs: list[int], shape: tuple[int, ...], /, **attributes: Any) -> int:
        """One more; what is a tensor among the attributes becomes a tensor of the node."""
        tensors = {k: v for k, v in attributes.items() if isinstance(v, Tensor)}
        rest = {k: v for k, v in attributes.items() if k not in tensors}
        self.nodes.append(Node(op=op, inputs=tuple(inputs), shape=shape, tensors=tensors, attributes=rest))
        return len(self.nodes) - 1

    def softmax(self, x: int, dim: int, masked: bool) -> int:
        """``1 / (1 + sum exp(x_j - x_i))``.

        With a mask of -1e9 the difference from a hidden entry to another one is 1e9, whose exponential no float holds.
        Differences are kept between -2 and 1 times `_FARTHEST` then. Where one is larger the value lies below
        ``exp(-_FARTHEST)`` with and without; where one is less the sum grows by its exponential. The node says both as
        ``blurred``.
        """
        shape = self.nodes[x].shape
        order = [d for d in range(len(shape)) if d != dim] + [dim]
        x = self.permute(x, order)
        *rest, count = self.nodes[x].shape
        # for each i, all j but i
        i = torch.arange(count, device=self.device).repeat_interleave(count - 1)
        j = torch.arange(count, device=self.device).expand(count, count)
        j = j[~torch.eye(count, dtype=torch.bool, device=self.device)]
        long = (*rest, len(i))
        parts = [self.add("select", [x], long, index=index, dim=len(rest)) for index in (j, i)]
        apart = self.add("sub", parts, long)
        if masked:  # relu(3 c - relu(c - d)) - 2 c lies between -2 c and c
            for scale, shift in ((-1.0, _FARTHEST), (-1.0, 3 * _FARTHEST)):
                apart = self.add("relu", [self.shifted(apart, scale, shift)], long)
            apart = self.shifted(apart, 1.0, -2 * _FARTHEST)
        x = self.add("exp", [apart], long)
        x = self.add("reshape", [x], (*rest, count, count - 1), shape=(*rest, count, count - 1))
        one = torch.ones(1, count, dtype=self.dtype, device=self.device)
        x = self.add("linear", [x], (*rest, count, 1), weight=one[:, 1:], bias=one[0, :1])
        x = self.add("reshape", [x], (*rest, count), shape=(*rest, count))
        blurred = {"blurred": exp(-_FARTHEST) + count * exp(-2 * _FARTHEST)} if masked else {}
        x = self.add("reciprocal", [x], (*rest, count), range=(0.0, 1.0), **blurred)
        return self.permute(x, sorted(range(len(order)), key=lambda d: order[d]))

    def shifted(self, x: int, scale: float, shift: float) -> int:
        """``scale x + shift``."""
        shape = self.nodes[x].shape
        held = [torch.full((1,) * len(shape), v, dtype=self.dtype, device=self.device) for v in (scale, shift)]
        return self.add("affine", [x], shape, scale=held[0], shift=held[1])

    def leaky(self, x: int, slope: float) -> int:
        """``slope x + (1 - slope) relu(x)``."""
        if not isfinite(slope):
            raise UnsupportedError(f"'leaky_relu' with slope {slope} has no bounds; all finite slopes have")
        shape = self.nodes[x].shape
        parts = [(x, slope), (self.add("relu", [x], shape), 1 - slope)]
        scales = [torch.full((1,) * len(shape), s, dtype=self.dtype, device=self.device) for _, s in parts]
        parts = [self.add("affine", [y], shape, scale=s) for (y, _), s in zip(parts, scales, strict=True)]
        return self.add("add", parts, shape)

    def permute(self, x: int, dims: list[int]) -> int:
        """The dimensions in another order."""
        shape = self.nodes[x].shape
        if dims == list(range(len(dims))):
            return x
        return self.add("permute", [x], tuple(shape[d] for d in dims), dims=tuple(dims))


def lowered(graph: Graph) -> Graph:
    """The graph with every softmax written out and products of one value as functions of it; itself if it has none.

    A leaky ReLU with slope s outside of [0, 1] becomes ``s x + (1 - s) relu(x)``, and values without a dimension get one.
    Node numbers change where something was rewritten; the output stays last.

    Raises:
        UnsupportedError: a graph that is bounded as it runs has an operation of which it is not known how it rounds.
    """
    if any(node.shape == () for node in graph.nodes):
        graph = replace(graph, nodes=tuple(_with_dimension(node) for node in graph.nodes))
    soft = any(node.op == "softmax" for node in graph.nodes)
    if graph.deployed is not None:  # a product rounds as the network computes it
        check_runs(graph)
        return graph
    unary = [_of_one(graph, node) for node in graph.nodes]
    if not soft and not any(unary) and not any(map(_steep, graph.nodes)):
        return graph
    new, place = _Nodes(graph), dict[int, int]()
    for k in _needed(graph, unary):
        node, other = graph.nodes[k], unary[k]
        if node.op == "softmax" and node.shape[node.attributes["dim"]] > 1:
            masked = _masked(graph, node.inputs[0])
            place[k] = new.softmax(place[node.inputs[0]], node.attributes["dim"], masked)
        elif _steep(node):
            place[k] = new.leaky(place[node.inputs[0]], float(node.attributes["slope"]))
        elif other:
            place[k] = new.add(other.op, [place[other.inputs[0]]], node.shape, **other.attributes)
        else:
            new.nodes.append(replace(node, inputs=tuple(place[j] for j in node.inputs)))
            place[k] = len(new.nodes) - 1
    return replace(graph, nodes=tuple(new.nodes))


def _masked(graph: Graph, k: int) -> bool:
    """Whether constants that are added to a value lie so far apart that they hide some of its entries."""
    while True:
        node = graph.nodes[k]
        for key in ("shift", "bias"):
            if key in node.tensors and float(node.tensors[key].max() - node.tensors[key].min()) > _HIDDEN:
                return True
        operation = OPERATIONS.get(node.op)
        moves = operation is not None and operation.linear and operation.rounding is Rounding.EXACT
        if len(node.inputs) != 1 or not (moves or node.op == "affine"):
            return False
        k = node.inputs[0]


def _steep(node: Node) -> bool:
    """A leaky ReLU that is not what its name says."""
    return node.op == "leaky_relu" and not 0 <= float(node.attributes["slope"]) <= 1


def _with_dimension(node: Node) -> Node:
    """The same with the shape (1,) for ()."""
    shape = node.shape or (1,)
    attributes = dict(node.attributes)
    if node.op == "reshape":
        attributes["shape"] = shape
    if node.op == "permute" and not node.shape:
        attributes["dims"] = (0,)
    return replace(node, shape=shape, attributes=attributes)


def _of_one(graph: Graph, node: Node) -> Node | None:
    """A product of a value with itself or with its sigmoid, or a softmax over one entry, as a function of the value."""
    if node.op == "softmax" and node.shape[node.attributes["dim"]] == 1:
        return Node(op="power", inputs=node.inputs, shape=node.shape, attributes={"exponent": 0.0})
    if node.op != "mul":
        return None
    x, y = node.inputs
    if x == y:
        return Node(op="power", inputs=(x,), shape=node.shape, attributes={"exponent": 2.0})
    for one, other in ((x, y), (y, x)):
        if graph.nodes[other].op == "sigmoid" and graph.nodes[other].inputs == (one,):
            return Node(op="silu", inputs=(one,), shape=node.shape)
    return None


def _needed(graph: Graph, unary: list[Node | None]) -> list[int]:
    """The nodes that the output needs and the input, in order."""
    needed = {len(graph.nodes) - 1}
    for k in range(len(graph.nodes) - 1, 0, -1):
        if k in needed:
            needed.update((unary[k] or graph.nodes[k]).inputs)
    return sorted(needed | {0})
