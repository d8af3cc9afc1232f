"""Functions of one variable: what each computes, its slope, where it bends and turns."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.certifiers.propagation.operations.activations import Lines
from holdfast.certifiers.propagation.operations.smooth import Contact, Curve, Side, check_finite
from holdfast.certifiers.propagation.region import Box
from holdfast.graph.model import Node

__all__ = ["Erf", "Exp", "Log", "Power", "Reciprocal", "Sqrt", "Wave"]

_FAR = 1e8  # of a sine: beyond it points of contact are not worth finding


class Exp(Curve):
    """The exponential: convex."""

    @override
    def range(self, node: Node) -> tuple[float, float]:
        return 0.0, math.inf

    @override
    def value(self, node: Node, z: Tensor) -> Tensor:
        return torch.exp(z)

    @override
    def derivative(self, node: Node, z: Tensor) -> Tensor:
        return torch.exp(z)

    @override
    def bends(self, node: Node) -> tuple[bool, tuple[float, ...]]:
        return True, ()


class Log(Curve):
    """The natural logarithm: concave, of positive numbers."""

    @override
    def value(self, node: Node, z: Tensor) -> Tensor:
        return torch.log(z)

    @override
    def derivative(self, node: Node, z: Tensor) -> Tensor:
        return 1 / z

    @override
    def bends(self, node: Node) -> tuple[bool, tuple[float, ...]]:
        return False, ()

    @override
    def defined(self, node: Node, box: Box) -> Tensor:
        return box.lower > 0


class Erf(Curve):
    """The error function: convex below 0, concave above."""

    @override
    def range(self, node: Node) -> tuple[float, float]:
        return -1.0, 1.0

    @override
    def value(self, node: Node, z: Tensor) -> Tensor:
        return torch.erf(z)

    @override
    def derivative(self, node: Node, z: Tensor) -> Tensor:
        return torch.exp(-z.square()) * (2 / math.sqrt(math.pi))

    @override
    def bends(self, node: Node) -> tuple[bool, tuple[float, ...]]:
        return True, (0.0,)


class Power(Curve):
    """``z`` to a fixed exponent; of negative numbers only if that is whole, of 0 only if it is not negative."""

    @override
    def check(self, node: Node) -> None:
        if "exponent" in node.attributes:
            check_finite(node, "exponent")

    @override
    def range(self, node: Node) -> tuple[float, float]:
        """No power but those of whole odd exponents is negative; what knows better says so in the node."""
        p = self.exponent(node)
        least, most = node.attributes.get("range", (-math.inf, math.inf))
        return (least if p == int(p) and p % 2 == 1 else max(least, 0.0)), most

    def exponent(self, node: Node) -> float:
        """The exponent."""
        return float(node.attributes["exponent"])

    @override
    def value(self, node: Node, z: Tensor) -> Tensor:
        return torch.pow(z, self.exponent(node))

    @override
    def derivative(self, node: Node, z: Tensor) -> Tensor:
        p = self.exponent(node)
        return p * torch.pow(z, p - 1) if p else torch.zeros_like(z)

    @override
    def bends(self, node: Node) -> tuple[bool, tuple[float, ...]]:
        p = self.exponent(node)
        odd = p == int(p) and int(p) % 2 == 1 and p != 1
        return (False, (0.0,)) if odd else (p <= 0 or p >= 1, ())

    @override
    def turns(self, node: Node) -> tuple[float, ...]:
        p = self.exponent(node)
        return (0.0,) if p > 0 and p % 2 == 0 else ()

    @override
    def defined(self, node: Node, box: Box) -> Tensor | None:
        p = self.exponent(node)
        if p == int(p):
            return None if p >= 0 else (box.lower > 0) | (box.upper < 0)
        return box.lower >= 0 if p > 0 else box.lower > 0

    @override
    def inset(self, node: Node) -> float:
        return 1 / 64 if 0 < self.exponent(node) < 1 else 0.0

    @override
    def contact(self, side: Side) -> Contact:
        """The two branches of odd negative powers never meet in one interval."""
        p = self.exponent(side.node)
        if p >= 0 or p % 2 == 0:
            return super().contact(side)
        return Contact(side.low, side.high, (side.low > 0) != (side.sign > 0))

    @override
    def intercept(self, side: Side, slope: Tensor, point: Tensor) -> Tensor:
        p = self.exponent(side.node)
        if p >= 0 or p % 2 == 0:
            return super().intercept(side, slope, point)
        convex = (side.low > 0) == (side.sign > 0)
        return torch.where(convex, side.value(point) - slope * point, side.at_ends(slope))


class Sqrt(Power):
    """The square root."""

    @override
    def exponent(self, node: Node) -> float:
        return 0.5

    @override
    def value(self, node: Node, z: Tensor) -> Tensor:
        return torch.sqrt(z)

    @override
    def derivative(self, node: Node, z: Tensor) -> Tensor:
        return 0.5 / torch.sqrt(z)


class Reciprocal(Power):
    """``1 / z`` on intervals without 0; where the node says so, ``blurred`` by so much either way."""

    @override
    def exponent(self, node: Node) -> float:
        return -1.0

    @override
    def interval(self, node: Node, inputs: Sequence[Box]) -> Box:
        (lower, upper), blur = super().interval(node, inputs), node.attributes.get("blurred", 0.0)
        return Box(lower - blur, upper + blur) if blur else Box(lower, upper)

    @override
    def prepare(self, node: Node, inputs: Sequence[Box], alpha: Tensor | None = None) -> Lines:
        lines, blur = super().prepare(node, inputs, alpha), node.attributes.get("blurred", 0.0)
        if not blur or lines.lower_intercept is None:
            return lines
        lower, upper = lines.lower_intercept - blur, lines.upper_intercept + blur
        return lines._replace(lower_intercept=lower, upper_intercept=upper)

    @override
    def value(self, node: Node, z: Tensor) -> Tensor:
        return 1 / z

    @override
    def derivative(self, node: Node, z: Tensor) -> Tensor:
        return -1 / z.square()


class Wave(Curve):
    """``sin(z + phase)`` for the phases 0 (sine) and pi / 2 (cosine).

    On intervals that reach over more than a turn both lines are level. The points where f' is the slope are known:
    of those where f minus the line is least, the first and the last one on the interval count, since they lie on a line.
    Far from 0, where floats no longer tell the turns apart, lines are level too.
    """

    @override
    def range(self, node: Node) -> tuple[float, float]:
        return -1.0, 1.0

    def __init__(self, cosine: bool = False) -> None:
        self.cosine = cosine
        self.phase = math.pi / 2 if cosine else 0.0

    @override
    def value(self, node: Node, z: Tensor) -> Tensor:
        return torch.cos(z) if self.cosine else torch.sin(z)

    @override
    def derivative(self, node: Node, z: Tensor) -> Tensor:
        return -torch.sin(z) if self.cosine else torch.cos(z)

    @override
    def bends(self, node: Node) -> tuple[bool, tuple[float, ...]]:
        """Not used but to say that there are some."""
        return True, (0.0,)

    @override
    def steepest(self, node: Node, low: Tensor, high: Tensor) -> Tensor:
        return torch.ones_like(low)

    @override
    def _extremes(self, node: Node, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        one, other = self.value(node, low), self.value(node, high)
        peak, valley = (self._passes(low, high, self.phase - turn) for turn in (math.pi / 2, -math.pi / 2))
        upper = torch.where(peak, 1.0, torch.maximum(one, other))
        return torch.where(valley, -1.0, torch.minimum(one, other)), upper

    def _passes(self, low: Tensor, high: Tensor, shift: float) -> Tensor:
        """Whether there is a whole turn between ``low + shift`` and ``high + shift``; what is in doubt counts as yes."""
        first, last = (low + shift) / (2 * math.pi), (high + shift) / (2 * math.pi)
        doubt = 1e-15 * (1 + torch.maximum(first.abs(), last.abs()))
        return ~(torch.floor(last + doubt) < torch.ceil(first - doubt))

    @override
    def contact(self, side: Side) -> Contact:
        shift = self.phase if side.sign > 0 else self.phase + math.pi  # the side is sin(z + shift)
        k = torch.floor((side.low + shift) / math.pi) + 1
        first = torch.minimum(torch.maximum(k * math.pi - shift, side.low), side.high)
        second = torch.minimum(torch.maximum((k + 1) * math.pi - shift, side.low), side.high)
        outside, between = side.contact_outside(first, second), side.contact_between(first, second)
        return Contact(*(torch.where(k % 2 == 0, a, b) for a, b in zip(outside, between, strict=True)))

    @override
    def line(self, side: Side, position: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        slope, intercept, usual = super().line(side, position)
        level = ~((side.high - side.low < 2 * math.pi) & (torch.maximum(side.high, -side.low) < _FAR))
        return slope.masked_fill(level, 0), intercept.masked_fill(level, -1), usual

    @override
    def intercept(self, side: Side, slope: Tensor, point: Tensor) -> Tensor:
        low, high, turn = side.low, side.high, 2 * math.pi
        shift = self.phase if side.sign > 0 else self.phase + math.pi
        rest = torch.acos(slope.detach().clamp(-1, 1)) + shift  # least at -acos(slope) - shift, and each turn on
        least = side.at_ends(slope)
        for k in (torch.ceil((low + rest) / turn), torch.floor((high + rest) / turn)):
            z = torch.clamp(k * turn - rest, low, high)
            least = torch.minimum(least, side.value(z) - slope * z)
        return least
