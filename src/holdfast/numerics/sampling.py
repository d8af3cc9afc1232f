"""Keyed uniform draws in a set."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.core.draws import SampleDraws
from holdfast.core.errors import UsageError
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.numerics.distance import box, distance, per_sample
from holdfast.numerics.project import project

__all__ = ["uniform_in_ball"]


def uniform_in_ball(set: LpBall, x: Tensor, draws: SampleDraws, stream: str, step: object = 0) -> Tensor:
    """A point drawn uniformly from each lp ball, then projected on the whole set.

    Over the features that the mask lets change: linf coordinates are uniform; l2 is a Gaussian direction with radius
    ``eps * u^(1/d)``; l1 the same with Laplace coordinates (Barthe et al. 2005); l0 sets ``eps`` random features to
    uniform values of the box. The projection moves what the box cuts off onto its edge, as starts of attacks do.

    Args:
        set: of n samples.
        x: (n, \\*features).
        draws: of these samples.
        stream: name of the stream; the radius reads from ``stream + ".radius"``, l0's choice from
            ``stream + ".which"``.
        step: an int or (n,) host integers.

    Returns:
        (n, \\*features), inside the set, the dtype of x.

    Raises:
        UsageError: a radius is infinite, or for l0 the box is: there is no uniform draw.

    Example:
        >>> from holdfast.core.draws import Draws
        >>> from holdfast.numerics.distance import contains
        >>> ball, x = LpBall.uniform(Norm.L2, 0.5, 2), torch.full((2, 6), 0.5)
        >>> contains(ball, uniform_in_ball(ball, x, Draws(0, "doc").of([0, 1]), "start"), x).tolist()
        [True, True]
    """
    # Read from the device: a start is drawn once for a restart, and an infinite radius must not pass as a constant.
    if set.norm is not Norm.L0 and bool(set.eps.isinf().any()):
        raise UsageError("a uniform start needs a finite eps; a minimal-distortion search should start at x")
    shape = tuple(x.shape[1:])
    if set.norm is Norm.L0:
        return _l0(set, x, draws, stream, step)
    if set.norm is Norm.L2:
        z = draws.normal(stream, shape, step).to(x.device).double()
    else:
        z = draws.uniform(stream, shape, step).to(x.device).double() * 2 - 1
    free = None if set.mask is None else set.mask.expand_as(x)
    if set.norm is not Norm.LINF:
        if set.norm is Norm.L1:
            # Laplace by inversion; the draws are multiples of 2^-24, and one of them would be infinite.
            z = torch.log1p(-z.abs().clamp_max(1 - 2.0**-25)).neg().copysign(z)
        if free is not None:
            z = torch.where(free, z, 0.0)
        dims = torch.full_like(set.eps, x[0].numel() if len(x) else 1) if free is None else free.flatten(1).sum(1)
        radius = draws.uniform(stream + ".radius", (), step).to(x.device).double() ** (1 / dims.clamp_min(1))
        z = z * per_sample(radius / distance(set.norm, z).clamp_min(torch.finfo(torch.float64).tiny), z)
    return project(set, (x.double() + z * per_sample(set.eps, x)).to(x.dtype), x)


def _l0(set: LpBall, x: Tensor, draws: SampleDraws, stream: str, step: object) -> Tensor:
    low, high = box(set, x)
    if not bool((low.isfinite() & high.isfinite()).all()):
        raise UsageError("a random l0 start draws values from the box, so the box must be finite")
    shape = tuple(x.shape[1:])
    value = low + draws.uniform(stream, shape, step).to(x.device, x.dtype) * (high - low)
    key = draws.uniform(stream + ".which", shape, step).to(x.device)
    if set.mask is not None:
        key = key.masked_fill(~set.mask, 2.0)  # after every free feature
    rank = key.flatten(1).argsort(dim=1, stable=True).argsort(dim=1).view_as(x)
    return project(set, torch.where(rank < per_sample(set.eps.floor(), x), value, x), x)
