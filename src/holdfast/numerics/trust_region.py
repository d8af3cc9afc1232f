"""The nearest point to x on a hyperplane, in the box and in an l2 ball around another point: l0, l1, l2 and linf.

One multiplier, nu, holds the point on the hyperplane: <normal, z(nu)> rises with nu, and but for l0 is piecewise linear,
so Newton's method in a bracket finds it. The other one trades nearness to x against nearness to the centre of the ball;
the distance from the centre grows with it, so it is bisected.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.core.threat import Norm
from holdfast.numerics.capped import settled
from holdfast.numerics.distance import distance, vector_norm

__all__ = ["nearest_in_trust_region"]

_NEWTON = 48
_TOLERANCE = 1e-12
_JUMP = 1e-4  # l0: a bracket so narrow, in the size of the problem, holds the jump
_END = 1e9  # a nu that moves every feature to its edge, in the size of the problem
_FAR = 1e4  # a weight at which the ball no longer tells, in the size of the problem
_NEAR = 1e-2  # a weight at which it is all that does, in its radius over the root of the features


class _Trials(NamedTuple):
    """The points that the multiplier nu of the hyperplane makes.

    Attributes:
        at: (n,) nu -> (n, d) the points z and (n, d) which features move with nu, 1 or 0.
        w: (n, d) the normal.
        square: (n, d) its square.
        least: (n,) ``<w, z>`` where nu is so small that every feature is at its edge.
        most: (n,) and where it is so large.
    """

    at: Callable[[Tensor], tuple[Tensor, Tensor]]
    w: Tensor
    square: Tensor
    least: Tensor
    most: Tensor


def nearest_in_trust_region(
    norm: Norm,
    x: Tensor,
    centre: Tensor,
    normal: Tensor,
    level: Tensor,
    radius: Tensor,
    lower: Tensor,
    upper: Tensor,
    halvings: int = 12,
) -> Tensor:
    """The z with least ``||z - x||_p``, ``<normal, z> = level``, ``||z - centre||_2 <= radius`` and z in the box.

    This is the step of Brendel & Bethge's attack (2019, equation 3). Where the ball does not meet the hyperplane in the
    box, the ball gives way; where the box does not, the corner nearest to the hyperplane is the answer. l0 is not
    convex: its answer is the best of the points that some pair of multipliers makes, on the side ``>= level``.

    Args:
        norm: what is least.
        x: (n, \\*features), in the box.
        centre: (n, \\*features), in the box.
        normal: (n, \\*features), not 0; where it is, the answer tells nothing.
        level: (n,).
        radius: (n,), at least 0.
        lower: broadcastable to x; equal to x where a mask forbids a change.
        upper: likewise.
        halvings: of the second multiplier.

    Returns:
        (n, \\*features) float64.

    Example:
        >>> x, centre, normal = torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]])
        >>> edges = torch.tensor(-2.0), torch.tensor(2.0)
        >>> z = nearest_in_trust_region(Norm.L2, x, centre, normal, torch.ones(1), torch.ones(1), *edges)
        >>> [round(v, 6) for v in z[0].tolist()]  # (0.5, 0.5) is within 1 of the centre
        [0.5, 0.5]
        >>> z = nearest_in_trust_region(Norm.L2, x, centre, normal, torch.ones(1), torch.full((1,), 0.5), *edges)
        >>> [round(v, 3) for v in z[0].tolist()]
        [0.646, 0.354]
    """
    clean, mid, w = (t.double().flatten(1) for t in (x, centre, normal))
    low, high = (t.double().expand_as(x).flatten(1) for t in (lower, upper))
    size = vector_norm(w, 2, dim=1).clamp_min(torch.finfo(torch.float64).tiny)
    w, level, radius = w / size.unsqueeze(1), level.double() / size, radius.double()
    reach = distance(Norm.LINF, mid - clean)
    scale = reach + radius
    trials = _trials(norm, clean, mid, w, low, high, radius, scale)
    jump = _JUMP if norm is Norm.L0 else 0.0
    slack = radius * (1 + 1e-9)

    def holds(share: Tensor, nu: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z, nu, met = _meet(trials(share), level, nu, scale, jump)
        return z, nu, met & (vector_norm(z - mid, 2, dim=1) <= slack)

    whole = torch.ones_like(radius)
    nothing = torch.zeros_like(radius)
    best, nu, _ = holds(nothing, nothing)
    z, _, done = holds(whole, nu)
    best = torch.where(done.unsqueeze(1), z, best)
    near, far = torch.where(done, 1.0, nothing), whole
    for _ in range(halvings):
        middle = (near + far) / 2
        z, tried, yes = holds(middle, nu)
        near, far = torch.where(yes, middle, near), torch.where(yes, far, middle)
        best, nu = torch.where(yes.unsqueeze(1), z, best), torch.where(yes, tried, nu)
        if settled(~done):
            break
    return best.view_as(x)


def _trials(
    norm: Norm, x: Tensor, mid: Tensor, w: Tensor, low: Tensor, high: Tensor, radius: Tensor, scale: Tensor
) -> Callable[[Tensor], _Trials]:
    """share (n,) of nearness to x in both aims -> the points to be had with it; share 0 heeds the ball alone."""
    square, way = w.square(), mid - x
    reach = _reach(w, low, high)

    # The price of a unit of distance, from nothing that matters to all that does, even in its logarithm.
    first = radius.clamp_min(torch.finfo(torch.float32).tiny) * (_NEAR / max(w.shape[1], 1) ** 0.5)
    last = torch.maximum(_FAR * scale, 2 * first)

    def price(share: Tensor) -> Tensor:
        return (first * (last / first) ** share * (share > 0)).unsqueeze(1)

    def l2(share: Tensor) -> _Trials:
        base = torch.lerp(mid, x, share.unsqueeze(1))
        return _Trials(partial(_line, base, w, low, high), w, square, *reach)

    def linf(share: Tensor) -> _Trials:
        half = torch.where(share > 0, (1 - share) * scale, torch.inf).unsqueeze(1)
        least, most = torch.maximum(low, x - half), torch.minimum(high, x + half)
        return _Trials(partial(_line, mid, w, least, most), w, square, *_reach(w, least, most))

    def l1(share: Tensor) -> _Trials:
        t = price(share)

        def at(nu: Tensor) -> tuple[Tensor, Tensor]:
            moved = torch.addcmul(way, nu.unsqueeze(1), w)
            z, free = _clamped((x + moved).sub_(moved.clamp(-t, t)), low, high)
            return z, free.mul_(moved.abs_() > t)

        return _Trials(at, w, square, *reach)

    def l0(share: Tensor) -> _Trials:
        t = price(share).square()

        def at(nu: Tensor) -> tuple[Tensor, Tensor]:
            wanted = torch.addcmul(mid, nu.unsqueeze(1), w)
            z, free = _clamped(wanted, low, high)
            kept = ((x - wanted).square_().sub_((z - wanted).square_()) > t).double()
            # A choice by a mask without pattern costs a CPU several times what these products do.
            return torch.addcmul(x * (1 - kept), z, kept), free.mul_(kept)

        return _Trials(at, w, square, *reach)

    return {Norm.L0: l0, Norm.L1: l1, Norm.L2: l2, Norm.LINF: linf}[norm]


def _line(base: Tensor, w: Tensor, least: Tensor, most: Tensor, nu: Tensor) -> tuple[Tensor, Tensor]:
    return _clamped((nu.unsqueeze(1) * w).add_(base), least, most)


def _clamped(z: Tensor, least: Tensor, most: Tensor) -> tuple[Tensor, Tensor]:
    free, below = torch.empty_like(z), torch.empty_like(z)
    return z.clamp(least, most), torch.gt(z, least, out=free).mul_(torch.lt(z, most, out=below))


def _reach(w: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """(n,) least and largest ``<w, z>`` of the box, which may be infinite."""
    ends = [(w * edge).nan_to_num(0.0, torch.inf, -torch.inf) for edge in (low, high)]
    return torch.minimum(*ends).sum(1), torch.maximum(*ends).sum(1)


def _meet(trials: _Trials, level: Tensor, nu: Tensor, scale: Tensor, jump: float) -> tuple[Tensor, Tensor, Tensor]:
    """The point with ``<w, z(nu)> = level``, or the first past it where z jumps; its nu; whether there is one.

    Args:
        trials: the points; ``<w, z(nu)>`` rises with nu.
        level: (n,).
        nu: (n,) where to begin.
        scale: (n,) a first stride.
        jump: width of a bracket, in the scale, that need not be narrowed; 0 where z does not jump.
    """
    low, high = torch.full_like(nu, -torch.inf), torch.full_like(nu, torch.inf)
    met = torch.zeros_like(nu, dtype=torch.bool)
    tolerance = _TOLERANCE * (scale + level.abs())
    stride = scale.clamp_min(_TOLERANCE)
    last = stride * torch.inf
    end = _END * scale
    short = trials.most < level - tolerance
    out = short | (trials.least > level + tolerance)  # the box does not reach: its corner is the answer
    nu = torch.where(out, torch.where(short, end, -end), nu)
    z, free = trials.at(nu)
    rest = level - (trials.w * z).sum(1)
    for _ in range(_NEWTON):
        met = met | (rest.abs() <= tolerance)
        past = rest <= tolerance
        low, high = torch.where(past, low, nu), torch.where(past, nu, high)
        bracketed = low.isfinite() & high.isfinite()
        # Where z jumps, the bracket closes on the jump.
        done = out | met | (bracketed & (high - low <= jump * (scale + nu.abs())))
        if settled(~done):
            break
        newton = nu + rest / (trials.square * free).sum(1)
        middle = torch.where(bracketed, (low + high) / 2, nu + torch.where(past, -stride, stride))
        stride = torch.where(bracketed, stride, 4 * stride)
        quick = (newton > low) & (newton < high) & ((newton - nu).abs() < last / 2)
        following = torch.where(quick, newton, middle)
        last = (following - nu).abs()
        nu = torch.where(done, nu, following)
        z, free = trials.at(nu)
        rest = level - (trials.w * z).sum(1)
    final = torch.where(out | met | ~high.isfinite(), nu, high)
    if not settled(final != nu):
        z = trials.at(final)[0]
        rest = level - (trials.w * z).sum(1)
    return z, final, (rest if jump else rest.abs()) <= 10 * tolerance
