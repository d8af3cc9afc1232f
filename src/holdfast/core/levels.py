"""The levels of a grid: which values a feature may take, and which of them a number stands for."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from holdfast.core.errors import UsageError
from holdfast.core.sets import LpBall

__all__ = ["grid_index", "grid_steps", "grid_value", "on_levels"]

_ROUNDINGS = 8  # of the largest magnitude at hand: a division, a product and a shift, in whatever order
_OF_A_STEP = 8  # the most that is called rounding is so small a part of a step


def on_levels(set: LpBall, x: Tensor) -> Tensor:
    """x (n, \\*features) with what lies next to a level, but for rounding, on it; all else as it is.

    ``float32(k / 255) * 2 - 1`` is a unit in the last place off ``-1 + 2 k / 255`` for half of all k. Taken as it stands,
    no point of the set could keep such a value.

    Example:
        >>> from holdfast.core.threat import Norm
        >>> ball = LpBall.uniform(Norm.LINF, 0.1, 1, -1.0, 1.0, grid=Fraction(2, 255))
        >>> x = torch.tensor([[7.0]]) / 255 * 2 - 1
        >>> float(x) == -1 + 14 / 255, float(on_levels(ball, x)) == float(torch.tensor(-1 + 14 / 255))
        (False, True)
    """
    if set.grid is None or not x.is_floating_point():
        return x
    level = grid_value(set, grid_index(set, x).round(), x.dtype)
    steps, unit = grid_steps(set, x.device)
    low, high = (edge.to(x.device, torch.float64) for edge in (set.lower, set.upper))
    rounding = _ROUNDINGS * torch.finfo(x.dtype).eps * torch.maximum(x.double().abs(), low.abs())
    wide = unit / (_OF_A_STEP * torch.as_tensor(steps, dtype=torch.float64, device=x.device))
    near = (level.double() - x.double()).abs() <= torch.minimum(rounding, wide)
    near &= (level >= low.to(x.dtype)) & (level <= high.to(x.dtype))
    return torch.where(near, level, x)


def grid_index(set: LpBall, x: Tensor) -> Tensor:
    """(n, \\*features) float64: x counted in grid steps from the lower bound, not rounded; NaN where there is no grid."""
    steps, unit = grid_steps(set, x.device)
    return (x.double() - set.lower.double()) * steps / unit


def grid_value(set: LpBall, index: Tensor, dtype: torch.dtype) -> Tensor:
    """(n, \\*features) the value at a whole index; k * numerator is exact, so k/255 is what a decoder gives."""
    steps, unit = grid_steps(set, index.device)
    return (set.lower.double() + index * unit / steps).to(dtype)


def grid_steps(set: LpBall, device: torch.device) -> tuple[int | Tensor, int]:
    """How many steps there are in how many units: the grid's denominator and numerator."""
    if set.grid is None:
        raise UsageError("this set has no grid; give one, for example Fraction(1, 255)")
    if isinstance(set.grid, Fraction):
        return set.grid.denominator, set.grid.numerator
    steps = torch.tensor(set.grid.steps, dtype=torch.float64, device=device)
    return steps.masked_fill(steps == 0, torch.nan), 1
