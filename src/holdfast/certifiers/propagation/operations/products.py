"""Products of two values that are both bounded, between planes (McCormick 1976).

For x in [xl, xu] and y in [yl, yu] both ``xl y + yl x - xl yl`` and ``xu y + yu x - xu yu`` stay below ``x y``, and so
does any mixture of them; ``xu y + yl x - xu yl`` and ``xl y + yu x - xl yu`` stay above. Mixed half and half, both
planes have the slopes of the tangent plane in the middle; how they are mixed may be chosen for each product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.certifiers.propagation.operation import Operation, Pull
from holdfast.certifiers.propagation.operations.floors import entries_floor, samples_floor
from holdfast.certifiers.propagation.region import Box
from holdfast.graph.model import Node

__all__ = ["MatMul", "Mul", "Planes"]

_SPARE = 1 << 14  # products in a matrix product up to which each may have planes of its own


class Planes(NamedTuple):
    """Below and above ``x y``: slopes in x, slopes in y and intercepts, and how the planes were mixed by default."""

    below: tuple[Tensor, Tensor, Tensor]
    above: tuple[Tensor, Tensor, Tensor]
    mixture: Tensor


def _planes(x: Box, y: Box, mixture: Tensor | None) -> Planes:
    usual = 0.5 * torch.ones_like(x.lower * y.lower).unsqueeze(1).repeat_interleave(2, 1)
    if mixture is None:
        low, high = usual.unbind(1)
    else:
        low, high = (mixture + (mixture.clamp(0, 1) - mixture).detach()).unbind(2)
    wide, tall = x.upper - x.lower, y.upper - y.lower
    below = (
        y.lower + low * tall,
        x.lower + low * wide,
        -((1 - low) * (x.lower * y.lower) + low * (x.upper * y.upper)),
    )
    above = (
        y.lower + high * tall,
        x.upper - high * wide,
        -((1 - high) * (x.upper * y.lower) + high * (x.lower * y.upper)),
    )
    return Planes(below, above, usual)


def _products(x: Box, y: Box) -> Box:
    corners = torch.stack([x.lower * y.lower, x.lower * y.upper, x.upper * y.lower, x.upper * y.upper])
    return Box(corners.amin(0), corners.amax(0))


class Mul(Operation):
    """The product of two values of one shape, entry by entry."""

    linear = False

    @override
    def floor(self, node: Node, inputs: Sequence[Box]) -> Tensor | None:
        return entries_floor(inputs[0].lower, inputs[1].lower)

    @override
    def interval(self, node: Node, inputs: Sequence[Box]) -> Box:
        x, y = inputs
        return _products(x, y)

    @override
    def size(self, node: Node, inputs: Sequence[Box], output: Box) -> Tensor:
        """Slope times value is at most ``|x| |y|`` for each factor, and so is the intercept."""
        return 8 * inputs[0].magnitude * inputs[1].magnitude

    @override
    def unstable(self, node: Node, box: Box) -> Tensor:
        """All that are not points."""
        return ~(box.lower >= box.upper)

    @override
    def alpha(self, prepared: Planes) -> Tensor:
        """The part of the second plane in each mixture, (n, 2, \\*shape): below and above."""
        return prepared.mixture

    @override
    def prepare(self, node: Node, inputs: Sequence[Box], alpha: Tensor | None = None) -> Planes:
        x, y = inputs
        return _planes(x, y, alpha)

    @override
    def pull(self, node: Node, a: Tensor, prepared: Planes) -> Pull:
        negative = a.clamp(max=0)
        x, y, constant = (
            (a - negative) * low + negative * high for low, high in zip(prepared.below, prepared.above, strict=True)
        )
        return [x, y], constant.flatten(2).sum(2)


class _Middle(NamedTuple):
    """The planes of a matrix product mixed half and half: the two middles, and summed intercepts below and above."""

    x: Tensor
    y: Tensor
    below: Tensor
    above: Tensor
    mixture: Tensor | None


class MatMul(Operation):
    """The matrix product of two values, (\\*b, m, k) and (\\*b, k, n).

    By default its m k n products have their middle planes, and coefficients are found by matrix products. Where there
    are few of them each may have planes of its own.
    """

    linear = False

    @override
    def floor(self, node: Node, inputs: Sequence[Box]) -> Tensor | None:
        return samples_floor(node, inputs)

    def _few(self, node: Node, x: Tensor) -> bool:
        return x[0].numel() * node.shape[-1] <= _SPARE

    @override
    def interval(self, node: Node, inputs: Sequence[Box]) -> Box:
        x, y = inputs
        if self._few(node, x.lower):
            found = _products(_tall(x), _wide(y))
            return Box(found.lower.sum(-2), found.upper.sum(-2))
        # middles and radii: at most half as wide again (Rump 1999)
        centre, radius = (x.lower + x.upper) / 2, (x.upper - x.lower) / 2
        middle, reach = (y.lower + y.upper) / 2, (y.upper - y.lower) / 2
        product = centre @ middle
        spread = centre.abs() @ reach + radius @ (middle.abs() + reach)
        return Box(product - spread, product + spread)

    @override
    def size(self, node: Node, inputs: Sequence[Box], output: Box) -> Tensor:
        return 8 * (inputs[0].magnitude @ inputs[1].magnitude)

    @override
    def unstable(self, node: Node, box: Box) -> Tensor:
        """All that are not points."""
        return ~(box.lower >= box.upper)

    @override
    def alpha(self, prepared: _Middle | Planes) -> Tensor | None:
        """As for `Mul`, (n, 2, \\*b, m, k, n), where there are few products."""
        return prepared.mixture

    @override
    def prepare(self, node: Node, inputs: Sequence[Box], alpha: Tensor | None = None) -> _Middle | Planes:
        x, y = inputs
        if alpha is not None:
            return _planes(_tall(x), _wide(y), alpha)
        mixture = None
        if self._few(node, x.lower):
            shape = (len(x.lower), 2, *x.lower.shape[1:], node.shape[-1])
            mixture = x.lower.new_full(shape, 0.5)
        return _Middle(
            (x.lower + x.upper) / 2,
            (y.lower + y.upper) / 2,
            -(x.lower @ y.lower + x.upper @ y.upper) / 2,
            -(x.upper @ y.lower + x.lower @ y.upper) / 2,
            mixture,
        )

    @override
    def pull(self, node: Node, a: Tensor, prepared: _Middle | Planes) -> Pull:
        negative = a.clamp(max=0)
        if isinstance(prepared, _Middle):
            constant = (a - negative) * prepared.below + negative * prepared.above
            return [a @ prepared.y.mT, prepared.x.mT @ a], constant.flatten(2).sum(2)
        above, positive = negative.unsqueeze(-2), (a - negative).unsqueeze(-2)
        x, y, constant = (
            positive * low + above * high for low, high in zip(prepared.below, prepared.above, strict=True)
        )
        return [x.sum(-1), y.sum(-3)], constant.flatten(2).sum(2)


def _tall(x: Box) -> Box:
    """(\\*b, m, k) as (\\*b, m, k, 1)."""
    return Box(x.lower.unsqueeze(-1), x.upper.unsqueeze(-1))


def _wide(y: Box) -> Box:
    """(\\*b, k, n) as (\\*b, 1, k, n)."""
    return Box(y.lower.unsqueeze(-3), y.upper.unsqueeze(-3))
