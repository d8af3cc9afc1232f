"""Activations between two lines, and max pools.

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

from holdfast.certifiers.propagation.operation import Operation, Pull, samples_floor
from holdfast.certifiers.propagation.region import Box
from holdfast.core.errors import UnsupportedError
from holdfast.graph.model import Node

__all__ = ["Activation", "LeakyRelu", "Lines", "MaxPool", "PiecewiseLinear", "Sigmoid", "Tanh", "pull_lines"]


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


class _Choice(NamedTuple):
    """For each output of a max pool: an input below it, and an input, slope and intercept above it."""

    below: Tensor
    above: Tensor
    slope: Tensor
    intercept: Tensor
    shape: tuple[int, ...]


class MaxPool(Operation):
    """The largest entry of each window.

    Below: the entry with the largest lower bound. Above: with y the entry of the largest upper bound and c the largest
    upper bound among the others, ``max(y, c)``, which is a ReLU shifted to c and is bounded by its chord.
    """

    linear = False

    @override
    def floor(self, node: Node, inputs: Sequence[Box]) -> Tensor | None:
        return samples_floor(node, inputs)

    def _pool(self, node: Node, x: Tensor) -> tuple[Tensor, Tensor]:
        a = node.attributes
        pool = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[len(a["kernel"])]
        value, index = pool(x, a["kernel"], a["stride"], a["padding"], a["dilation"], a["ceil"], return_indices=True)
        return value, index.flatten(2)

    @override
    def interval(self, node: Node, inputs: Sequence[Box]) -> Box:
        return Box(self._pool(node, inputs[0].lower)[0], self._pool(node, inputs[0].upper)[0])

    @override
    def size(self, node: Node, inputs: Sequence[Box], output: Box) -> Tensor:
        """A coefficient reaches one input, of at most the windows' reach; intercepts are at most ``2 |z|``."""
        reach = max(float(t.abs().max()) for t in inputs[0])
        return torch.full_like(output.lower, 4 * reach)

    @override
    def unstable(self, node: Node, box: Box) -> Tensor:
        """All that are not points."""
        return ~(box.lower >= box.upper)

    @override
    def prepare(self, node: Node, inputs: Sequence[Box], alpha: Tensor | None = None) -> _Choice:
        (lower, upper), shape = inputs[0], tuple(inputs[0].lower.shape[1:])
        below = self._pool(node, lower)[1]
        top, above = self._pool(node, upper)
        top = top.flatten(2)
        foot = lower.flatten(2).gather(2, above)
        second = self._second(node, upper, above)
        open_ = foot < second
        slope_ = torch.where(open_, (top - second) / torch.where(open_, top - foot, 1.0), 1.0).clamp(0, 1)
        second = torch.where(open_, second, 0.0)
        intercept = torch.where(open_, torch.maximum(second - slope_ * foot, top - slope_ * top), 0.0)
        return _Choice(below, above, slope_, intercept, shape)

    def _second(self, node: Node, upper: Tensor, above: Tensor) -> Tensor:
        """The largest upper bound in each window but that of the entry ``above``: (n, channels, windows)."""
        a = node.attributes
        k = len(a["kernel"])
        sizes = upper.shape[2:]
        where = torch.arange(upper[0, 0].numel(), device=upper.device, dtype=upper.dtype).view(1, 1, *sizes)
        pads = [p for size in reversed(a["padding"]) for p in (size, size)]
        beyond = [0] * k
        if a["ceil"]:  # windows may then reach past the padding
            beyond = [
                max((out - 1) * s + d * (w - 1) + 1 - size - 2 * p, 0)
                for out, s, d, w, size, p in zip(
                    node.shape[1:], a["stride"], a["dilation"], a["kernel"], sizes, a["padding"], strict=True
                )
            ]
            pads = [p + (beyond[k - 1 - i // 2] if i % 2 else 0) for i, p in enumerate(pads)]

        def windows(x: Tensor, fill: float) -> Tensor:
            x = F.pad(x, pads, value=fill)
            for dim in range(k):
                reach = a["dilation"][dim] * (a["kernel"][dim] - 1) + 1
                x = x.unfold(dim + 2, reach, a["stride"][dim])[..., :: a["dilation"][dim]]
            slices = (slice(None), slice(None), *(slice(0, out) for out in node.shape[1:]))
            return x[slices].flatten(2 + k).flatten(2, 1 + k)

        values = windows(upper, -torch.inf)
        positions = windows(where, -1.0)
        return values.masked_fill(positions == above.unsqueeze(-1), -torch.inf).amax(-1)

    @override
    def pull(self, node: Node, a: Tensor, prepared: _Choice) -> Pull:
        below, above, slope, intercept, shape = prepared
        flat = a.flatten(3)
        negative = flat.clamp(max=0)
        back = a.new_zeros(*flat.shape[:3], torch.Size(shape[1:]).numel())
        back = back.scatter_add(3, below.expand_as(flat), flat - negative)
        back = back.scatter_add(3, above.expand_as(flat), negative * slope)
        constant = torch.einsum("snd,nd->sn", negative.flatten(2), intercept.flatten(1))
        return [back.view(*a.shape[:2], *shape)], constant
