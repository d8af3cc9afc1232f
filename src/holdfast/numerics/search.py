"""Searches along a line, batched over samples."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["bisect"]


def bisect(holds: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Halves each sample's interval ``steps`` times; ``holds(high)`` stays true if it was.

    ``low`` may be above ``high``: what matters is which end holds. Nothing is assumed of a function that changes its
    answer more than once, except that one change is found.

    Args:
        holds: asked at (n,) values, answers (n,) bool.
        low: (n,) where it does not hold, or is not known to.
        high: (n,) where it holds.
        steps: how many questions each sample asks.

    Returns:
        (low, high), the interval divided by ``2**steps``.

    Example:
        >>> low, high = bisect(lambda v: v * v >= 2, torch.zeros(1), torch.full((1,), 2.0), 20)
        >>> round(high.item(), 4)
        1.4142
    """
    for _ in range(steps):
        middle = (low + high) / 2
        yes = holds(middle)
        low, high = torch.where(yes, low, middle), torch.where(yes, middle, high)
    return low, high
