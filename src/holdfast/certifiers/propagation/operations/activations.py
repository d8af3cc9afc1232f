"""Activations between two lines.

A line has a slope and an intercept. Any slope will do; the intercept is then the exact extreme of ``f(z) - slope z``
over the interval, taken over the interval's ends and the points where f' equals the slope. So slopes may come from a
rule, a bisection or an optimiser: no accuracy of theirs is ever relied on.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from holdfast.certifiers.propagation.operation import Operation, Pull
from holdfast.certifiers.propagation.region import Box
from holdfast.core.errors import UnsupportedError
from holdfast.graph.model import Node

__all__ = ["Abs", "Activation", "LeakyRelu", "Lines", "PiecewiseLinear", "Sigmoid", "Sign", "Tanh", "pull_lines"]


class Lines(NamedTuple):
    """``lower_slope z + lower_intercept <= f(z) <= upper_slope z + upper_intercept``; a missing intercept is 0.

    ``positions``: what was chosen, where that is not the lower slope itself.
    """

    lower_slope: Tensor
    lower_intercept: Tensor | None
    upper_slope: Tensor
    upper_intercept: Tensor
    positions: Tensor | None = None


def pull_lines(a: Tensor, lines: Lines) -> tuple[Tensor, Tensor]:
    """From ``<a, f(z)>`` to a linear function of z below it: where a coefficient is negative the upper line bounds."""
    lower_slope, lower_intercept, upper_slope, upper_intercept, _ = lines
    negative = a.clamp(max=0)
    pulled = torch.addcmul(a * lower_slope, negative, upper_slope - lower_slope)
    if upper_intercept.ndim < a.ndim:
        constant = torch.einsum("snd,nd->sn", negative.flatten(2), upper_intercept.flatten(1))
    else:  # chosen for each row
        constant = (negative * upper_intercept).flatten(2).sum(2)
    if lower_intercept is not None:
        constant = constant + ((a - negative) * lower_intercept).flatten(2).sum(2)
    return pulled, constant


def _within(slope: Tensor, least: float) -> Tensor:
    """The slope moved into [least, 1]; its gradient is kept at the ends too, where an optimiser starts."""
    return slope + (slope.clamp(least, 1) - slope).detach()


class Activation(Operation):
    """An increasing function of each entry, with slopes in [0, 1]."""

    linear = False
    elementwise = True

    @abstractmethod
    def value(self, node: Node, z: Tensor) -> Tensor:
        """f."""

    @abstractmethod
    @override
    def prepare(self, node: Node, inputs: Sequence[Box], alpha: Tensor | None = None) -> Lines:
        """Two lines around f on the boxes; ``alpha`` replaces the lower slope where there is a choice."""

    @override
    def interval(self, node: Node, inputs: Sequence[Box]) -> Box:
        return Box(self.value(node, inputs[0].lower), self.value(node, inputs[0].upper))

    @override
    def size(self, node: Node, inputs: Sequence[Box], output: Box) -> Tensor:
        """Slopes are at most 1 and an intercept at most ``|f(z)| + |z|``, twice each."""
        return 4 * (inputs[0].magnitude + output.magnitude)

    @override
    def alpha(self, prepared: Lines) -> Tensor:
        """The lower slope."""
        return prepared.lower_slope.detach()

    @override
    def pull(self, node: Node, a: Tensor, prepared: Lines) -> Pull:
        """See `pull_lines`."""
        pulled, constant = pull_lines(a, prepared)
        return [pulled], constant


class PiecewiseLinear(Activation):
    """Linear on each side of 0, with slope 1 above and a smaller one below: ``max(z, flat z)``."""

    @abstractmethod
    def flat(self, node: Node) -> float:
        """The slope below 0, in [-1, 1]."""

    @override
    def size(self, node: Node, inputs: Sequence[Box], output: Box) -> Tensor:
        return 4 * inputs[0].magnitude

    @override
    def unstable(self, node: Node, box: Box) -> Tensor:
        """The entries that may have either sign (or are not numbers)."""
        return ~((box.lower >= 0) | (box.upper <= 0))

    @override
    def prepare(self, node: Node, inputs: Sequence[Box], alpha: Tensor | None = None) -> Lines:
        """The chord above; below, a line through the kink with a slope between those of the two sides.

        The lower intercept is 0: f is convex and the line touches it in 0, or is f itself.
        """
        (low, high), flat = inputs[0], self.flat(node)
        either, one = self.unstable(node, inputs[0]), torch.ones_like(low)  # two plain numbers would meet in float32
        width = torch.where(either, high - low, 1.0)
        chord = torch.where(either, (high - flat * low) / width, torch.where(low >= 0, one, flat))
        chord = chord.clamp(max=1)
        # the chord's two ends agree but for rounding; the larger one is sound
        intercept = torch.where(either, torch.maximum(flat * low - chord * low, high - chord * high), 0.0)
        slope = torch.where(high > -low, one, flat) if alpha is None else _within(alpha, flat)
        lower = torch.where(either, slope, chord)
        return Lines(lower, None, chord, intercept)


class LeakyRelu(PiecewiseLinear):
    """``max(z, slope z)``, the ReLU with slope 0 among them (Zhang et al. 2018, CROWN, arXiv 1811.00866)."""

    @override
    def flat(self, node: Node) -> float:
        return float(node.attributes.get("slope", 0.0))

    @override
    def check(self, node: Node) -> None:
        if not 0 <= self.flat(node) <= 1:  # others are written out before, but where they must round as they run
            raise UnsupportedError(
                f"'{node.op}' with slope {self.flat(node):g} has no bounds here; slopes in [0, 1] have, and in real numbers "
                "(without deployed arithmetic) all finite ones"
            )

    @override
    def range(self, node: Node) -> tuple[float, float]:
        return (-math.inf if self.flat(node) else 0.0), math.inf

    @override
    def value(self, node: Node, z: Tensor) -> Tensor:
        return F.leaky_relu(z, self.flat(node))


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


class _SShaped(Activation):
    """A function that is convex up to 0, concave beyond and odd but for a constant."""

    @abstractmethod
    def derivative(self, z: Tensor) -> Tensor:
        """f'."""

    @abstractmethod
    def stationary(self, slope: Tensor) -> Tensor:
        """The z >= 0 with f'(z) = slope; f' is even."""

    @override
    def unstable(self, node: Node, box: Box) -> Tensor:
        """All that are not points."""
        return ~(box.lower >= box.upper)

    def _upper_slope(self, node: Node, low: Tensor, high: Tensor) -> Tensor:
        """Slope of the concave envelope at the middle: of all lines above f the one that encloses the least area.

        The envelope is f itself where f is concave, the chord where it is convex, and otherwise a line from the lower
        end to the point ``far`` that it touches, and f from there on.
        """
        chord = (self.value(node, high) - self.value(node, low)) / (high - low).clamp(min=1e-12)
        centre = (low + high) / 2
        with torch.no_grad():
            near, far = torch.zeros_like(high), high.clamp(min=0)
            at_low = self.value(node, low)
            for _ in range(30):
                middle = (near + far) / 2
                steep = self.value(node, middle) - at_low < self.derivative(middle) * (middle - low)
                near, far = torch.where(steep, middle, near), torch.where(steep, far, middle)
            chordal = (self.value(node, high) - at_low <= self.derivative(high) * (high - low)) | (high <= 0)
        touching = (low >= 0) | (centre >= far)
        # the line to ``far`` as a chord: where it touches, its slope does not change with ``far``, so gradients are right
        reach = torch.where(touching, 1.0, far - low)
        bridge = (self.value(node, torch.where(touching, high, far)) - self.value(node, low)) / reach
        slope = torch.where(chordal, chord, torch.where(touching, self.derivative(centre), bridge))
        return slope.clamp(0, 1)

    @override
    def prepare(self, node: Node, inputs: Sequence[Box], alpha: Tensor | None = None) -> Lines:
        low, high = inputs[0]
        upper = self._upper_slope(node, low, high)
        lower = self._upper_slope(node, -high, -low) if alpha is None else _within(alpha, 0.0)
        return Lines(lower, self._gap(node, low, high, lower).amin(0), upper, self._gap(node, low, high, upper).amax(0))

    def _gap(self, node: Node, low: Tensor, high: Tensor, slope: Tensor) -> Tensor:
        """``f(z) - slope z`` where it can be extreme on [low, high]: (4, \\*shape of slope)."""
        z = self.stationary(slope.detach()).detach()
        points = torch.stack([z.clamp(low, high), (-z).clamp(low, high), low.expand_as(z), high.expand_as(z)])
        return self.value(node, points) - slope * points


