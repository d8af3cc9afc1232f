"""Linear functions at their least over boxes and over lp balls inside boxes, and what rounding may add.

**Rounding.** Bounds are computed in float64 and hold in real numbers. A dot product of k terms errs by at most
gamma_k = k u / (1 - k u) times the sum of its terms' magnitudes, whatever the order of summation and with or without
fused multiply-adds (Higham 2002, section 3.1; u = 2^-53). `gamma` is that factor, doubled so that it also covers the
rounding of the error terms themselves. |a| . |v| is bounded by the product of Euclidean norms, one cheap pass over a.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.core.errors import UsageError
from holdfast.core.sets import AffineImage, LpBall
from holdfast.core.threat import Norm
from holdfast.numerics.distance import vector_norm

__all__ = ["Box", "Region", "box_minimum", "gamma", "norm"]

_TINY = 1e-290  # far above what underflow can hide, far below any bound that matters


class Box(NamedTuple):
    """Least and largest values, each (n, \\*shape)."""

    lower: Tensor
    upper: Tensor

    @property
    def magnitude(self) -> Tensor:
        """The largest absolute value of each entry."""
        return torch.maximum(self.lower.abs(), self.upper.abs())

    @property
    def known(self) -> Box:
        """The same with infinite ends where nothing is known: where an end is NaN or infinite on the wrong side."""
        return Box(
            torch.where(self.lower < torch.inf, self.lower, -torch.inf),
            torch.where(self.upper > -torch.inf, self.upper, torch.inf),
        )


def gamma(terms: int) -> float:
    """Twice the relative error bound of a float64 dot product of ``terms`` terms.

    Example:
        >>> 2.2e-14 < gamma(100) < 2.3e-14
        True
    """
    u = 2.0**-53
    return 2 * terms * u / (1 - terms * u)


def norm(a: Tensor, start: int) -> Tensor:
    """Euclidean norm over the dimensions from ``start`` on, without gradient: it only ever scales an error term."""
    return vector_norm(a.detach().flatten(start), dim=start) + _TINY


def box_minimum(a: Tensor, box: Box) -> tuple[Tensor, Tensor]:
    """The least of ``<a, z>`` over a box.

    Args:
        a: (rows, n, \\*shape).
        box: (n, \\*shape).

    Returns:
        The least value (rows, n), and a bound on its rounding error.
    """
    a = a.flatten(2)
    centre = ((box.lower + box.upper) / 2).flatten(1)
    radius = torch.maximum(box.upper.flatten(1) - centre, centre - box.lower.flatten(1))
    value = torch.einsum("snd,nd->sn", a, centre) - torch.einsum("snd,nd->sn", a.abs(), radius)
    return value, gamma(a.shape[2] + 8) * norm(a, 2) * norm(centre.abs() + radius, 1)


class Region:
    """The inputs that a bound is about: a ball around each sample inside its box.

    The sample itself always belongs to it. Linf in a box is a box; for l1, l2 and l0 a linear function is minimised
    over ball and box together, through the Lagrangian dual at a multiplier near the best one (any multiplier is sound).
    Over an affine image it is minimised over the parameters, or over the box where that gives more.

    Args:
        ball: the set; its grid is ignored, which only makes the region larger.
        x: samples (n, \\*features).
        dtype: arithmetic of the bounds.

    Attributes:
        box: the smallest box around the region.
        independent: every feature ranges over its interval whatever the others do.

    Raises:
        UsageError: the ball is for another number of samples.
    """

    def __init__(self, ball: LpBall, x: Tensor, dtype: torch.dtype = torch.float64) -> None:
        if len(ball.eps) != len(x):
            raise UsageError(f"the set has {len(ball.eps)} radii for {len(x)} samples")
        self.norm = ball.norm
        self.independent = ball.norm is Norm.LINF and not isinstance(ball, AffineImage)
        self._image = (
            (ball.centre.to(dtype), ball.generators.to(dtype).flatten(2), ball.slack.to(dtype).flatten(1))
            if isinstance(ball, AffineImage)
            else None
        )
        self.x = x.detach().to(dtype)
        far = torch.full((), torch.inf, dtype=dtype, device=x.device)
        # one unit up: also covers the rational number that eps was rounded from
        self.eps = torch.nextafter(ball.eps.to(dtype), far)
        reach = (far if ball.norm is Norm.L0 else self.eps).expand(len(x)).view(-1, *(1,) * (x.ndim - 1))
        lower = torch.maximum(ball.lower.to(dtype), torch.nextafter(self.x - reach, -far))
        upper = torch.minimum(ball.upper.to(dtype), torch.nextafter(self.x + reach, far))
        if ball.mask is not None:
            lower, upper = torch.where(ball.mask, lower, self.x), torch.where(ball.mask, upper, self.x)
        self.box = Box(torch.minimum(lower, self.x), torch.maximum(upper, self.x))
        self._down = torch.nextafter(self.x - self.box.lower, far).flatten(1)
        self._up = torch.nextafter(self.box.upper - self.x, far).flatten(1)
        self._widest = torch.maximum(self._down, self._up)

    def minimum(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """The least of ``<a, x'>`` over the region.

        Args:
            a: (rows, n, \\*features).

        Returns:
            A lower bound of it (rows, n), exact up to rounding for linf, l1 and l0, and a bound on its rounding error.
        """
        if self._image is not None:
            return self._image_minimum(a, *self._image)
        if self.norm is Norm.LINF:
            return box_minimum(a, self.box)
        a = a.flatten(2)
        extent = torch.where(a > 0, self._down, self._up)  # how far each feature may go downhill
        gain, price = {Norm.L0: self._gain_l0, Norm.L1: self._gain_l1, Norm.L2: self._gain_l2}[self.norm](a, extent)
        value = torch.einsum("snd,nd->sn", a, self.x.flatten(1)) - gain
        size = norm(a, 2) * norm(self.x.flatten(1).abs() + self._widest, 1) + price
        return value, gamma(2 * a.shape[2] + 16) * size

    def least_change(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The least of ``<a, x' - x>`` over the region and over all a between two ends.

        Exact, as `minimum` is, where the ends agree; otherwise each feature counts with the steeper of its slopes. An
        affine image is taken for its box.

        Args:
            low: (rows, n, \\*features).
            high: likewise, nowhere smaller.

        Returns:
            A lower bound of it (rows, n), and a bound on its rounding error.
        """
        rise, fall = -low.flatten(2).clamp(max=0), high.flatten(2).clamp(min=0)  # what a step up, a step down costs
        a = torch.maximum(rise, fall)
        size = norm(a, 2) * norm(self._widest, 1)
        if self.norm is Norm.LINF:
            gain = torch.maximum(rise * self._up, fall * self._down).sum(2)
        else:
            extent = torch.where(fall == 0, self._up, torch.where(rise == 0, self._down, self._widest))
            gain, price = {Norm.L0: self._gain_l0, Norm.L1: self._gain_l1, Norm.L2: self._gain_l2}[self.norm](a, extent)
            size = size + price
        return -gain, gamma(2 * a.shape[2] + 16) * size

    def _image_minimum(self, a: Tensor, centre: Tensor, generators: Tensor, slack: Tensor) -> tuple[Tensor, Tensor]:
        """``<a, centre> - sum |<a, generators>| - <|a|, slack>``, or the least over the box if that is larger."""
        least, error = box_minimum(a, self.box)
        a, centre = a.flatten(2), centre.flatten(1)
        moved = torch.einsum("snd,nkd->snk", a, generators).abs().sum(2)
        value = torch.einsum("snd,nd->sn", a, centre) - moved - torch.einsum("snd,nd->sn", a.abs(), slack)
        size = norm(centre.abs() + generators.abs().sum(1) + slack, 1)
        slip = gamma(a.shape[2] + generators.shape[1] + 8) * norm(a, 2) * size
        better = value - slip > least - error
        return torch.where(better, value, least), torch.where(better, slip, error)

    def _gain_l1(self, a: Tensor, extent: Tensor) -> tuple[Tensor, Tensor]:
        """max <|a|, d> for 0 <= d <= extent, sum d <= eps: ``eps t + sum (|a| - t)+ extent`` at the best t."""
        a = a.abs()
        with torch.no_grad():
            eps = torch.minimum(self.eps, self._widest.sum(1))
            order = a.argsort(2, descending=True)
            spent = extent.gather(2, order).cumsum(2)
            last = (spent < eps.unsqueeze(-1)).sum(2, keepdim=True).clamp(max=a.shape[2] - 1)
        t = a.gather(2, order.gather(2, last))  # with gradient: what is left of eps goes to this feature
        price = eps * t.squeeze(2)
        return price + ((a - t).clamp(min=0) * extent).sum(2), price

    def _gain_l0(self, a: Tensor, extent: Tensor) -> tuple[Tensor, Tensor]:
        """The sum of the k largest gains ``|a| extent``: ``k t + sum (gain - t)+`` at the k-th largest gain t."""
        gains = a.abs() * extent
        with torch.no_grad():
            k = self.eps.floor().clamp(max=a.shape[2])
            order = gains.argsort(2, descending=True)
            last = (k.long() - 1).clamp(min=0).view(1, -1, 1).expand(len(a), -1, 1)
        t = gains.gather(2, order.gather(2, last))  # with gradient: the k-th feature counts
        price = k * t.squeeze(2)
        return price + (gains - t).clamp(min=0).sum(2), price

    def _gain_l2(self, a: Tensor, extent: Tensor) -> tuple[Tensor, Tensor]:
        """max <|a|, d> for 0 <= d <= extent, |d| <= eps: ``sum (|a| d - t d^2 / 2) + t eps^2 / 2``.

        There d = min(|a| / t, extent) and t is the best multiplier.

        The multiplier starts at that of the ball alone and falls as features run into the box, which is how the
        projection on ball and box is found; six rounds come within 1e-3 of the end, and every t is sound.
        """
        a = a.abs()
        eps = torch.minimum(self.eps, vector_norm(self._widest, dim=1)).clamp(min=1e-100)
        with torch.no_grad():
            t = (vector_norm(a, dim=2) / eps).clamp(min=_TINY)
            for _ in range(6):
                clipped = a > extent * t.unsqueeze(2)
                free = vector_norm(a.masked_fill(clipped, 0), dim=2)
                left = eps**2 - (extent * clipped).square().sum(2)
                better = free / left.clamp(min=0).sqrt()
                t = torch.where((left > 0) & (better < t) & (better > 0), better, t)
        d = torch.minimum(a / t.unsqueeze(2), extent)
        price = t * eps**2 / 2
        return price + (d * (a - t.unsqueeze(2) * d / 2)).sum(2), price
