"""The functions of one variable: what each computes, its slope, where it bends and turns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.certifiers.propagation.operation import Operation, Pull
from holdfast.certifiers.propagation.operations.activations import Lines, PiecewiseLinear, pull_lines
from holdfast.certifiers.propagation.operations.smooth import Contact, Curve, Side
from holdfast.certifiers.propagation.region import Box
from holdfast.core.errors import UnsupportedError
from holdfast.graph.model import Node

__all__ = ["Abs", "Elu", "Erf", "Exp", "Gelu", "Log", "Power", "Reciprocal", "Sign", "Silu", "Softplus", "Sqrt", "Wave"]

_ROOT = math.sqrt(2 / math.pi)
_CUBIC = 0.044715  # of the tanh approximation of gelu
_STORED = 2.0**-22  # of a threshold, which PyTorch's kernels hold in float32 or better
_FAR = 1e8  # of a sine: beyond it points of contact are not worth finding


def _solve(f: Callable[[float], float], low: float, high: float) -> float:
    """Where an increasing function is 0."""
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if f(middle) > 0 else (middle, high)
    return high


def _finite(node: Node, name: str) -> None:
    value = float(node.attributes[name])
    if not math.isfinite(value):
        raise UnsupportedError(f"'{node.op}' with {name} {value} has no bounds; all finite ones have")


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


class Softplus(Curve):
    """``log(1 + exp(z))``: convex. With a threshold it is z beyond, to which it falls there by ``log(1 + exp(-z))``.

    Lines below it are those of the convex function less the most by which it may have fallen. The type that runs rounds
    the threshold, so close to it either is possible.
    """

    @override
    def range(self, node: Node) -> tuple[float, float]:
        return min(0.0, self._switch(node)[0]), math.inf

    @override
    def check(self, node: Node) -> None:
        if not node.attributes.get("threshold", math.inf) > -math.inf:
            raise UnsupportedError(
                f"'softplus' with threshold {node.attributes['threshold']} has no bounds; all others have"
            )

    def _switch(self, node: Node) -> tuple[float, float]:
        """Up to where it is surely the logarithm, and from where it is surely z."""
        at = float(node.attributes.get("threshold", math.inf))
        around = abs(at) * _STORED if math.isfinite(at) else 0.0
        return at - around, at + around

    @override
    def value(self, node: Node, z: Tensor) -> Tensor:
        return z.clamp(min=0) + torch.log1p(torch.exp(-z.abs()))

    @override
    def derivative(self, node: Node, z: Tensor) -> Tensor:
        return torch.sigmoid(z)

    @override
    def bends(self, node: Node) -> tuple[bool, tuple[float, ...]]:
        return True, ()

    @override
    def interval(self, node: Node, inputs: Sequence[Box]) -> Box:
        box, (low, high) = super().interval(node, inputs), inputs[0]
        first, last = self._switch(node)
        lower = torch.where(high > first, torch.minimum(box.lower, low.clamp(min=first)), box.lower)
        upper = torch.maximum(high, self.value(node, high.clamp(max=last)))
        return Box(torch.where(low > last, low, lower), torch.where(low > last, high, upper))

    @override
    def prepare(self, node: Node, inputs: Sequence[Box], alpha: Tensor | None = None) -> Lines:
        lines, (low, high) = super().prepare(node, inputs, alpha), inputs[0]
        first, last = self._switch(node)
        if first == math.inf:
            return lines
        assert lines.lower_intercept is not None
        fallen = torch.where(high > first, self.value(node, -low.clamp(min=first)), 0.0)

        def beyond(otherwise: Tensor, value: float) -> Tensor:
            return torch.where(low > last, torch.full_like(otherwise, value), otherwise)

        return lines._replace(
            lower_slope=beyond(lines.lower_slope, 1.0), lower_intercept=beyond(lines.lower_intercept - fallen, 0.0),
            upper_slope=beyond(lines.upper_slope, 1.0), upper_intercept=beyond(lines.upper_intercept, 0.0),
        )  # fmt: skip


class Elu(Curve):
    """``z``, or ``alpha (exp(z) - 1)`` below 0.

    Convex and increasing for alpha in [0, 1]. Beyond 1 it is convex on either side of a kink at 0 that is concave. With a
    negative alpha it falls to 0 and rises from there: concave below 0, and convex at the kink and beyond.
    """

    @override
    def check(self, node: Node) -> None:
        _finite(node, "alpha")

    @override
    def value(self, node: Node, z: Tensor) -> Tensor:
        return torch.where(z > 0, z, node.attributes["alpha"] * torch.expm1(z.clamp(max=0)))

    @override
    def derivative(self, node: Node, z: Tensor) -> Tensor:
        return torch.where(z > 0, 1.0, node.attributes["alpha"] * torch.exp(z.clamp(max=0)))

    @override
    def bends(self, node: Node) -> tuple[bool, tuple[float, ...]]:
        alpha = node.attributes["alpha"]
        return alpha >= 0, (() if 0 <= alpha <= 1 else (0.0,))

    @override
    def turns(self, node: Node) -> tuple[float, ...]:
        return (0.0,) if node.attributes["alpha"] < 0 else ()


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


class Silu(Curve):
    """``z sigmoid(z)``. f'' is ``s (1 - s) (2 - z tanh(z / 2))``: one sign change on each side of 0."""

    bend = _solve(lambda z: z * math.tanh(z / 2) - 2, 0.0, 4.0)
    turn = _solve(lambda z: 1 + math.exp(-z) + z * math.exp(-z), -2.0, 0.0)

    @override
    def value(self, node: Node, z: Tensor) -> Tensor:
        return z * torch.sigmoid(z)

    @override
    def derivative(self, node: Node, z: Tensor) -> Tensor:
        s = torch.sigmoid(z)
        return s + z * s * torch.sigmoid(-z)

    @override
    def bends(self, node: Node) -> tuple[bool, tuple[float, ...]]:
        return False, (-self.bend, self.bend)

    @override
    def turns(self, node: Node) -> tuple[float, ...]:
        return (self.turn,)


def _gelu_slope(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2)) + z * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def _gelu_tanh_slope(z: float) -> float:
    t = math.tanh(_ROOT * (z + _CUBIC * z**3))
    return 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * _ROOT * (1 + 3 * _CUBIC * z * z)


def _gelu_tanh_bend() -> float:
    """With w = 2 sqrt(2/pi) (z + c z^3), f'' has the sign of ``2 w' + z w'' - z w'^2 tanh(w / 2)``.

    For z > 0 it is 0 where ``z tanh(w / 2) = (1 + 2 v) / (k (1 + v)^2)`` with v = 3 c z^2 and k = sqrt(2/pi): the left
    side increases and the right side decreases, so there is one such z.
    """

    def gap(z: float) -> float:
        v = 3 * _CUBIC * z * z
        return z * math.tanh(_ROOT * (z + _CUBIC * z**3)) - (1 + 2 * v) / (_ROOT * (1 + v) ** 2)

    return _solve(gap, 0.0, 4.0)


class Gelu(Curve):
    """``z Phi(z)``, which bends at -sqrt 2 and sqrt 2, or its approximation by tanh."""

    @override
    def check(self, node: Node) -> None:
        kind = node.attributes.get("approximate", "none")
        if kind not in ("none", "tanh"):
            raise UnsupportedError(f"'gelu' with approximate={kind!r} has no bounds; 'none' and 'tanh' have")

    exact = math.sqrt(2), _solve(_gelu_slope, -1.4, 0.0)
    approximate = _gelu_tanh_bend(), _solve(_gelu_tanh_slope, -1.4, 0.0)

    def _exact(self, node: Node) -> bool:
        return node.attributes.get("approximate", "none") == "none"

    @override
    def value(self, node: Node, z: Tensor) -> Tensor:
        if self._exact(node):
            return 0.5 * z * torch.erfc(z * -math.sqrt(0.5))
        return z * torch.sigmoid(2 * _ROOT * (z + _CUBIC * z**3))

    @override
    def derivative(self, node: Node, z: Tensor) -> Tensor:
        if self._exact(node):
            return 0.5 * torch.erfc(z * -math.sqrt(0.5)) + z * torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
        w = 2 * _ROOT * (z + _CUBIC * z**3)
        s = torch.sigmoid(w)
        return s + z * s * torch.sigmoid(-w) * (2 * _ROOT) * (1 + 3 * _CUBIC * z.square())

    @override
    def bends(self, node: Node) -> tuple[bool, tuple[float, ...]]:
        bend = (self.exact if self._exact(node) else self.approximate)[0]
        return False, (-bend, bend)

    @override
    def turns(self, node: Node) -> tuple[float, ...]:
        return ((self.exact if self._exact(node) else self.approximate)[1],)


class Power(Curve):
    """``z`` to a fixed exponent; of negative numbers only if that is whole, of 0 only if it is not negative."""

    @override
    def check(self, node: Node) -> None:
        if "exponent" in node.attributes:
            _finite(node, "exponent")

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


class Abs(PiecewiseLinear):
    """``|z|``, whose lower slope is chosen in [-1, 1] by a number in [0, 1]."""

    @override
    def range(self, node: Node) -> tuple[float, float]:
        return 0.0, math.inf

    @override
    def value(self, node: Node, z: Tensor) -> Tensor:
        return z.abs()

    @override
    def flat(self, node: Node) -> float:
        return -1.0

    @override
    def interval(self, node: Node, inputs: Sequence[Box]) -> Box:
        low, high = inputs[0]
        return Box(torch.maximum(low, -high).clamp(min=0), torch.maximum(-low, high))

    @override
    def alpha(self, prepared: Lines) -> Tensor:
        """Where between -1 and 1 the lower slope lies."""
        return (prepared.lower_slope.detach() + 1) / 2

    @override
    def prepare(self, node: Node, inputs: Sequence[Box], alpha: Tensor | None = None) -> Lines:
        return super().prepare(node, inputs, None if alpha is None else 2 * alpha - 1)


class Sign(Operation):
    """-1, 0 or 1: level lines, or lines that turn about the jump up to the other end."""

    linear = False
    elementwise = True

    @override
    def interval(self, node: Node, inputs: Sequence[Box]) -> Box:
        return Box(torch.sign(inputs[0].lower), torch.sign(inputs[0].upper))

    @override
    def size(self, node: Node, inputs: Sequence[Box], output: Box) -> Tensor:
        """Slope times z is at most 2."""
        return torch.full_like(output.lower, 8.0)

    @override
    def unstable(self, node: Node, box: Box) -> Tensor:
        """Those that may have either sign."""
        return ~((box.lower > 0) | (box.upper < 0))

    @override
    def alpha(self, prepared: Lines) -> Tensor | None:
        """How far each line turns, (n, 2, \\*shape)."""
        return prepared.positions

    @override
    def prepare(self, node: Node, inputs: Sequence[Box], alpha: Tensor | None = None) -> Lines:
        """Below ``sign(low) + k z`` with k z at most the jump at the upper end, above likewise."""
        low, high = inputs[0]
        least, most = torch.sign(low), torch.sign(high)
        jump, reach = most - least, torch.maximum(-low, high)  # no steeper than over the longer half: |k z| <= 2
        steepest = jump / torch.where(reach > 0, reach, 1.0)
        turns = torch.stack([high > -low, high < -low], 1).to(low)
        positions = turns if alpha is None else alpha + (alpha.clamp(0, 1) - alpha).detach()
        below, above = positions.unbind(positions.ndim - low.ndim)
        return Lines(
            torch.where((low <= 0) & (high > 0), below * steepest, 0.0),
            least.expand_as(below),
            torch.where((high >= 0) & (low < 0), above * steepest, 0.0),
            most.expand_as(above),
            turns,
        )

    @override
    def pull(self, node: Node, a: Tensor, prepared: Lines) -> Pull:
        pulled, constant = pull_lines(a, prepared)
        return [pulled], constant
