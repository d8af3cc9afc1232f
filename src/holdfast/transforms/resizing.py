"""Resizing and zero padding as matrices, so that a gradient maps back by their transposes."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["placing", "resized"]


def placing(side: int, least: float, u: Tensor, place: Tensor) -> Tensor:
    """(n, side, side) float64: row i holds the weights with which the old positions make the new position i.

    A line of ``side`` positions is resized bilinearly and put at a place of a frame of its own length.

    Args:
        side: how many positions.
        least: the least size, as a share of the side.
        u: (n,) float64 in [0, 1], chooses the size between ``least`` and the whole side, which 1 stands for.
        place: (n,) float64 in [0, 1), chooses where the line lies.

    Example:
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> torch.equal(placing(4, 0.5, one, 0 * one)[0], torch.eye(4, dtype=torch.float64))
        True
    """
    low = max(1, int(least * side))
    size = low + (u * (side - low + 1)).floor().clamp_max(side - low)
    start = (place * (side - size + 1)).floor()
    at = torch.arange(side, device=u.device, dtype=torch.float64)
    offset = at.view(1, -1) - start.view(-1, 1)
    inside = (offset >= 0) & (offset < size.view(-1, 1))
    source = ((offset + 0.5) * (side / size.view(-1, 1)) - 0.5).clamp(0, side - 1)
    weights = (1 - (source.unsqueeze(2) - at).abs()).clamp_min(0)
    return weights * inside.unsqueeze(2)


def resized(images: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """``down @ image @ across^T`` of each channel.

    Args:
        images: (n, C, H, W).
        down: (n, H, H), see `placing`.
        across: (n, W, W).
    """
    return down.unsqueeze(1) @ images @ across.transpose(1, 2).unsqueeze(1)
