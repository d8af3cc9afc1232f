"""Numbers that a type can hold, between bounds that it may not."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["held_inside"]


def held_inside(x: Tensor, lower: Tensor, upper: Tensor, dtype: torch.dtype) -> Tensor:
    """The nearest numbers of a type within bounds; where the type has none between them, the nearest point.

    Args:
        x: (n, \\*features) float64.
        lower: (\\*features) float64.
        upper: (\\*features) float64.
        dtype: a floating-point type.

    Returns:
        (n, \\*features) float64.

    Example:
        >>> x = torch.tensor([[0.1]], dtype=torch.float64)
        >>> held_inside(x, x[0] - 1e-6, x[0], torch.float32).item() < 0.1  # float32 would round 0.1 up
        True
        >>> held_inside(x, x[0], x[0], torch.float32).item()
        0.1
    """
    x = torch.minimum(torch.maximum(x, lower), upper)
    near = x.to(dtype)
    below, above = (torch.nextafter(near, torch.full_like(near, end)).double() for end in (-torch.inf, torch.inf))
    near = near.double()
    near = torch.where(near > upper, below, torch.where(near < lower, above, near))
    return torch.where((lower <= near) & (near <= upper), near, x)
