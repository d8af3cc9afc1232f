"""What linear bounds leave of boxes: the parts where a property may fail."""

from __future__ import annotations

from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.certifiers.branch_and_bound.boxes import FullBounds
from holdfast.certifiers.proved import proved

__all__ = ["MARGIN", "Clipped", "clip"]

MARGIN = 1e-6
"""By as much at least a property holds in what is cut off."""


class Clipped(NamedTuple):
    """The least boxes around what is open.

    Attributes:
        low: (n, features).
        high: (n, features).
        alive: (n,) bool, whether anything is left; of others the ends say nothing.
        cut: (n,) bool, whether something was cut off.
    """

    low: Tensor
    high: Tensor
    alive: Tensor
    cut: Tensor


def clip(full: FullBounds, groups: Tensor, lower: Tensor, upper: Tensor) -> Clipped:
    """Cuts off what the rows' linear bounds prove: all but where all rows of a group may be near 0.

    Args:
        full: bounds over the boxes.
        groups: (rows,), the group of each row.
        lower: (n, features), the boxes.
        upper: likewise.
    """
    low, high = torch.full_like(lower, inf), torch.full_like(upper, -inf)
    alive = torch.zeros(len(lower), dtype=torch.bool)
    for g in range(int(groups[-1]) + 1):
        chosen = groups == g
        a, rows = full.coefficients[:, chosen], full.rows[:, chosen]
        first, last, left = _shrunk(a, rows, lower, upper)
        # what overflowed says nothing: then all of the box stays
        known = (a.isfinite().all(2) & rows.isfinite()).all(1)
        first = torch.where(known.unsqueeze(1), first, lower)
        last = torch.where(known.unsqueeze(1), last, upper)
        open_ = ~known | (~proved(left - MARGIN).any(1) & ~(first > last).any(1))
        low = torch.where(open_.unsqueeze(1), torch.minimum(low, first), low)
        high = torch.where(open_.unsqueeze(1), torch.maximum(high, last), high)
        alive |= open_
    return Clipped(low, high, alive, ~alive | (low > lower).any(1) | (high < upper).any(1))


def _shrunk(a: Tensor, rows: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where all rows of one group may be near 0, and bounds of the rows there.

    If a row is at least ``r`` over a box and grows along x_j at least as ``a > 0``, it is above ``m`` wherever x_j is more
    than ``(m - r) / a`` above its least value; that part of the box is done with.
    """
    first, last, left = lower, upper, rows
    for i in [*range(a.shape[1])] * 2:
        own = a[:, i]
        room = (2 * MARGIN - left[:, i : i + 1]).clamp(min=0) / own.abs().clamp(min=1e-300)
        room = room * (1 + 1e-12) + 1e-300
        end = torch.nextafter(first + room, last.new_tensor(inf))
        start = torch.nextafter(last - room, last.new_tensor(-inf))
        first, last = (
            torch.where(own < 0, torch.maximum(first, start), first),
            torch.where(own > 0, torch.minimum(last, end), last),
        )
        gain = a.clamp(min=0) * (first - lower).unsqueeze(1) - a.clamp(max=0) * (upper - last).unsqueeze(1)
        size = (a.abs() * (upper - lower).unsqueeze(1)).sum(2) + rows.abs()
        left = rows + gain.sum(2) - 1e-13 * (a.shape[2] + 8) * size
    return first, last, left
