"""Low frequencies: directions that are smooth over an image, from few numbers (orthonormal cosine transform)."""

from __future__ import annotations

from functools import lru_cache
from math import ceil, pi

import torch
from torch import Tensor

__all__ = ["band", "from_band", "to_band"]

_LEAST = 16


def band(shape: tuple[int, ...], fraction: float) -> tuple[int, ...]:
    """The shape of the lowest frequencies of features of a shape: a share of both of the last two axes.

    No axis keeps fewer than 16 frequencies: small images are not smooth. Features on one axis have no neighbours and
    keep their shape.

    Example:
        >>> band((3, 224, 224), 0.25), band((3, 32, 32), 0.25), band((64,), 0.25)
        ((3, 56, 56), (3, 16, 16), (64,))
    """
    if len(shape) < 2:
        return shape
    return (*shape[:-2], *(min(length, max(_LEAST, ceil(fraction * length))) for length in shape[-2:]))


def from_band(low: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(n, \\*shape) features whose lowest frequencies are ``low`` (n, \\*band) and whose others are 0; keeps l2 sizes.

    Example:
        >>> from_band(torch.tensor([[[2.0]]]), (2, 2)).round(decimals=4).tolist()
        [[[1.0, 1.0], [1.0, 1.0]]]
    """
    if len(shape) < 2:
        return low
    down = _waves(shape[-2], low.shape[-2], low.dtype, low.device)
    across = _waves(shape[-1], low.shape[-1], low.dtype, low.device)
    return down @ low @ across.T


def to_band(x: Tensor, low: tuple[int, ...]) -> Tensor:
    """(n, \\*low) the lowest frequencies of features x; what `from_band` undoes if there are no others.

    Example:
        >>> to_band(torch.ones(1, 2, 2), (1, 1)).round(decimals=4).tolist()
        [[[2.0]]]
    """
    if x.ndim < 3:
        return x
    down = _waves(x.shape[-2], low[-2], x.dtype, x.device)
    across = _waves(x.shape[-1], low[-1], x.dtype, x.device)
    return down.T @ x @ across


@lru_cache(maxsize=16)
def _waves(length: int, count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(length, count) the first orthonormal cosines (DCT-II)."""
    at, k = torch.arange(length, dtype=torch.float64).add(0.5), torch.arange(count, dtype=torch.float64)
    waves = (pi / length * at.unsqueeze(1) * k).cos() * (2.0 / length) ** 0.5
    waves[:, 0] *= 0.5**0.5
    return waves.to(device, dtype)
