"""lp distances and membership, without tolerances.

Distances are float64 whatever the dtype of the inputs, so that the search, the referee and the report read one number.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from holdfast.core.levels import grid_index, grid_steps, grid_value
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm

__all__ = [
    "between",
    "box",
    "contains",
    "difference",
    "distance",
    "dual_norm",
    "grid_index",
    "grid_steps",
    "grid_value",
    "measured",
    "on_grid",
    "per_sample",
    "vector_norm",
    "within",
]

# One pass and no copy; torch ships no types for it.
vector_norm: Callable[..., Tensor] = torch.linalg.vector_norm  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """A vector (n,) shaped to broadcast with ``like`` (n, \\*features).

    Example:
        >>> per_sample(torch.zeros(5), torch.zeros(5, 3, 8, 8)).shape
        torch.Size([5, 1, 1, 1])
    """
    return values.view(-1, *[1] * (like.ndim - 1))


def distance(norm: Norm, delta: Tensor) -> Tensor:
    """The lp size of each perturbation; l0 counts the features that changed.

    Args:
        norm: p.
        delta: (n, \\*features).

    Returns:
        (n,) float64; not a number where delta has one (l0 counts it as a change).

    Example:
        >>> d = torch.tensor([[3.0, 0.0, -4.0]])
        >>> [distance(norm, d).item() for norm in Norm]
        [2.0, 7.0, 5.0, 4.0]
    """
    flat = delta.flatten(1)
    if norm is Norm.LINF:
        # Exact in any dtype, so widened after the reduction; several times faster than the infinity norm of torch.
        return flat.abs().amax(1).double()
    if norm is Norm.L2:
        return vector_norm(flat, 2, dim=1, dtype=torch.float64)
    if norm is Norm.L1:
        return vector_norm(flat, 1, dim=1, dtype=torch.float64)
    return (flat != 0).sum(1).double()


def between(norm: Norm, x_adv: Tensor, x: Tensor) -> Tensor:
    """(n,) float64 lp distance of two batches, the difference taken in float64.

    Example:
        >>> between(Norm.LINF, torch.tensor([[0.3]]), torch.tensor([[0.2]])).item()  # float32 would say 0.10000000149
        0.10000000894069672
    """
    if norm is Norm.L0:
        return (x_adv != x).flatten(1).sum(1).double()
    return distance(norm, difference(x_adv, x))


def difference(x_adv: Tensor, x: Tensor) -> Tensor:
    """(n, \\*features) ``x_adv - x`` in float64, in one new tensor: on big batches fresh memory is what costs."""
    return x_adv.to(torch.float64, copy=True).sub_(x)


def measured(set: LpBall, x_adv: Tensor, x: Tensor) -> Tensor:
    """(n,) float64 lp distance as the set counts it: on a grid in its levels, not in what a type makes of them.

    8 grey levels are 8/255, although float32(k / 255) of two levels may differ by a little more.

    Args:
        set: of n samples; its norm and its grid count.
        x_adv: (n, \\*features).
        x: (n, \\*features); a feature off the grid is counted as it stands.

    Example:
        >>> from fractions import Fraction
        >>> ball = LpBall.uniform(Norm.LINF, 8 / 255, 1, grid=Fraction(1, 255))
        >>> x, up = torch.tensor([[0.0]]), torch.tensor([[8.0]]) / 255
        >>> measured(ball, up, x).item() == 8 / 255 < between(Norm.LINF, up, x).item()
        True
    """
    if set.grid is None or set.norm is Norm.L0:
        return between(set.norm, x_adv, x)
    steps, unit = grid_steps(set, x.device)
    levels = _level(set, x_adv) - _level(set, x)
    if isinstance(steps, int):
        return distance(set.norm, levels * unit) / steps
    free = x_adv.double() - x.double()  # of features without a grid
    return distance(set.norm, torch.where(levels.isnan(), free, levels / steps))


def _level(set: LpBall, x: Tensor) -> Tensor:
    """(n, \\*features) float64: the level of each value; of one off the grid its place between two."""
    index = grid_index(set, x)
    near = index.round()
    return torch.where(grid_value(set, near, x.dtype) == x, near, index)


def dual_norm(norm: Norm, g: Tensor) -> Tensor:
    """(n,) float64 ``max <g, d>`` over ``||d||_p <= 1``.

    Example:
        >>> dual_norm(Norm.LINF, torch.tensor([[3.0, -4.0]])).item()
        7.0
    """
    return distance(norm.dual, g)


def box(set: LpBall, x: Tensor) -> tuple[Tensor, Tensor]:
    """Least and largest feature values in the dtype of x; both are x where the mask is False.

    A bound that the dtype of x cannot hold is rounded inward.

    Returns:
        Two tensors that broadcast with x (n, \\*features).
    """
    lower = _narrow(set.lower, x.dtype, float("inf"))
    upper = _narrow(set.upper, x.dtype, float("-inf"))
    if set.mask is None:
        return lower, upper
    return torch.where(set.mask, lower, x), torch.where(set.mask, upper, x)


def _narrow(edge: Tensor, dtype: torch.dtype, inward: float) -> Tensor:
    if edge.dtype == dtype:
        return edge
    cast = edge.to(dtype)
    outside = cast.double() < edge.double() if inward > 0 else cast.double() > edge.double()
    return torch.where(outside, torch.nextafter(cast, torch.full_like(cast, inward)), cast)


def within(x_adv: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """(n,) bool: every feature lies in ``[low, high]``; not a number never does.

    With the cached bounds of `holdfast.numerics.project.linf_bounds` this is the cheapest test of linf membership.
    """
    # A difference and a maximum are several times faster than a comparison and `all`; inf - inf and nan fail the test.
    return (x_adv - x_adv.clamp(low, high)).flatten(1).abs().amax(1) == 0


def contains(set: LpBall, x_adv: Tensor, x: Tensor, size: Tensor | None = None) -> Tensor:
    """Whether each point lies in its set, with no tolerance.

    The float64 distance is at most eps (see `measured`), the values are finite and between the bounds, equal to x where
    the mask is False, and on the grid if there is one.

    Args:
        set: of n samples.
        x_adv: (n, \\*features).
        x: (n, \\*features), the clean inputs.
        size: (n,) float64 ``measured`` between the two, if it is known.

    Returns:
        (n,) bool.

    Example:
        >>> ball = LpBall.uniform(Norm.LINF, 0.1, 2)
        >>> x = torch.full((2, 3), 0.2)
        >>> contains(ball, torch.tensor([[0.2, 0.25, 0.11], [0.2, 0.3, 0.2]]), x).tolist()  # float32 0.3 - 0.2 > 0.1
        [True, False]
    """
    # `within` is false of what is not finite.
    size = measured(set, x_adv, x) if size is None else size
    inside = (size <= set.eps) & within(x_adv, *box(set, x))
    return inside if set.grid is None else inside & on_grid(set, x_adv)


def on_grid(set: LpBall, x_adv: Tensor) -> Tensor:
    """(n,) bool: every value is the dtype's rounding of ``lower + k * grid`` for an integer k, where it has a grid.

    Example:
        >>> from fractions import Fraction
        >>> ball = LpBall.uniform(Norm.LINF, 0.1, 2, grid=Fraction(1, 255))
        >>> on_grid(ball, torch.tensor([[0.0, 7 / 255], [0.5, 1.0]])).tolist()
        [True, False]
    """
    value = grid_value(set, grid_index(set, x_adv).round(), x_adv.dtype)
    return ((value == x_adv) | value.isnan()).flatten(1).all(1)
