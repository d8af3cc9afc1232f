"""A graph over one box written out: every value as a linear expression in the inputs and the activations that bend.

Linear programs, integer programs and semidefinite relaxations are all read off it. Expressions are float64 and carry a
bound on what rounding did to them: a method whose soundness rests on them must pay for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.certifiers.propagation.operation import Operation, node_size
from holdfast.certifiers.propagation.operations.activations import LeakyRelu, Lines
from holdfast.certifiers.propagation.propagation import Propagation
from holdfast.certifiers.propagation.region import Box, gamma
from holdfast.core.errors import UnsupportedError
from holdfast.graph.model import Graph, Node
from holdfast.graph.operations import compute

__all__ = ["Kinks", "Relaxation", "TooLargeError", "lower_max_pools", "piecewise_linear"]

_CONSTANTS = ("bias", "shift", "size")


class TooLargeError(UnsupportedError):
    """More variables than a method takes on."""


class Kinks(NamedTuple):
    """Entries of activations that bend on their boxes, in topological order.

    Attributes:
        node: (k,) int64: the activation node.
        entry: (k,) int64: the entry in its flattened value.
        z: (k, 1 + v): the expression of the argument.
        error: (k,): how far the expression may be from the argument, anywhere in the box.
        low: (k,): the least value of the argument.
        high: (k,): the largest.
        flat: (k,): of a (leaky) ReLU its slope below 0; NaN for anything else.
        below: (k, 2, 2): slope and intercept of two lines below; for a smooth activation the same line twice.
        above: (k, 2): slope and intercept of a line above.
    """

    node: Tensor
    entry: Tensor
    z: Tensor
    error: Tensor
    low: Tensor
    high: Tensor
    flat: Tensor
    below: Tensor
    above: Tensor


class Relaxation:
    """The values of a graph over the box of one sample, in terms of few variables.

    The first variables are the inputs whose box is no point; each kink is one more. Activations that are linear on their
    boxes are substituted. An expression is a constant followed by a coefficient for each variable.

    Args:
        found: a propagation that has run.
        sample: which of its samples.
        most: more variables than these are refused; None: any number.

    Attributes:
        inputs: (i,) int64: the entries of the flattened input that are variables.
        box: least and largest values of the variables, each (v,).
        kinks: one row for each variable after the inputs.
        output: (outputs, 1 + v): the expressions of the flattened output.
        output_error: (outputs,): how far they may be from it.

    Raises:
        TooLargeError: more variables than ``most``.
        UnsupportedError: an operation of several arguments that is not linear.
    """

    def __init__(self, found: Propagation, sample: int = 0, most: int | None = None) -> None:
        if found.graph.deployed is not None or any(node.tolerance for node in found.graph.nodes):
            raise UnsupportedError("no relaxation of this kind counts rounding of the run or tolerances of weights")
        self.graph, self._most = found.graph, most
        self._boxes = [Box(*(t.detach()[sample : sample + 1] for t in box)) for box in found.boxes]
        low, high = (t.flatten() for t in self._boxes[0])
        point = low >= high  # what is not a number stays a variable, and spoils every bound
        self.inputs = (~point).nonzero().squeeze(1)
        self._ends = [Box(low[self.inputs], high[self.inputs])]
        value = low.new_zeros(1 + len(self.inputs), len(low))
        value[0] = torch.where(point, low, 0.0)
        value[1 + torch.arange(len(self.inputs), device=low.device), self.inputs] = 1.0
        self._values = [value.view(-1, *self._boxes[0].lower.shape[1:])]
        self._errors = [torch.zeros_like(self._boxes[0].lower)]
        self._found: list[Kinks] = []
        self._check(len(self.inputs))
        for i, (node, op) in enumerate(zip(self.graph.nodes[1:], found.operations[1:], strict=True), 1):
            assert op is not None
            value, error = self._linear(node, op) if op.linear else self._bend(i, node, op)
            self._values.append(value)
            self._errors.append(error)
        self._finish(high)

    def _check(self, count: int) -> None:
        if self._most is not None and count > self._most:
            raise TooLargeError(
                f"more than {self._most} inputs and activations that bend: use crown, alpha_crown or relu_splitting"
            )

    def _magnitude(self, value: Tensor, error: Tensor) -> Tensor:
        """At most the sum of the magnitudes of an expression's terms: (1, \\*shape)."""
        most = torch.cat([box.magnitude for box in self._ends])[: len(value) - 1]
        sums = value[0].abs() + torch.einsum("v,v...->...", most, value[1:].abs())
        return (1 + gamma(len(value) + 2)) * sums.unsqueeze(0) + error

    def _linear(self, node: Node, op: Operation) -> tuple[Tensor, Tensor]:
        rows = max((len(self._values[j]) for j in node.inputs), default=1)
        parts = [_padded(self._values[j], rows) for j in node.inputs]
        bare = replace(node, tensors={k: t for k, t in node.tensors.items() if k not in _CONSTANTS})
        constant = compute(node.op, [p[:1] for p in parts], node.tensors, node.attributes)
        value = torch.cat([constant, compute(node.op, [p[1:] for p in parts], bare.tensors, node.attributes)])
        passed = op.interval(bare, [Box(-self._errors[j], self._errors[j]) for j in node.inputs]).upper
        sizes = [self._magnitude(self._values[j], self._errors[j]) for j in node.inputs]
        reach = self._magnitude(value, passed)
        terms = 16 + node_size(node.shape) + sum(node_size(self.graph.nodes[j].shape) for j in node.inputs)
        size = op.size(node, [Box(-s, s) for s in sizes], Box(-reach, reach))
        return value, passed if size is None else (1 + gamma(terms)) * passed + gamma(terms) * size

    def _bend(self, i: int, node: Node, op: Operation) -> tuple[Tensor, Tensor]:
        value, error = self._values[node.inputs[0]], self._errors[node.inputs[0]]
        argument = self._boxes[node.inputs[0]]
        lines = op.prepare(node, [argument])
        if not isinstance(lines, Lines) or len(node.inputs) > 1:
            raise UnsupportedError(f"'{node.op}' has no lines in one argument, of which linear relaxations are made")
        if isinstance(op, LeakyRelu):
            flat = float(node.attributes.get("slope", 0.0))
            bends = op.unstable(node, argument)
            slope = torch.where(argument.lower >= 0, torch.ones_like(argument.lower), flat).masked_fill(bends, 0.0)
        else:
            flat, bends = torch.nan, torch.ones_like(argument.lower, dtype=torch.bool)
            slope = torch.zeros_like(argument.lower)
        chosen = bends.flatten().nonzero().squeeze(1)

        def entries(t: Tensor | None) -> Tensor:
            whole = argument.lower.new_zeros(()) if t is None else t.detach()
            return whole.expand(argument.lower.shape).flatten()[chosen]

        if flat == flat:
            zero = torch.zeros(len(chosen), 2).to(value)
            below = torch.stack([zero + zero.new_tensor([flat, 0.0]), zero + zero.new_tensor([1.0, 0.0])], 1)
        else:
            line = torch.stack([entries(lines.lower_slope), entries(lines.lower_intercept)], 1)
            below = torch.stack([line, line], 1)
        self._found.append(
            Kinks(
                torch.full_like(chosen, i),
                chosen,
                value.flatten(1)[:, chosen].T,
                error.flatten()[chosen],
                entries(argument.lower),
                entries(argument.upper),
                torch.full((len(chosen),), flat, dtype=value.dtype, device=value.device),
                below,
                torch.stack([entries(lines.upper_slope), entries(lines.upper_intercept)], 1),
            )
        )
        result, count = self._boxes[i], sum(len(box.lower) for box in self._ends)
        self._ends.append(Box(*(t.flatten()[chosen] for t in result)))
        self._check(count + len(chosen))
        scaled = value * slope
        grown = value.new_zeros(1 + count + len(chosen), node_size(node.shape))
        grown[: len(scaled)] = scaled.flatten(1)
        grown[1 + count + torch.arange(len(chosen), device=value.device), chosen] = 1.0
        return grown.view(-1, *node.shape), error * slope + gamma(2) * self._magnitude(scaled, error * slope)

    def _finish(self, like: Tensor) -> None:
        self.box = Box(*(torch.cat(parts) for parts in zip(*self._ends, strict=True)))
        rows = 1 + len(self.box.lower)
        self.output = _padded(self._values[-1], rows).flatten(1).T
        self.output_error = self._errors[-1].flatten()
        wide = [k._replace(z=_padded(k.z.T, rows).T) for k in self._found]
        none, whole = like.new_zeros(0), torch.zeros(0, dtype=torch.int64, device=like.device)
        shapes = (like.new_zeros(0, rows), like.new_zeros(0, 2, 2), like.new_zeros(0, 2))
        empty = Kinks(whole, whole, shapes[0], none, none, none, none, shapes[1], shapes[2])
        self.kinks = Kinks(*(torch.cat(parts) for parts in zip(empty, *wide, strict=True)))
        del self._values, self._errors, self._found

    def objective(self, c: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        """Expressions of ``C f + d``.

        Args:
            c: (rows, outputs).
            d: (rows,).

        Returns:
            (rows, 1 + v), and how far each may be from the truth, (rows,).
        """
        value = c @ self.output
        value[:, 0] += d
        most = torch.cat([self.box.lower.new_ones(1), self.box.magnitude])
        size = c.abs() @ (self.output.abs() @ most) + d.abs()
        return value, (1 + gamma(c.shape[1] + 4)) * (c.abs() @ self.output_error) + gamma(c.shape[1] + 4) * size

    def point(self, variables: Tensor) -> Tensor:
        """The input (1, \\*features) with these values (at least i,) of the input variables."""
        x = self._boxes[0].lower.flatten().clone()
        x[self.inputs] = variables[: len(self.inputs)]
        return x.view_as(self._boxes[0].lower)


def _padded(value: Tensor, rows: int) -> Tensor:
    """With zero coefficients for variables that came later."""
    return torch.cat([value, value.new_zeros(rows - len(value), *value.shape[1:])]) if len(value) < rows else value


def piecewise_linear(graph: Graph) -> str | None:
    """The first operation that is neither linear nor a (leaky) ReLU nor a max pool, or None."""
    from holdfast.certifiers.propagation.table import operation

    others = (n.op for n in graph.nodes[1:] if n.op != "max_pool")
    return next((op for op in others if not (operation(op).linear or isinstance(operation(op), LeakyRelu))), None)


def lower_max_pools(graph: Graph) -> Graph:
    """The same function with each max pool as a tournament of ``max(x, y) = y + relu(x - y)``; itself without any."""
    if all(node.op != "max_pool" for node in graph.nodes):
        return graph
    nodes: list[Node] = []
    place: list[int] = []

    def put(op: str, inputs: Sequence[int], shape: tuple[int, ...], index: Tensor | None = None) -> int:
        tensors = {} if index is None else {"index": index}
        attributes = {"select": {"dim": 0}, "reshape": {"shape": shape}}.get(op, {})
        nodes.append(Node(op=op, inputs=tuple(inputs), shape=shape, tensors=tensors, attributes=attributes))
        return len(nodes) - 1

    for node in graph.nodes:
        if node.op != "max_pool":
            nodes.append(replace(node, inputs=tuple(place[j] for j in node.inputs)))
            place.append(len(nodes) - 1)
            continue
        source = graph.nodes[node.inputs[0]].shape
        whole = put("reshape", [place[node.inputs[0]]], (node_size(source),))
        windows = _windows(node, source)
        count = (len(windows[0]),)
        players = [put("select", [whole], count, index) for index in windows]
        while len(players) > 1:
            winners = players[len(players) & ~1 :]
            for x, y in zip(players[::2], players[1::2], strict=False):
                lead = put("relu", [put("sub", [x, y], count)], count)
                winners.append(put("add", [y, lead], count))
            players = winners
        place.append(put("reshape", players, node.shape))
    return replace(graph, nodes=tuple(nodes))


def _windows(node: Node, source: tuple[int, ...]) -> list[Tensor]:
    """For each place in a window, the flattened input entry that stands there, (outputs,); in padding, one that is there."""
    a, spatial = node.attributes, source[1:]
    axes: list[Tensor] = []  # for each dimension (out, kernel): where, -1 in padding
    for out, size, k, s, p, d in zip(
        node.shape[1:], spatial, a["kernel"], a["stride"], a["padding"], a["dilation"], strict=True
    ):
        at = torch.arange(out).unsqueeze(1) * s - p + torch.arange(k) * d
        axes.append(torch.where((at >= 0) & (at < size), at, -1))
    where, inside = torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.bool)
    for at, size in zip(axes, spatial, strict=True):
        where = (where[:, None, :, None] * size + at.clamp(min=0)[None, :, None, :]).flatten(2).flatten(0, 1)
        inside = (inside[:, None, :, None] & (at >= 0)[None, :, None, :]).flatten(2).flatten(0, 1)
    some = where.gather(1, inside.to(torch.uint8).argmax(1, keepdim=True))
    where = torch.where(inside, where, some)
    channel = torch.arange(source[0]).view(-1, 1, 1) * node_size(spatial)
    return list((channel + where).flatten(0, 1).T.contiguous())
