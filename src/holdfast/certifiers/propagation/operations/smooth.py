"""Functions of one variable that bend at most twice, between two lines each.

Such a function is convex or concave on up to three stretches that meet at its *bends*. Of the lines below it the best
are those of its convex envelope: tangents at points where a tangent stays below the whole function (they form one
interval of points, on a convex stretch), and chords that bridge the rest. A line is named by its point of contact: a
position in [0, 1] along that interval. Lines above f are lines below -f.

**Why they are sound.** Points of contact come from bisections whose accuracy is never relied on: any line is moved down
to where it is proved to stay below. On a stretch where f is concave, f minus a line is least at an end. On a convex
stretch it is, for any point p of it, at least its tangent at p, which is least at an end:
``g(z) >= g(p) + g'(p) (z - p)``. So the ends, and any points p of the convex stretches, give a proved intercept; near the
true point of contact it is also the best one, up to rounding. Where a function is not finite on the whole interval its
lines are infinite and prove nothing.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.certifiers.propagation.operation import Operation, Pull
from holdfast.certifiers.propagation.operations.activations import Lines, pull_lines
from holdfast.certifiers.propagation.region import Box
from holdfast.core.errors import UnsupportedError
from holdfast.graph.model import Node

__all__ = ["Contact", "Curve", "Side", "check_finite", "chord"]

_ROUNDS = 40  # of a bisection: as fine as a line can use
_LARGEST = 1e150  # of ends, values and slopes: products of two of them do not overflow


class Contact(NamedTuple):
    """From the first to the last point at which a tangent stays below.

    ``none``: no tangent does, only the chord; if that may be nearest to f at a point inside, both points are that one.
    """

    start: Tensor
    end: Tensor
    none: Tensor


class Side:
    """f, or -f, on intervals: whatever stays below it.

    Args:
        curve: f.
        node: the node.
        sign: 1 for f, -1 for -f.
        low: lower ends (n, \\*shape).
        high: upper ends.
    """

    def __init__(self, curve: Curve, node: Node, sign: int, low: Tensor, high: Tensor) -> None:
        self.curve, self.node, self.sign, self.low, self.high = curve, node, sign, low, high

    def value(self, z: Tensor) -> Tensor:
        """f or -f."""
        f = self.curve.value(self.node, z)
        return f if self.sign > 0 else -f

    def derivative(self, z: Tensor) -> Tensor:
        """Its derivative."""
        f = self.curve.derivative(self.node, z)
        return f if self.sign > 0 else -f

    def stays_below(self, t: Tensor, end: Tensor) -> Tensor:
        """Whether the tangent at t stays below the value at an end of the interval, up to rounding."""
        at, to, rise = self.value(t), self.value(end), self.derivative(t) * (end - t)
        return at + rise <= to + 8 * torch.finfo(at.dtype).eps * (at.abs() + to.abs() + rise.abs())

    def first_contact(self, start: Tensor, end: Tensor) -> Tensor:
        """The first point of a convex stretch whose tangent stays below the value at ``low``; ``end`` if none does."""
        left, right = start, end
        for _ in range(_ROUNDS):
            middle = (left + right) / 2
            below = self.stays_below(middle, self.low)
            left, right = torch.where(below, left, middle), torch.where(below, middle, right)
        return torch.where(self.stays_below(start, self.low), start, right)

    def last_contact(self, start: Tensor, end: Tensor) -> Tensor:
        """The last point of a convex stretch whose tangent stays below the value at ``high``; ``start`` if none does."""
        left, right = start, end
        for _ in range(_ROUNDS):
            middle = (left + right) / 2
            below = self.stays_below(middle, self.high)
            left, right = torch.where(below, middle, left), torch.where(below, right, middle)
        return torch.where(self.stays_below(end, self.high), end, left)

    def contact_between(self, start: Tensor, end: Tensor) -> Contact:
        """Where the convex stretch [start, end] lies between concave ones."""
        first, last = self.first_contact(start, end), self.last_contact(start, end)
        none = (first > last) | ~self.stays_below(first, self.low) | ~self.stays_below(last, self.high)
        # under a chord the function is nearest where it has the chord's slope
        slope = chord(self, self.low, self.high)
        left, right = start, end
        for _ in range(_ROUNDS):
            middle = (left + right) / 2
            short = self.derivative(middle) < slope
            left, right = torch.where(short, middle, left), torch.where(short, right, middle)
        return Contact(torch.where(none, right, first), torch.where(none, right, last), none)

    def contact_outside(self, first: Tensor, second: Tensor) -> Contact:
        """Where [low, first] and [second, high] are convex, and no line touches both."""
        left = (first > self.low) & self.stays_below(self.low, self.high)
        right = (second < self.high) & self.stays_below(self.high, self.low)
        start = torch.where(left, self.low, self.first_contact(second, self.high))
        end = torch.where(left, self.last_contact(self.low, first), self.high)
        none, between = ~(left | right), (first + second) / 2
        return Contact(torch.where(none, between, start), torch.where(none, between, end), none)

    def lowest(self, slope: Tensor, point: Tensor, start: Tensor, end: Tensor) -> Tensor:
        """A lower bound of value minus slope times z on the convex stretch [start, end], good if ``point`` is."""
        point = point.detach()  # at a point of contact its own gradient is 0; an end moves with the interval
        p = torch.where(point <= start, start, torch.where(point >= end, end, point))
        with torch.no_grad():  # 0 at the true point of contact, where the rest has the right gradient
            rise = self.derivative(p) - slope
            least = torch.minimum(rise * (start - p), rise * (end - p))
        return self.value(p) - slope * p + least

    def at_ends(self, slope: Tensor) -> Tensor:
        """The lesser of value minus slope times z at the two ends."""
        return torch.minimum(
            self.value(self.low) - slope * self.low,
            self.value(self.high) - slope * self.high,
        )


class Curve(Operation):
    """A function of each entry that bends at most twice and, if twice, has no line that touches both outer stretches."""

    linear = False
    elementwise = True

    def inset(self, node: Node) -> float:
        """The part of an interval that points of contact keep from its lower end, where f' may be infinite."""
        return 0.0

    @abstractmethod
    def value(self, node: Node, z: Tensor) -> Tensor:
        """f."""

    @abstractmethod
    def derivative(self, node: Node, z: Tensor) -> Tensor:
        """f'; at a kink, that of the side where f is convex."""

    @abstractmethod
    def bends(self, node: Node) -> tuple[bool, tuple[float, ...]]:
        """Whether f is convex below its first bend, and its bends: where the curvature changes sign, two at most."""

    def turns(self, node: Node) -> tuple[float, ...]:
        """Where f has local extremes."""
        return ()

    def defined(self, node: Node, box: Box) -> Tensor | None:
        """Where f is finite on the whole interval; None: everywhere."""
        return None

    @override
    def interval(self, node: Node, inputs: Sequence[Box]) -> Box:
        (low, high), defined = inputs[0], self.defined(node, inputs[0])
        lower, upper = self._extremes(node, *_made_safe(low, high, defined))
        if defined is None:
            return Box(lower, upper)
        return Box(lower.masked_fill(~defined, -torch.inf), upper.masked_fill(~defined, torch.inf))

    def bounded(self, node: Node, box: Box) -> Tensor:
        """Where f is defined and neither it nor a slope of a line overflows: only there it has lines."""
        defined = self.defined(node, box)
        low, high = _made_safe(*box, defined)
        ends = torch.stack([low, high, *self._extremes(node, low, high), self.steepest(node, low, high)])
        finite = (ends.detach().abs() < _LARGEST).all(0)
        return finite if defined is None else finite & defined

    def _extremes(self, node: Node, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        one, other = self.value(node, low), self.value(node, high)
        lower, upper = torch.minimum(one, other), torch.maximum(one, other)
        for turn in self.turns(node):
            value = self.value(node, _between(turn, low, high))
            lower, upper = torch.minimum(lower, value), torch.maximum(upper, value)
        return lower, upper

    @override
    def size(self, node: Node, inputs: Sequence[Box], output: Box) -> Tensor:
        """A line's slope is at most the steepest slope; four times pays for a few units of error in f and f'."""
        low, high = _made_safe(*inputs[0], self.defined(node, inputs[0]))
        return 4 * ((1 + self.steepest(node, low, high)) * inputs[0].magnitude + output.magnitude)

    def steepest(self, node: Node, low: Tensor, high: Tensor) -> Tensor:
        """The largest magnitude of a line's slope."""
        points = [low + self.inset(node) * (high - low), high]
        points += [_between(c, low, high) for c in self.bends(node)[1]]
        slopes = torch.stack([self.derivative(node, p).abs() for p in points]).amax(0)
        slopes = torch.maximum(slopes, chord(Side(self, node, 1, low, high), low, high).abs())
        return torch.where(high > low, slopes, 0.0)

    @override
    def unstable(self, node: Node, box: Box) -> Tensor:
        """All that are not points."""
        return ~(box.lower >= box.upper)

    @override
    def alpha(self, prepared: Lines) -> Tensor | None:
        """Positions of the points of contact, (n, 2, \\*shape): below and above."""
        return prepared.positions

    @override
    def prepare(self, node: Node, inputs: Sequence[Box], alpha: Tensor | None = None) -> Lines:
        """Tangents, by default at the interval's middle if they stay below (above), or else chords."""
        defined = self.bounded(node, inputs[0])
        low, high = _made_safe(*inputs[0], defined)
        below, above = (None, None) if alpha is None else alpha.unbind(2)
        lower_slope, lower, at_lower = self.line(Side(self, node, 1, low, high), below)
        upper_slope, upper, at_upper = self.line(Side(self, node, -1, low, high), above)
        lower_slope, upper_slope = lower_slope.masked_fill(~defined, 0), upper_slope.masked_fill(~defined, 0)
        lower, upper = lower.masked_fill(~defined, -torch.inf), upper.masked_fill(~defined, -torch.inf)
        return Lines(lower_slope, lower, -upper_slope, -upper, torch.stack([at_lower, at_upper], 1))

    @override
    def pull(self, node: Node, a: Tensor, prepared: Lines) -> Pull:
        """See `pull_lines`."""
        pulled, constant = pull_lines(a, prepared)
        return [pulled], constant

    def line(self, side: Side, position: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Slope and intercept of a line below one side, and the position of the default point of contact."""
        low, high = side.low, side.high
        middle = (low + high) / 2
        with torch.no_grad():
            start, end, none = self.contact(side)
            usual = ((middle - start) / torch.where(end > start, end - start, 1.0)).clamp(0, 1)
        # points that are ends of the interval move with it
        start, end = torch.where(start <= low, low, start), torch.where(end >= high, high, end)
        if position is None:
            point = torch.minimum(torch.maximum(middle, start), end)
        else:
            point = start + (position + (position.clamp(0, 1) - position).detach()) * (end - start)
        slope, whole = side.derivative(point), chord(side, low, high)
        if position is None and self.bends(side.node)[1]:  # chords to an end: their slopes have the right gradient
            slope = torch.where(middle < start, chord(side, low, start), slope)
            slope = torch.where(middle > end, chord(side, end, high), slope)
        slope = torch.where(none, whole, slope)
        slope = torch.where(high > low, slope, 0.0)  # over a point all slopes do; that of a root may be infinite
        return slope, self.intercept(side, slope, point), usual

    def contact(self, side: Side) -> Contact:
        """Where tangents stay below."""
        low, high, node = side.low, side.high, side.node
        convex, bends = self.bends(node)
        if side.sign < 0:
            convex = not convex
        if not bends:
            none = torch.full_like(low, not convex, dtype=torch.bool)
            return Contact(low + self.inset(node) * (high - low), high, none)
        first = _between(bends[0], low, high)
        second = _between(bends[1], low, high) if len(bends) > 1 else high
        return side.contact_outside(first, second) if convex else side.contact_between(first, second)

    def intercept(self, side: Side, slope: Tensor, point: Tensor) -> Tensor:
        """The most that is proved to stay below value minus slope times z."""
        low, high = side.low, side.high
        convex, bends = self.bends(side.node)
        if side.sign < 0:
            convex = not convex
        if not bends:
            return side.value(point) - slope * point if convex else side.at_ends(slope)
        first = _between(bends[0], low, high)
        second = _between(bends[1], low, high) if len(bends) > 1 else high
        if not convex:
            return torch.minimum(side.at_ends(slope), side.lowest(slope, point, first, second))
        # a line that touches one of the outer stretches, or neither, is nearest to the other where the interval ends
        left = side.lowest(slope, torch.where(point <= first, point, low), low, first)
        return torch.minimum(left, side.lowest(slope, torch.where(point >= second, point, high), second, high))


def chord(side: Side, start: Tensor, end: Tensor) -> Tensor:
    """The slope between two points; where they nearly meet a chord is noise and the tangent between them as good."""
    wide = end - start > torch.finfo(start.dtype).eps ** 0.5 * (start.abs() + end.abs())
    between = (side.value(end) - side.value(start)) / torch.where(wide, end - start, 1.0)
    return torch.where(wide, between, side.derivative((start + end) / 2))


def _between(c: float, low: Tensor, high: Tensor) -> Tensor:
    """A number moved into each interval."""
    return torch.minimum(torch.clamp(low, min=c), high)


def _made_safe(low: Tensor, high: Tensor, defined: Tensor | None) -> tuple[Tensor, Tensor]:
    """The interval, or [1, 1] where f is not defined, so that nothing there spoils gradients."""
    return (low, high) if defined is None else (torch.where(defined, low, 1.0), torch.where(defined, high, 1.0))


def check_finite(node: Node, name: str) -> None:
    """Refuses an attribute that is no finite number.

    Raises:
        UnsupportedError: the message names it.
    """
    value = float(node.attributes[name])
    if not math.isfinite(value):
        raise UnsupportedError(f"'{node.op}' with {name} {value} has no bounds; all finite ones have")
