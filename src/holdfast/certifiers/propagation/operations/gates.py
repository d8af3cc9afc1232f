"""Smooth relatives of the ReLU: what each computes, its slope, where it bends and turns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.certifiers.propagation.operations.activations import Lines
from holdfast.certifiers.propagation.operations.smooth import Curve, check_finite
from holdfast.certifiers.propagation.region import Box
from holdfast.core.errors import UnsupportedError
from holdfast.graph.model import Node

__all__ = ["Elu", "Gelu", "Silu", "Softplus"]

_ROOT = math.sqrt(2 / math.pi)
_CUBIC = 0.044715  # of the tanh approximation of gelu
_STORED = 2.0**-22  # of a threshold, which PyTorch's kernels hold in float32 or better


def _solve(f: Callable[[float], float], low: float, high: float) -> float:
    """Where an increasing function is 0."""
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if f(middle) > 0 else (middle, high)
    return high


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
            lower_slope=beyond(lines.lower_slope, 1.0),
            lower_intercept=beyond(lines.lower_intercept - fallen, 0.0),
            upper_slope=beyond(lines.upper_slope, 1.0),
            upper_intercept=beyond(lines.upper_intercept, 0.0),
        )


class Elu(Curve):
    """``z``, or ``alpha (exp(z) - 1)`` below 0.

    Convex and increasing for alpha in [0, 1]. Beyond 1 it is convex on either side of a kink at 0 that is concave. With a
    negative alpha it falls to 0 and rises from there: concave below 0, and convex at the kink and beyond.
    """

    @override
    def check(self, node: Node) -> None:
        check_finite(node, "alpha")

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
