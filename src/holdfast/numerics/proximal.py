"""Proximal operators of the lp norms in a diagonal metric, exact."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.core.arrays import falling_order
from holdfast.core.threat import Norm
from holdfast.numerics.capped import settled
from holdfast.numerics.distance import distance, per_sample

__all__ = ["shrink"]

_STEPS = 30


def shrink(norm: Norm, delta: Tensor, pace: Tensor, weight: Tensor) -> Tensor:
    """``argmin_z weight ||z||_p + sum_i (z_i - delta_i)^2 / (2 pace_i)``; in l0 with ``sum_i |z_i|^(2/3)`` for the norm.

    No feature of the answer is larger than that of delta or of another sign, so a box that holds 0 and delta holds it.
    The stand-in of l0 has a proximal operator that moves small features to 0 and large ones little (Matyasko & Chau
    2021).

    Args:
        norm: p.
        delta: (n, \\*features).
        pace: (n, \\*features), positive: the step that each feature makes on the smooth part.
        weight: (n,) float64, at least 0.

    Returns:
        (n, \\*features), the dtype of delta.

    Example:
        >>> d, w = torch.tensor([[3.0, 1.0]]), torch.ones(1).double()
        >>> [shrink(norm, d, torch.ones_like(d), w).tolist() for norm in (Norm.L1, Norm.LINF)]
        [[[2.0, 0.0]], [[2.0, 1.0]]]
    """
    w = per_sample(weight, delta)
    size = delta.double().abs()
    if norm is Norm.L1:
        kept = (size - w * pace).clamp_min(0)
    elif norm is Norm.L2:
        kept = _ball(size.flatten(1), pace.double().flatten(1), weight).view_as(size)
    elif norm is Norm.LINF:
        kept = torch.minimum(size, per_sample(_ceiling(size, pace, weight), size))
    else:
        kept = _two_thirds(size, 2 * w * pace)
    return kept.copysign(delta).to(delta.dtype)


def _ball(size: Tensor, pace: Tensor, weight: Tensor) -> Tensor:
    """(n, d): ``size_i r / (r + weight pace_i)`` with r the norm of the answer; 0 where no such r is.

    Of ``sum_i (size_i / (r + weight pace_i))^2 = 1`` the inverse root of the left side is concave and rises with r
    (the secular equation of trust regions; Conn, Gould & Toint 2000, section 7.3), so Newton's method from a point
    below its root stays below and ends in a few steps.
    """
    spread = weight.unsqueeze(1) * pace
    tiny = torch.finfo(torch.float64).tiny
    push = distance(Norm.L2, size / spread.clamp_min(tiny))
    r = (distance(Norm.L2, size) - spread.amax(1)).clamp_min(0)  # what the largest pace alone would give
    for _ in range(_STEPS):
        below = r.unsqueeze(1) + spread
        ratio = (size / below.clamp_min(tiny)).square()
        total, slope = ratio.sum(1), (ratio / below.clamp_min(tiny)).sum(1)
        new = r + (total.sqrt() - 1) * total / slope.clamp_min(tiny)
        further = (push > 1) & (new > r * (1 + 1e-13))
        r = torch.where(further, new, r)
        if settled(further):
            break
    z = size * (r.unsqueeze(1) / (r.unsqueeze(1) + spread).clamp_min(tiny))
    return torch.where((push > 1).unsqueeze(1), z, 0.0)


def _ceiling(size: Tensor, pace: Tensor, weight: Tensor) -> Tensor:
    """(n,) the tau with ``sum_i (size_i - tau)+ / pace_i = weight``; 0 where the sum is less at tau = 0."""
    flat, metric = size.flatten(1), 1 / pace.double().flatten(1)
    order = falling_order(flat)
    top, m = flat.gather(1, order), metric.gather(1, order)
    total, mass = (top * m).cumsum(1), m.cumsum(1)
    # With the k largest cut, tau solves total_k - tau mass_k = weight; the right k is the one that gives the largest tau.
    return ((total - weight.unsqueeze(1)) / mass).amax(1).clamp_min(0)


def _two_thirds(size: Tensor, cost: Tensor) -> Tensor:
    """argmin_z of ``(z - size)^2 + cost |z|^(2/3)``, in closed form (Cao, Sun & Xu 2013)."""
    cost = cost.clamp_min(1e-30)
    root = cost.sqrt().sqrt()  # cost^(1/4)
    threshold = 2 / 3 * 3**0.25 * root**3
    big = size.maximum(threshold)
    phi = 2 / 3**0.5 * root * (torch.arccosh((27 * big**2 / 16 / cost**1.5).clamp_min(1)) / 3).cosh().sqrt()
    value = ((phi + (2 * big / phi - phi**2).clamp_min(0).sqrt()) / 2) ** 3
    return torch.where(size > threshold, value.minimum(size), 0.0)
