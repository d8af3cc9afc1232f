"""Directions of steepest ascent under an lp norm."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.core.arrays import rising
from holdfast.core.errors import UnsupportedError
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.numerics.distance import box, per_sample, vector_norm

__all__ = ["pinned_by_box", "steepest"]


def steepest(norm: Norm, grad: Tensor, *, share: float | Tensor = 0.0, pinned: Tensor | None = None) -> Tensor:
    """The direction of unit lp size that maximises ``<grad, d>``; 0 where the gradient is 0.

    linf: the sign. l2: the gradient over its size, scaled by its largest entry first, so that a gradient whose square
    underflows still has a direction. l1: the signs of the largest entries over their number (SLIDE, Tramer & Boneh
    2019; the sparse steps of Croce & Hein 2021); the exact maximiser is one feature. Not a number counts as 0.

    Args:
        norm: l1, l2 or linf.
        grad: (n, \\*features).
        share: l1 only: the share of features that move, at least one does; a number or (n,).
        pinned: bool (n, \\*features), True where a feature must not move (see `pinned_by_box`).

    Returns:
        (n, \\*features), the dtype of grad.

    Raises:
        UnsupportedError: l0 has no steepest direction; step in another norm and project on the l0 ball.

    Example:
        >>> steepest(Norm.L2, torch.tensor([[3e-30, -4e-30]])).tolist()
        [[0.6000000238418579, -0.800000011920929]]
        >>> steepest(Norm.L1, torch.tensor([[3.0, -4.0, 1.0]])).tolist()
        [[0.0, -1.0, 0.0]]
    """
    if norm is Norm.L0:
        raise UnsupportedError("l0 has no steepest direction; step in l1, l2 or linf and project on the l0 ball")
    clean = grad if pinned is None else grad.masked_fill(pinned, 0.0)
    if norm is Norm.LINF:
        return clean.sign()  # torch's sign of not-a-number is 0
    clean = clean.nan_to_num(0.0)
    flat = clean.flatten(1)
    largest = flat.abs().amax(1)
    tiny = torch.finfo(grad.dtype).tiny
    if norm is Norm.L2:
        scaled = flat / largest.clamp_min(tiny).unsqueeze(1)
        size = vector_norm(scaled, 2, dim=1).clamp_min(tiny)
        return (scaled / size.unsqueeze(1)).view_as(clean)
    signs = torch.where(flat.abs() >= _threshold(flat.abs(), largest, share).unsqueeze(1), flat.sign(), 0.0)
    return (signs / per_sample(signs.abs().sum(1).clamp_min(1), signs)).view_as(clean)


def _threshold(size: Tensor, largest: Tensor, share: float | Tensor) -> Tensor:
    """(n,) the size of the smallest entry that moves; equal entries move together."""
    d = size.shape[1]
    if isinstance(share, Tensor):
        count = (share.double() * d).ceil().long().clamp(1, d)
        return rising(size).gather(1, d - count.unsqueeze(1)).squeeze(1)
    count = max(1, min(d, int(-(-share * d // 1))))
    return largest if count == 1 else rising(size)[:, d - count]


def pinned_by_box(set: LpBall, x_adv: Tensor, x: Tensor, grad: Tensor) -> Tensor:
    """Features that the box or the mask keeps from following the gradient.

    Returns:
        bool (n, \\*features), for `steepest`.

    Example:
        >>> ball = LpBall.uniform(Norm.L1, 1.0, 1)
        >>> x = torch.tensor([[1.0, 1.0, 0.5]])
        >>> pinned_by_box(ball, x, x, torch.tensor([[2.0, -2.0, 1.0]])).tolist()
        [[True, False, False]]
    """
    low, high = box(set, x)
    return torch.where(grad > 0, x_adv >= high, x_adv <= low)
