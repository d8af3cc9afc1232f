"""Exact Euclidean projection on an lp ball intersected with the box, the mask and the grid.

Every projection is inside in floating point, by the test of `holdfast.numerics.distance.contains` and without
tolerance. Three things make it so: the perturbation is solved for in float64 with the radius less the worst rounding
error of a float64 sum; the sum x + delta is rounded toward x; and clamping to the box only moves further toward x.
A point whose clamp to the box is already in the ball is returned as that clamp, bit for bit, so projecting is the
identity inside and idempotent. Clean inputs are taken to lie in the box (the pre-flight checks it).
"""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.core.arrays import rising
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.numerics.capped import room, settled, solve_capped
from holdfast.numerics.distance import (
    between,
    box,
    contains,
    difference,
    grid_index,
    grid_steps,
    grid_value,
    per_sample,
)

__all__ = ["linf_bounds", "project", "project_on_simplex", "round_toward", "snap_to_grid"]

_THRESHOLD_STEPS = 64


def project(set: LpBall, x_adv: Tensor, x: Tensor) -> Tensor:
    """The nearest point of the set to each x_adv.

    linf: clamp. l2: ``clip(s * delta)`` to the box, s from the KKT conditions. l1: ``clip(|delta_i| - t, 0, room_i)``
    (Croce & Hein 2021, "Mind the box"). l0: the eps features whose restoration costs most keep their clamped value.
    With a grid the result is then rounded on the grid toward x, which is inside but need not be the nearest grid point;
    a search that takes small steps should use the set without its grid.

    Args:
        set: of n samples; eps may be infinite (the box alone).
        x_adv: (n, \\*features), finite, the dtype of x.
        x: (n, \\*features), the clean inputs.

    Returns:
        (n, \\*features), the dtype of x.

    Example:
        >>> ball = LpBall.uniform(Norm.L2, 1.0, 1)
        >>> project(ball, torch.tensor([[3.0, 0.9]]), torch.tensor([[0.5, 0.5]])).tolist()  # the box caps the first
        [[1.0, 0.8999999761581421]]
    """
    if set.norm is Norm.LINF:
        moved = x_adv.clamp(*linf_bounds(set, x))
    else:
        low, high = box(set, x)
        boxed = x_adv.clamp(low, high)
        if set.norm is Norm.L0:
            moved = _keep_gains(set, boxed, x_adv, x)
        else:
            free = between(set.norm, boxed, x) <= set.eps
            if settled(~free):
                moved = boxed
            else:
                delta = difference(x_adv, x)
                space = room(delta, x, low, high)
                solve = _l2 if set.norm is Norm.L2 else _l1
                size = solve(delta.abs().flatten(1), space.flatten(1), set.eps * _inward(x)).view_as(delta)
                shrunk = round_toward(x, size.copysign(delta)).clamp(low, high)
                moved = torch.where(per_sample(free, x), boxed, shrunk)
    return moved if set.grid is None else snap_to_grid(set, moved, x)


def _inward(x: Tensor) -> float:
    """Below 1 by the largest relative error of two float64 sums over the features."""
    return 1.0 - (x[0].numel() + 16 if len(x) else 16) * 2.0**-52


def _l2(size: Tensor, space: Tensor, eps: Tensor) -> Tensor:
    """min(s |delta|, room) with the s in [0, 1] that gives l2 size eps; (n, d) float64."""
    s = solve_capped(size.square(), space.square(), eps.square()).sqrt().clamp_max(1.0)
    return torch.minimum(size * s.unsqueeze(1), space)


