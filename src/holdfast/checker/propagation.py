"""Boxes around all values of a network, and lower bounds of linear functions of them, in outward-rounded float64.

Each step pays `gamma` of the number of terms added, plus 16 for weights that are right to a few units, times the
magnitudes that entered it, and TINY for underflow.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import prod
from typing import Any, cast

import numpy as np

from holdfast.checker.network import ActivationNode, LinearNode, Network
from holdfast.checker.rounding import LIMIT, TINY, Rejected, gamma, length

__all__ = ["NodeBounds", "Term", "pick"]

Array = Any
Term = tuple[Array, Array, Array]  # for a value: rows, entries and coefficients that are added
_BYTES = 1 << 24  # of one array of a backward pass


def pick(value: Array, who: Array) -> Array:
    """What belongs to each row, of something that all parts share or each has for itself."""
    return value if len(value) == 1 else value[who]


class NodeBounds:
    """Boxes of all values for n parts of the input set.

    Args:
        network: the network.
        lower: (n, \\*shape of the input).
        upper: likewise.

    Attributes:
        lower: of each node, (n, \\*shape).
        upper: likewise.
        reach: the largest magnitudes of each, likewise.
    """

    def __init__(self, network: Network, lower: Array, upper: Array) -> None:
        self.network = network
        self.lower, self.upper = [lower], [upper]
        self.reach = [np.maximum(np.abs(lower), np.abs(upper))]
        self._size: list[Array] = [None]  # length of the magnitudes that a step back from a node may add up
        self._sharp = self._which_are_sharp()

    def _which_are_sharp(self) -> list[bool]:
        """Whose boxes by intervals are exact, so that no pass back is needed: linear in entries that range freely."""
        free, sharp = [True], [True]
        for node in self.network.nodes[1:]:
            assert node is not None
            entrywise = len(node.inputs) == 1 and (
                isinstance(node, ActivationNode) or not hasattr(node.maps[0], "weight")
            )
            free.append(entrywise and free[node.inputs[0]])
            linear = isinstance(node, LinearNode) and len(node.inputs) == 1
            sharp.append(free[-1] or (linear and (free[node.inputs[0]] or (entrywise and sharp[node.inputs[0]]))))
        return sharp

    def run(self, slopes: Mapping[int, Mapping[int, Array]], known: "NodeBounds | None" = None) -> "NodeBounds":
        """Finds the boxes front to back: intervals, and passes back where the sign of an activation's input is open.

        Args:
            slopes: for the input of an activation, the lower slopes (\\*shape) of activations in passes from there.
            known: boxes of a set that contains this one.
        """
        read = {self.network.read_by(k) for k in self.network.activations}
        for i in range(1, len(self.network.nodes)):
            lower, upper = self._interval(i)
            if known:
                lower, upper = np.maximum(lower, known.lower[i]), np.minimum(upper, known.upper[i])
            self.lower.append(lower)
            self.upper.append(upper)
            if i in read and not self._sharp[i]:
                self._tighten(i, slopes.get(i, {}))
            self.reach.append(np.maximum(np.abs(self.lower[i]), np.abs(self.upper[i])))
            if not (self.reach[i] < LIMIT).all():
                raise Rejected("a bound is not a number or too large")
        return self

    def _interval(self, i: int) -> tuple[Array, Array]:
        node = self.network.nodes[i]
        assert node is not None
        boxes = [(self.lower[j], self.upper[j]) for j in node.inputs]
        if isinstance(node, ActivationNode):
            slack = gamma(16) * self.reach[node.inputs[0]] + TINY if node.slope else 0.0
            self._size.append(4 * length(self.reach[node.inputs[0]]))
            lower, upper = (np.maximum(z, node.slope * z) for z in boxes[0])
            return lower - slack, upper + slack
        if all(m.exact for m in node.maps):
            self._size.append(None)
            return node.maps[0].forward(boxes[0][0]), node.maps[0].forward(boxes[0][1])
        bias = np.zeros(()) if node.bias is None else node.bias
        centre, radius, size = bias, 0.0, np.abs(bias)
        for m, (lower, upper), j in zip(node.maps, boxes, node.inputs, strict=True):
            middle = lower / 2 + upper / 2
            centre = centre + m.forward(middle)
            radius = radius + m.forward(np.maximum(upper - middle, middle - lower), True)
            size = size + m.forward(self.reach[j], True)
        self._size.append(length(size))
        slack = gamma(self._terms(i)) * size + TINY
        return centre - radius - slack, centre + radius + slack

    def _terms(self, i: int) -> int:
        node = self.network.nodes[i]
        entries = 0 if node is None else prod(node.shape) + sum(prod(self.network.shape_of(j)) for j in node.inputs)
        return 16 + entries

    def _tighten(self, i: int, slopes: Mapping[int, Array]) -> None:
        """Intersects a box with bounds by passes back, of the entries whose sign is open."""
        shape = self.lower[i].shape
        low, high = (z.reshape(len(z), -1).copy() for z in (self.lower[i], self.upper[i]))
        who, entry = np.nonzero(~((low >= 0) | (high <= 0)))
        for part in self._parts(i, len(who)):
            unit = np.zeros((2, len(who[part]), low.shape[1]))
            unit[:, np.arange(len(who[part])), entry[part]] = [[1], [-1]]
            twice = np.tile(who[part], 2)
            given = {k: s[None] for k, s in slopes.items()}
            found = self.minimum(i, unit.reshape(-1, *shape[1:]), twice, given)
            at = (who[part], entry[part])
            low[at] = np.maximum(low[at], found[: len(found) // 2])
            high[at] = np.minimum(high[at], -found[len(found) // 2 :])
        self.lower[i], self.upper[i] = low.reshape(shape), high.reshape(shape)

    def _parts(self, i: int, rows: int) -> list[slice]:
        """Rows, as many at a time as memory allows."""
        largest = max(prod(self.network.shape_of(j)) for j in range(i + 1))
        step = max(_BYTES // (16 * largest), 1)
        return [slice(a, b) for a, b in pairwise([*range(0, rows, step), rows])]

    def minimum(
        self,
        i: int,
        a: Array,
        who: Array,
        slopes: Mapping[int, Array],
        extra: Mapping[int, Term] | None = None,
        boxes: Sequence[tuple[Array, Array]] | None = None,
    ) -> Array:
        """Lower bounds of ``<a, value of node i> + <extra, values>``, one for each row of a; may be -inf or NaN.

        At each moment the bound sought is at least ``sum <pending, values> + total - error``.

        Args:
            i: the node.
            a: (rows, \\*shape).
            who: (rows,): the part of the set that each row is about.
            slopes: lower slopes of activations, (rows or 1, \\*shape), in [0, 1]; NaN or missing for the default.
            extra: coefficients that are added to those of a value.
            boxes: lower and upper of each node to use for activations, if others than those found.

        Returns:
            (rows,).
        """
        pending, total, error = {i: a}, np.zeros(len(a)), np.zeros(len(a))
        for k in range(i, 0, -1):
            if k not in pending:
                if extra and k in extra:
                    raise Rejected("a value that does not count is split")  # its constant would stand alone
                continue
            a, node = self._with(extra, k, pending.pop(k), error), self.network.nodes[k]
            assert node is not None
            if isinstance(node, ActivationNode):
                z = boxes[node.inputs[0]] if boxes else (self.lower[node.inputs[0]], self.upper[node.inputs[0]])
                pulled, constant = _through(node, a, who, z, slopes.get(k))
                back = [pulled]
            else:
                back, constant = _linear(node, a)
            if self._size[k] is not None:
                error += gamma(self._terms(k)) * length(a) * pick(self._size[k], who) + TINY
            if constant is not None:
                total = total + constant
                error += gamma(1) * np.abs(total)
            for j, part in zip(node.inputs, back, strict=True):
                if j in pending:
                    part = pending[j] + part
                    error += gamma(1) * length(part) * pick(length(self.reach[j]), who) + TINY
                pending[j] = part
        a = self._with(extra, 0, pending.pop(0), error).reshape(len(a), -1)
        lower, upper = (pick(z[0].reshape(len(z[0]), -1), who) for z in (self.lower, self.upper))
        middle = lower / 2 + upper / 2
        total = total + np.einsum("ij,ij->i", a, middle)
        total -= np.einsum("ij,ij->i", np.abs(a), np.maximum(upper - middle, middle - lower))
        error += gamma(a.shape[1] + 16) * length(a) * pick(length(self.reach[0]), who) + TINY
        return total - (error * (1 + 1e-9) + gamma(4) * np.abs(total))

    def _with(self, extra: Mapping[int, Term] | None, k: int, a: Array, error: Array) -> Array:
        if not extra or k not in extra:
            return a
        rows, entries, values = extra[k]
        added, size = np.zeros((2, len(a), a[0].size))
        np.add.at(added, (rows, entries), values)
        np.add.at(size, (rows, entries), np.abs(values))
        size += np.abs(a.reshape(size.shape))
        error += gamma(np.bincount(rows, minlength=1).max() + 2) * length(size) * length(self.reach[k]).max() + TINY
        return a + added.reshape(a.shape)


def _linear(node: LinearNode, a: Array) -> tuple[list[Array], Array | None]:
    """Coefficients of the inputs of a linear node, and what its bias adds; None: it has none."""
    back = [m.back(a) for m in node.maps]
    if node.bias is None:
        return back, None
    return back, a.reshape(len(a), -1) @ np.broadcast_to(node.bias, node.shape).ravel()


def _through(
    node: ActivationNode, a: Array, who: Array, box: tuple[Array, Array], slope: Array | None
) -> tuple[Array, Array]:
    """A step back through ``max(z, flat z)``: below, a line through 0; above, the chord, moved up to cover both ends."""
    (low, high), flat = box, node.slope
    open_ = (low < 0) & (high > 0)
    width = np.where(open_, high - low, 1.0)
    chord = np.where(open_, np.minimum((high - flat * low) / width, 1.0), np.where(low >= 0, 1.0, flat))
    rise = np.where(open_, np.maximum(flat * low - chord * low, high - chord * high), 0.0)
    default = np.where(open_, np.where(high > -low, 1.0, flat), chord)
    below = pick(default, who)
    if slope is not None:
        below = cast("Array", np.where(pick(open_, who) & ~np.isnan(slope), np.maximum(slope, flat), below))
    negative = np.minimum(a, 0.0)
    constant = (negative * pick(rise, who)).reshape(len(a), -1).sum(1)
    return (a - negative) * below + negative * pick(chord, who), constant