class Sigmoid(_SShaped):
    """``1 / (1 + exp(-z))``."""

    @override
    def range(self, node: Node) -> tuple[float, float]:
        return 0.0, 1.0

    @override
    def value(self, node: Node, z: Tensor) -> Tensor:
        return torch.sigmoid(z)

    @override
    def derivative(self, z: Tensor) -> Tensor:
        return torch.sigmoid(z) * torch.sigmoid(-z)

    @override
    def stationary(self, slope: Tensor) -> Tensor:
        """2 artanh(sqrt(1 - 4 s)), written so that it stays accurate for small slopes."""
        s = (4 * slope).clamp(1e-300, 1)
        return 2 * torch.log1p(torch.sqrt(1 - s)) - torch.log(s)


class Tanh(_SShaped):
    """The hyperbolic tangent."""

    @override
    def range(self, node: Node) -> tuple[float, float]:
        return -1.0, 1.0

    @override
    def value(self, node: Node, z: Tensor) -> Tensor:
        return torch.tanh(z)

    @override
    def derivative(self, z: Tensor) -> Tensor:
        return 1 / torch.cosh(z).square()

    @override
    def stationary(self, slope: Tensor) -> Tensor:
        """artanh(sqrt(1 - s)), likewise."""
        s = slope.clamp(1e-300, 1)
        return torch.log1p(torch.sqrt(1 - s)) - torch.log(s) / 2