def _l1(size: Tensor, space: Tensor, eps: Tensor) -> Tensor:
    """clip(|delta| - t, 0, room) with the t >= 0 that gives l1 size eps; (n, d) float64.

    The size is piecewise linear in t but neither convex nor concave, so a Newton step is taken only inside the bracket
    and where it is less than half the step before, the midpoint otherwise. A sample is frozen once solved to rounding.
    """
    low, high = torch.zeros_like(eps), size.amax(1)
    t, done, stride = low, torch.zeros_like(eps, dtype=torch.bool), 4 * high
    # Two tensors for all steps: on a CPU fresh memory costs more than the arithmetic.
    rest, kept = torch.empty_like(size), torch.empty_like(size)
    for _ in range(_THRESHOLD_STEPS):
        torch.sub(size, t.unsqueeze(1), out=rest)
        active = ((rest > 0) & (rest < space)).sum(1)
        excess = torch.minimum(rest.clamp_min_(0), space, out=kept).sum(1) - eps
        low, high = torch.where(excess > 0, t, low), torch.where(excess > 0, high, t)
        newton, middle = t + excess / active, (low + high) / 2
        sure = (newton > low) & (newton < high) & ((newton - t).abs() < stride / 2)
        following = torch.where(sure, newton, middle)
        # Solved when the sum, or the step that is left, is within its rounding error.
        done = done | (excess.abs() <= eps * 1e-14) | ((newton - t).abs() <= t * 4e-16) | (following == t)
        stride = (following - t).abs()
        t = torch.where(done, t, following)
        if settled(~done):
            break
    torch.minimum(torch.sub(size, t.unsqueeze(1), out=rest).clamp_min_(0), space, out=kept)
    # The threshold is a float64, so the sum may pass eps by its rounding.
    return kept.mul_((eps / kept.sum(1)).clamp_max(1.0).nan_to_num(1.0).unsqueeze(1))


def _keep_gains(set: LpBall, boxed: Tensor, x_adv: Tensor, x: Tensor) -> Tensor:
    """x with the eps most valuable features of ``boxed``: those that restore most of the squared distance to x_adv."""
    gain = difference(x_adv, x).square_() - difference(x_adv, boxed).square_()
    # A change too small to square must still come before no change at all.
    gain = torch.where(boxed == x, 0.0, gain.clamp_min(torch.finfo(torch.float64).tiny)).flatten(1)
    d = gain.shape[1]
    count = set.eps.floor().clamp_max(d).long().unsqueeze(1)
    least = rising(gain).gather(1, (d - count).clamp_max(d - 1)) if d else gain
    above, equal = gain > least, gain == least
    # Of equal gains the first features are kept.
    keep = above | (equal & (equal.cumsum(1) <= count - above.sum(1, keepdim=True)))
    return torch.where((keep & (count > 0)).view_as(x), boxed, x)


def project_on_simplex(weights: Tensor) -> Tensor:
    """The nearest point of the probability simplex to each row, by one sort: exact up to rounding.

    The projection is ``(w - t)_+`` with the one t that makes it sum to 1; t is ``(sum of the k largest - 1) / k`` for
    the largest k whose k-th entry stays above it (Held, Wolfe, Crowder 1974).

    Args:
        weights: (n, k) float64, finite, k at least 1.

    Returns:
        (n, k) float64, at least 0, each row of sum 1.

    Example:
        >>> project_on_simplex(torch.tensor([[0.5, 0.25, 0.25], [2.0, 0.0, -1.0], [0.875, 0.625, -3.0]]).double()).tolist()
        [[0.5, 0.25, 0.25], [1.0, 0.0, 0.0], [0.625, 0.375, 0.0]]
    """
    shifted = weights - weights.amax(1, keepdim=True)  # the projection does not feel a shift, but the sums do
    ordered = shifted.sort(dim=1, descending=True).values
    count = torch.arange(1, weights.shape[1] + 1, dtype=weights.dtype, device=weights.device)
    level = (ordered.cumsum(1) - 1) / count
    last = (ordered > level).sum(1, keepdim=True) - 1
    kept = (shifted - level.gather(1, last)).clamp_min(0)
    return kept / kept.sum(1, keepdim=True)


