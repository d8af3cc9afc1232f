"""What a printer and an eye make of a print: printable colours, smoothness, distance of colours as people see it."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.numerics.distance import vector_norm

__all__ = ["lab", "non_printability", "printable", "total_variation"]

# Ours: what an office printer gives on plain paper, as sRGB. Solid and half-tone inks, their mixtures, paper and greys.
_COLOURS = (
    0xF4F1EA, 0xD9D6CF, 0xB8B5AE, 0x94918B, 0x6F6D68, 0x4C4A47,
    0x2B2A29, 0x1A1918, 0xD8242F, 0xE9747C, 0xF3B9B7, 0xF0871F,
    0xF6BD7E, 0xF2D52E, 0xF6E995, 0x9DBF3B, 0xC9DC97, 0x3F9B4A,
    0x8FC79A, 0x1F6A38, 0x2AA39A, 0x92D0CC, 0x2B8FC6, 0x8FC3E3,
    0x2B4F9E, 0x8397C9, 0x4B3B86, 0x8F4A91, 0xC793C4, 0x7A4A2B,
)  # fmt: skip
_GREYS = 30


def printable(like: Tensor, channels: int) -> Tensor:
    """(30, channels) colours that can be printed, in [0, 1]; greys for one channel.

    Example:
        >>> printable(torch.zeros(1), 3).shape, printable(torch.zeros(1), 1).shape
        (torch.Size([30, 3]), torch.Size([30, 1]))
    """
    if channels == 1:
        return torch.linspace(0.1, 0.95, _GREYS, dtype=like.dtype, device=like.device).unsqueeze(1)
    table = [[(c >> k & 255) / 255 for k in (16, 8, 0)] for c in _COLOURS]
    return torch.tensor(table, dtype=like.dtype, device=like.device)


def non_printability(texture: Tensor, palette: Tensor, weight: Tensor | None = None) -> Tensor:
    """The non-printability score: the mean over texels of the product of distances to all colours (Sharif et al. 2016).

    It is 0 where every texel has a colour of the palette. A product of 30 distances is tiny: each is divided by that
    colour's root mean square distance from all colours, which scales the score by a constant.

    Args:
        texture: (C, h, w).
        palette: (k, C).
        weight: (h, w) of the texels; all alike by default.

    Example:
        >>> red = torch.tensor([1.0, 0.0, 0.0])
        >>> non_printability(red.view(3, 1, 1).expand(3, 4, 4), torch.stack([red, 1 - red])).item()
        0.0
    """
    away = vector_norm(texture.flatten(1).T.unsqueeze(1) - palette, 2, dim=2)
    usual = (palette.square() - palette + 1 / 3).sum(1).sqrt()  # mean of (c - u)^2 over uniform u
    return _mean((away / usual).prod(1), weight)


def total_variation(texture: Tensor, weight: Tensor | None = None) -> Tensor:
    """The mean over texels of the l2 size of the differences to the right and down (Sharif et al. 2016).

    Example:
        >>> total_variation(torch.tensor([[[0.0, 0.3], [0.4, 0.0]]])).item()  # one texel has both neighbours
        0.5
    """
    here = texture[:, :-1, :-1]
    steps = torch.stack([texture[:, :-1, 1:] - here, texture[:, 1:, :-1] - here], 0)
    size = vector_norm(steps, 2, dim=(0, 1)).flatten()
    if not len(size):
        return texture.new_zeros(())
    return _mean(size, None if weight is None else weight[:-1, :-1])


def _mean(value: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return value.mean()
    w = weight.flatten().to(value)
    return (value * w).sum() / w.sum().clamp_min(1)


def lab(colour: Tensor) -> Tensor:
    """(..., 3, h, w) CIE L*a*b* of sRGB images (D65), over 100; one channel is grey.

    Example:
        >>> lab(torch.ones(3, 1, 1)).flatten().round(decimals=3).abs().tolist()
        [1.0, 0.0, 0.0]
    """
    rgb = colour if colour.shape[-3] == 3 else torch.cat([colour] * 3, -3)
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4)
    to_xyz = [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
    matrix = torch.tensor(to_xyz, dtype=colour.dtype, device=colour.device)
    xyz = torch.einsum("ij,...jhw->...ihw", matrix / matrix.sum(1, keepdim=True), linear)
    third = xyz.clamp_min(0.008856) ** (1 / 3)
    f = torch.where(xyz > 0.008856, third, 7.787 * xyz + 16 / 116)
    x, y, z = f.unbind(-3)
    return torch.stack([1.16 * y - 0.16, 5 * (x - y), 2 * (y - z)], -3)
