"""How a flat print gets into a picture: pose, sampling, a soft edge, light, focus and camera noise.

Places are measured in half the shorter side of the picture, from its middle: x to the right, y down. Every function is
differentiable in the print and treats each sample for itself; neutral conditions change nothing, to the bit where no
resampling is involved.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, pi, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.core.draws import SampleDraws

__all__ = [
    "blurred",
    "clipped",
    "conditions",
    "cover",
    "half_side",
    "homography",
    "lit",
    "pixels",
    "room",
    "sample",
    "seen_at",
    "with_noise",
]

Conditions = Mapping[str, Tensor]

_TILE = 64  # largest side of a drawn noise pattern: bigger pictures repeat it, so that draws stay small
_NEAREST = 1e-2  # depths below this lie beside or behind the camera


def conditions(draws: SampleDraws, step: int, like: Tensor, **ranges: tuple[float, float]) -> dict[str, Tensor]:
    """(n,) uniform in its range for each name, in one keyed draw.

    Args:
        draws: of the samples.
        step: of the fit; 0 where the draws are fresh anyway.
        like: gives dtype and device.
        **ranges: least and largest value.

    Example:
        >>> from holdfast.core.draws import Draws
        >>> drawn = conditions(Draws(0, "doc").of([4, 7]), 0, torch.zeros(1), angle=(10.0, 20.0), light=(1.0, 1.0))
        >>> bool(((drawn["angle"] >= 10) & (drawn["angle"] < 20)).all()), drawn["light"].tolist()
        (True, [1.0, 1.0])
    """
    share = draws.uniform("conditions", (len(ranges),), step).to(like)
    return {name: low + (high - low) * share[:, k] for k, (name, (low, high)) in enumerate(ranges.items())}


def pixels(height: int, width: int, like: Tensor, fineness: int = 1) -> Tensor:
    """(fineness * height, fineness * width, 2) x and y of the middles of all pixels, or of parts of pixels.

    Example:
        >>> pixels(2, 4, torch.zeros(1))[0, :, 0].tolist()
        [-1.5, -0.5, 0.5, 1.5]
    """
    unit = min(height, width) * fineness

    def along(count: int) -> Tensor:
        return (2 * torch.arange(count, dtype=like.dtype, device=like.device) + 1 - count) / unit

    x, y = along(width * fineness), along(height * fineness)
    return torch.stack([x.expand(len(y), -1), y.unsqueeze(1).expand(-1, len(x))], -1)


def half_side(area: float, height: int, width: int, *, round: bool = False) -> float:
    """Half the side of a square, or the radius of a disk, that covers a share of the picture.

    Example:
        >>> half_side(0.25, 32, 32)
        0.5
    """
    side = sqrt(area * height * width) / min(height, width)
    return 2 * side / sqrt(pi) if round else side


def room(half: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """(n,) how far to the right, and down, the middle of a thing of that half side can move and stay in the picture."""
    unit = min(height, width)
    return (width / unit - half).clamp_min(0), (height / unit - half).clamp_min(0)


def homography(pose: Conditions, half: Tensor | float = 1.0) -> Tensor:
    """(n, 3, 3) from places in the picture to places on the print, whose edges are at -1 and 1.

    Args:
        pose: (n,) each: ``angle`` in degrees, counter-clockwise as seen; ``right`` and ``down``, its middle; and, where
            given, ``lean`` and ``tip``, the perspective: depth grows by that much from the middle to the right or lower
            edge of the print.
        half: half its side, (n,) or one number.

    Example:
        >>> none = torch.zeros(1)
        >>> homography({"angle": none, "right": none + 0.5, "down": none}, 0.5)[0].add(0.0).tolist()
        [[2.0, 0.0, -1.0], [0.0, 2.0, 0.0], [0.0, 0.0, 1.0]]
    """
    turn = pose["angle"] * (pi / 180)
    cos, sin = turn.cos() / half, turn.sin() / half
    right, down = pose["right"], pose["down"]
    none = torch.zeros_like(turn)
    lean, tip = pose.get("lean", none), pose.get("tip", none)
    across = torch.stack([cos, -sin, sin * down - cos * right], -1)
    along = torch.stack([sin, cos, -sin * right - cos * down], -1)
    flat = torch.stack([none, none, none + 1], -1)
    return torch.stack([across, along, flat - lean.unsqueeze(-1) * across - tip.unsqueeze(-1) * along], 1)


def seen_at(view: Tensor, at: Tensor) -> Tensor:
    """(n, H, W, 2) where on the print each pixel looks.

    Args:
        view: (n, 3, 3), see `homography`.
        at: (H, W, 2) places in the picture.
    """
    m = view.view(-1, 1, 1, 3, 3)
    on = m[..., 0] * at[..., :1] + m[..., 1] * at[..., 1:] + m[..., 2]
    return on[..., :2] / on[..., 2:].clamp_min(_NEAREST)


def sample(texture: Tensor, at: Tensor) -> Tensor:
    """(n, C, H, W) the print (C, h, w), or one (n, C, h, w) for each sample, read bilinearly at places on it.

    Example:
        >>> square = torch.tensor([[[0.0, 1.0], [2.0, 3.0]]])
        >>> sample(square, pixels(2, 2, square).unsqueeze(0))[0].tolist() == square.tolist()
        True
    """
    each = texture if texture.ndim == 4 else texture.expand(len(at), -1, -1, -1)
    return F.grid_sample(each, at, mode="bilinear", padding_mode="border", align_corners=False)


def cover(at: Tensor, half: Tensor | float, unit: float, shape: str) -> Tensor:
    """(n, 1, H, W) how much of each pixel the print covers: 1 inside, 0 outside, a ramp of a pixel's width between.

    Args:
        at: (n, H, W, 2) places on the print.
        half: half its side, (n,) or one number.
        unit: pixels to half the shorter side of the picture.
        shape: ``circle`` or ``square``.
    """
    inside = 1 - (at.square().sum(-1).sqrt() if shape == "circle" else at.abs().amax(-1))
    size = half.view(-1, 1, 1) if isinstance(half, Tensor) else half
    return (0.5 + inside * size * unit).clamp(0, 1).unsqueeze(1)


def clipped(x: Tensor) -> Tensor:
    """x clipped to [0, 1], with the slope of x: a texel that is too bright in one picture must still learn from it.

    Example:
        >>> x = torch.tensor([-0.5, 0.5], requires_grad=True)
        >>> torch.autograd.grad(clipped(x).sum(), x)[0].tolist()
        [1.0, 1.0]
    """
    return x - (x - x.clamp(0, 1)).detach()


def lit(x: Tensor, light: Conditions) -> Tensor:
    """Images (n, C, H, W) in [0, 1] under a ``light`` (factor), ``contrast`` (factor) and ``tone`` (shift), (n,) each.

    The tone lifts the middle by ``tone * x * (1 - x)``: a gamma curve to second order, with a finite slope at 0.

    Example:
        >>> grey, one = torch.full((1, 1, 1, 1), 0.5), torch.ones(1)
        >>> lit(grey, {"light": one, "contrast": one, "tone": 0.4 * one}).item()
        0.6000000238418579
    """
    light_, contrast, tone = (light[k].view(-1, 1, 1, 1) for k in ("light", "contrast", "tone"))
    toned = x + tone * x * (1 - x)
    return clipped(((toned - 0.5) * contrast + 0.5) * light_)


def with_noise(x: Tensor, draws: SampleDraws, step: int, size: float) -> Tensor:
    """Images with normal camera noise of a standard deviation, clipped to [0, 1]."""
    if size == 0:
        return x
    channels, height, width = x.shape[1:]
    high, wide = min(height, _TILE), min(width, _TILE)
    tile = draws.normal("camera", (channels, high, wide), step).to(x)
    noise = tile.repeat(1, 1, -(-height // high), -(-width // wide))[..., :height, :width]
    return clipped(x + size * noise)


def blurred(x: Tensor, sigma: Tensor, most: float) -> Tensor:
    """Images out of focus: a normal blur of ``sigma`` (n,) pixels, at most ``most``; 0 changes nothing.

    Example:
        >>> dot = torch.zeros(1, 1, 5, 5)
        >>> dot[..., 2, 2] = 1
        >>> torch.equal(blurred(dot, torch.zeros(1), 1.0), dot)
        True
    """
    if most == 0:
        return x
    reach = ceil(2 * most)
    offset = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
    weight = (-0.5 * (offset / sigma.clamp_min(1e-3).unsqueeze(1)).square()).exp()
    weight = (weight / weight.sum(1, keepdim=True)).repeat_interleave(x.shape[1], 0)
    groups = len(weight)
    flat = F.pad(x.reshape(1, groups, *x.shape[2:]), (reach, reach, reach, reach), mode="replicate")
    rows = F.conv2d(flat, weight.view(groups, 1, 1, -1), groups=groups)
    return F.conv2d(rows, weight.view(groups, 1, -1, 1), groups=groups).view_as(x)