def round_toward(x: Tensor, delta: Tensor) -> Tensor:
    """x + delta in the dtype of x such that no feature moved further than delta says, as measured in float64.

    Args:
        x: (n, \\*features).
        delta: (n, \\*features) float64.

    Returns:
        (n, \\*features), the dtype of x.
    """
    moved = (x + delta).to(x.dtype)
    # One step suffices: rounding to nearest passes the true sum by at most half a step.
    over = difference(moved, x).abs_() > delta.abs()
    return torch.where(over, torch.nextafter(moved, x), moved)


def linf_bounds(set: LpBall, x: Tensor) -> tuple[Tensor, Tensor]:
    """Least and largest values of the linf set, rounded inward; an attack computes them once and clamps to them.

    ``x_adv.clamp(low, high)`` is the projection, and ``within(x_adv, low, high)`` implies ``contains``.

    Args:
        set: of n samples; its eps is read as an linf radius.
        x: (n, \\*features).

    Returns:
        (low, high), each (n, \\*features) in the dtype of x.

    Example:
        >>> low, high = linf_bounds(LpBall.uniform(Norm.LINF, 0.1, 1), torch.tensor([[0.05, 0.2]]))
        >>> low.tolist(), [round(v, 4) for v in high[0].tolist()]
        ([[0.0, 0.10000000894069672]], [0.15, 0.3])
    """
    lower, upper = box(set, x)
    eps = per_sample(set.eps, x)
    largest = torch.finfo(x.dtype).max
    low = round_toward(x, -eps).clamp(-largest, largest)
    high = round_toward(x, eps).clamp(-largest, largest)
    return torch.maximum(low, lower), torch.minimum(high, upper)


def snap_to_grid(set: LpBall, x_adv: Tensor, x: Tensor) -> Tensor:
    """The grid point between x and x_adv next to x_adv, feature by feature: a point inside stays inside.

    Values on the grid and those of features without one keep their value. x must lie on the grid; a feature with no
    grid point between is x. Where a level is missed by rounding alone (float32(k / 255) plus eps ends a unit below the
    level that is eps away) it is taken, if the set reaches so far.

    Args:
        set: of n samples, with a grid.
        x_adv: (n, \\*features).
        x: (n, \\*features).

    Returns:
        (n, \\*features), the dtype of x.

    Example:
        >>> from fractions import Fraction
        >>> ball = LpBall.uniform(Norm.LINF, 0.5, 1, grid=Fraction(1, 4))
        >>> snap_to_grid(ball, torch.tensor([[0.9, 0.1, 0.75]]), torch.tensor([[0.25, 0.5, 0.5]])).tolist()
        [[0.75, 0.25, 0.75]]
    """
    index = grid_index(set, x_adv)
    # The division may round past a whole number, so both neighbours of the nearest one are asked for their values.
    nearest = index.round()
    below, at, above = (grid_value(set, nearest + k, x.dtype) for k in (-1, 0, 1))
    up = x_adv > x
    toward = torch.where(up, torch.where(at <= x_adv, at, below), torch.where(at >= x_adv, at, above))
    passed = torch.where(up, toward < x, toward > x)
    strict = torch.where(passed | (x_adv == x), x, toward)
    strict = torch.where(index.isnan(), x_adv, strict)  # features without a grid
    # within a few units of the type, counted in steps
    reach = torch.maximum(
        set.upper.abs().amax().double(), x.abs().amax().double() if x.numel() else set.eps.new_zeros(())
    )
    steps, width = grid_steps(set, x.device)
    unit = 4 * torch.finfo(x.dtype).eps * reach * steps / width
    near = ((index - nearest).abs() <= unit) & (x_adv != x)
    if x.device.type == "cpu" and not near.any():
        return strict
    # such a level is taken if the set reaches so far, and given back where it is rounding alone that reaches it
    full = torch.where(near, at, strict)
    back = torch.where(up, torch.maximum(below, x), torch.minimum(above, x))
    strict = torch.where(per_sample(contains(set, strict, x), x), strict, torch.where(near, back, strict))
    return torch.where(per_sample(contains(set, full, x), x), full, strict)
