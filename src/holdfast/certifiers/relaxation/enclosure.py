"""Affine images that contain all that a transform makes of an image over a cell of its parameters.

The transform is evaluated on a grid of the cell; a linear function of the parameters is fitted, and the slack pays for
the largest deviation on the grid and, between its points, for the transform's slope, which is bounded pixel by pixel.
Clipped affine transforms are enclosed exactly instead.
"""

from __future__ import annotations

from math import ceil, pi

import torch
from torch import Tensor
from torch.nn import functional as F

from holdfast.core.errors import UnsupportedError
from holdfast.core.sets import AffineImage
from holdfast.transforms.colour import BrightnessContrast, HueSaturation, Lightness, to_hsv
from holdfast.transforms.geometry import RotationTranslation
from holdfast.transforms.transform import ImageTransform

__all__ = ["enclose"]

_ROUNDING = 1e-12  # of a transform of pixels in [0, 1] in float64: far more than its few dozen operations can lose
_POINTS = {1: 129, 2: 33}  # along each axis, by the number of axes


def enclose(transform: ImageTransform, x: Tensor, low: Tensor, high: Tensor) -> AffineImage:
    """The set for one cell of scaled parameters.

    Args:
        transform: with one axis or two.
        x: (C, H, W) float64 in [0, 1].
        low: (k,) least parameters of the cell, in [-1, 1].
        high: (k,) largest ones.

    Raises:
        UnsupportedError: nothing is known about the transform's slope, or it has too many axes.
    """
    middle, half = (low + high) / 2, (high - low) / 2
    if isinstance(transform, BrightnessContrast):
        return _clipped(transform, x, middle, half)
    k = len(low)
    if k not in _POINTS:
        raise UnsupportedError(
            f"a transform with {k} parameters: certificates serve one or two, set the others' range to 0"
        )
    grid = torch.linspace(-1, 1, _POINTS[k], dtype=x.dtype, device=x.device)
    t = torch.cartesian_prod(*[grid] * k).view(-1, k)
    values = transform(x.expand(len(t), *x.shape), middle + half * t)
    fitted = torch.stack([(values[t[:, j] == 1].mean(0) - values[t[:, j] == -1].mean(0)) / 2 for j in range(k)])
    rest = values - torch.einsum("mk,k...->m...", t, fitted)
    most, least = rest.amax(0), rest.amin(0)
    slope = _slopes(transform, x, middle, half) * half.view(-1, 1, 1, 1) + fitted.abs()
    slack = (most - least) / 2 + slope.sum(0) / (_POINTS[k] - 1) + _ROUNDING
    return AffineImage.of(((most + least) / 2).unsqueeze(0), fitted.unsqueeze(0), slack.unsqueeze(0), 0.0, 1.0)


def _clipped(transform: BrightnessContrast, x: Tensor, middle: Tensor, half: Tensor) -> AffineImage:
    """``clip(z)`` with z linear in the parameters: a chord through the clip, which is farthest off at an end or a kink."""
    reach = {axis.name: (axis.natural(middle[j]), axis.extent * half[j]) for j, axis in enumerate(transform.axes)}
    shift, shift_half = reach.get("brightness", (x.new_zeros(()), x.new_zeros(())))
    factor, factor_half = reach.get("contrast", (x.new_ones(()), x.new_zeros(())))
    z = factor * x + shift
    generators = torch.stack([{"brightness": torch.ones_like(x), "contrast": x}[a.name] for a in transform.axes])
    generators = generators * torch.stack([reach[a.name][1] for a in transform.axes]).view(-1, 1, 1, 1)
    width = factor_half * x + shift_half
    lower, upper = z - width, z + width
    chord = (upper.clamp(0, 1) - lower.clamp(0, 1)) / torch.where(width > 0, 2 * width, 1.0)
    points = torch.stack([lower, upper, lower.clamp(0).minimum(upper), upper.clamp(max=1).maximum(lower)])
    rest = points.clamp(0, 1) - chord * (points - z)
    most, least = rest.amax(0), rest.amin(0)
    slack = (most - least) / 2 + _ROUNDING
    return AffineImage.of(
        ((most + least) / 2).unsqueeze(0), (chord * generators).unsqueeze(0), slack.unsqueeze(0), 0.0, 1.0
    )


def _slopes(transform: ImageTransform, x: Tensor, middle: Tensor, half: Tensor) -> Tensor:
    """(k, C, H, W): how fast each pixel may change with each scaled parameter anywhere in the cell."""
    if isinstance(transform, HueSaturation):
        # a channel is v - v s p(6 h) with p in [0, 1] and of slope at most 1
        value = to_hsv(x.unsqueeze(0))[2].expand_as(x)
        found = {"hue": 6 / 360 * value, "saturation": value}
    elif isinstance(transform, Lightness):
        found = {"lightness": torch.full_like(x, 2.0)}  # 1 + 2 s |p - 1/2|
    elif isinstance(transform, RotationTranslation):
        found = _moving(transform, x, middle, half)
    else:
        raise UnsupportedError(f"nothing is known about the slope of {type(transform).__name__}")
    return torch.stack([found[a.name] * a.extent for a in transform.axes])


def _moving(transform: RotationTranslation, x: Tensor, middle: Tensor, half: Tensor) -> dict[str, Tensor]:
    """The bilinear image's slope near where each pixel comes from, times how fast that place moves."""
    image = x.unsqueeze(0)
    values = {a.name: a.natural(middle[j]).view(1, 1, 1) for j, a in enumerate(transform.axes)}
    across, along = (s[0] for s in transform.source(image, values))
    height, width = x.shape[1:]
    # rotation by d moves a place at distance r by at most r d, and the distance itself changes by the shifts
    reach = {a.name: a.extent * float(half[j]) for j, a in enumerate(transform.axes)}
    shift = reach.get("right", 0.0) + reach.get("down", 0.0)
    speed = (across.square() + along.square()).sqrt() + shift
    moved = float(speed.max()) * reach.get("rotation", 0.0) * pi / 180 + shift
    radius = ceil(1.5 + moved)
    padded = F.pad(image, [radius + 1] * 4)
    steps_x = F.pad(padded.diff(dim=3).abs(), [0, 1])
    steps_y = F.pad(padded.diff(dim=2).abs(), [0, 0, 0, 1])
    steep = (
        F.max_pool2d(steps_x, 2 * radius + 1, 1, radius).square()
        + F.max_pool2d(steps_y, 2 * radius + 1, 1, radius).square()
    ).sqrt()[0]
    column = (across + (width - 1) / 2).round().long() + radius + 1
    row = (along + (height - 1) / 2).round().long() + radius + 1
    steep = steep[:, row.clamp(0, padded.shape[2] - 1), column.clamp(0, padded.shape[3] - 1)]
    return {"rotation": steep * speed * pi / 180, "right": steep, "down": steep}
