"""The one place that says what a lower bound proves.

A bound is computed in floats, where a value may overflow and infinities cancel. Whatever comes out then (NaN, or a lower
bound of +inf, which no finite output has) says nothing: it is read as -inf, here and nowhere else.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["numbers", "proved"]


def numbers(lower: Tensor) -> Tensor:
    """Lower bounds as far as they say something: NaN and +inf become -inf.

    Example:
        >>> numbers(torch.tensor([1.0, torch.nan, torch.inf])).tolist()
        [1.0, -inf, -inf]
    """
    return torch.where(lower < torch.inf, lower, -torch.inf)


def proved(lower: Tensor) -> Tensor:
    """Where a lower bound proves that a value is positive: it is a finite number above 0.

    Example:
        >>> proved(torch.tensor([1.0, 0.0, torch.nan, torch.inf])).tolist()
        [True, False, False, False]
    """
    return (lower > 0) & (lower < torch.inf)
