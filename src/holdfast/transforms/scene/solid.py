"""A small renderer: one textured solid before a background, by casting a ray through every pixel.

Solids are analytic (sphere, box, square plane), so that hits, depths and normals are exact and only the texture is
resampled: a rendering is linear in the texture under every pose. The camera looks along z, x is to the right, y down.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import pi, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.core.errors import UsageError
from holdfast.transforms.scene.camera import pixels, sample

__all__ = ["SOLIDS", "Hits", "distance_for", "paint", "render", "rotation", "trace"]

_FOCAL = 3.0  # a lens of 37 degrees across the shorter side
_CUBE, _SQUARE = 0.7236, 0.8862  # half sides of a box of the unit sphere's mean shadow, and a square of its frontal one
_FAR = 1e9


@dataclass(frozen=True)
class Hits:
    """What the rays of a batch of views meet.

    Attributes:
        hit: (n, H, W) bool.
        at: (n, H, W, 2) where on the texture.
        normal: (n, H, W, 3) outward, unit, as the camera sees it.
    """

    hit: Tensor
    at: Tensor
    normal: Tensor


def rotation(yaw: Tensor, pitch: Tensor, roll: Tensor) -> Tensor:
    """(n, 3, 3) the turn of an object about the vertical axis, then the horizontal one, then the camera's; degrees.

    Example:
        >>> none = torch.zeros(1)
        >>> rotation(none, none, none)[0].tolist()
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    turned = torch.eye(3, dtype=yaw.dtype, device=yaw.device)
    for angle, (i, j) in ((yaw, (2, 0)), (pitch, (1, 2)), (roll, (0, 1))):
        cos, sin = (angle * (pi / 180)).cos(), (angle * (pi / 180)).sin()
        one = torch.eye(3, dtype=yaw.dtype, device=yaw.device).repeat(len(angle), 1, 1)
        one[:, i, i], one[:, j, j], one[:, i, j], one[:, j, i] = cos, cos, -sin, sin
        turned = one @ turned
    return turned


def distance_for(radius: float) -> float:
    """How far away the unit sphere has a silhouette of that radius, in half the picture's shorter side."""
    return sqrt((_FOCAL / radius) ** 2 + 1)


def trace(solid: str, turned: Tensor, distance: Tensor, right: Tensor, down: Tensor, at: Tensor) -> Hits:
    """Casts the rays.

    Args:
        solid: one of `SOLIDS`.
        turned: (n, 3, 3) from the object's axes to the camera's.
        distance: (n,) from the camera to the object's middle, in its size.
        right: (n,) place of its middle in the picture.
        down: likewise.
        at: (H, W, 2) places of the rays in the picture.
    """
    if solid not in SOLIDS:
        raise UsageError(f"there is no solid '{solid}'; use one of {', '.join(SOLIDS)}")
    ray = torch.cat([at, torch.full_like(at[..., :1], _FOCAL)], -1)
    middle = torch.stack([right / _FOCAL, down / _FOCAL, torch.ones_like(right)], -1) * distance.unsqueeze(1)
    # Into the object's axes: turned is orthogonal, so that its transpose takes a row vector there from the right.
    start = (-middle.unsqueeze(1) @ turned).view(-1, 1, 1, 3)
    along = (ray.view(1, -1, 3) @ turned).view(len(turned), *ray.shape)
    hit, where, normal = SOLIDS[solid](start, along)
    seen = (normal.flatten(1, 2) @ turned.transpose(1, 2)).view_as(normal)
    return Hits(hit, where, seen)


def _sphere(start: Tensor, along: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Longitude and latitude; the seam is at the back."""
    a, b = along.square().sum(-1), (start * along).sum(-1)
    c = start.square().sum(-1) - 1
    inner = b.square() - a * c
    point = start + ((-b - inner.clamp_min(0).sqrt()) / a).unsqueeze(-1) * along
    x, y, z = point.unbind(-1)
    where = torch.stack([torch.atan2(x, -z) / pi, y.clamp(-1, 1).asin() / (pi / 2)], -1)
    return (inner > 0) & (b < 0), where, point


def _box(start: Tensor, along: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Six faces in three columns and two rows of the texture: front, right, top over back, left, bottom."""
    step = torch.where(along.abs() < 1 / _FAR, 1 / _FAR, along)
    one, two = (-_CUBE - start) / step, (_CUBE - start) / step
    enter, axis = torch.minimum(one, two).max(-1)
    leave = torch.maximum(one, two).amin(-1)
    point = start + enter.unsqueeze(-1) * along
    normal = F.one_hot(axis, 3).to(along) * -along.gather(-1, axis.unsqueeze(-1)).sign()
    x, y, z = (point / _CUBE).unbind(-1)
    faces = torch.stack([torch.stack([z, y], -1), torch.stack([x, z], -1), torch.stack([x, y], -1)], -2)
    face = faces.gather(-2, axis[..., None, None].expand(*axis.shape, 1, 2)).squeeze(-2)
    back = normal.sum(-1) > 0
    column = (2 - axis + torch.where(axis == 0, -1, torch.where(axis == 1, 1, 0))).to(along)
    row = torch.where(axis == 2, back, ~back).to(along)
    # Half a texel short of the cell's edge, bilinear reading would mix the neighbouring face in: `paint` keeps away.
    return (enter < leave) & (enter > 0), torch.cat([face, torch.stack([column, row], -1)], -1), normal


def _plane(start: Tensor, along: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A square without thickness that shows both sides."""
    depth = torch.where(along[..., 2].abs() < 1 / _FAR, 1 / _FAR, along[..., 2])
    far = -start[..., 2] / depth
    where = (start + far.unsqueeze(-1) * along)[..., :2] / _SQUARE
    normal = torch.zeros_like(along)
    normal[..., 2] = -depth.sign()
    return (where.abs().amax(-1) <= 1) & (far > 0), where, normal


SOLIDS: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]] = {
    "sphere": _sphere,
    "box": _box,
    "plane": _plane,
}
"""Name -> (start, direction of rays in the object's axes) -> hit, place on the texture, normal."""


def paint(solid: str, texture: Tensor, where: Tensor) -> Tensor:
    """(n, C, H, W) the texture (C, h, w), or one for each view, read at the places that `trace` gave."""
    height, width = texture.shape[-2:]
    if solid == "sphere":  # around the back the last texel meets the first one
        wrapped = torch.cat([texture[..., -1:], texture, texture[..., :1]], -1)
        return sample(wrapped, torch.stack([where[..., 0] * width / (width + 2), where[..., 1]], -1))
    if solid == "box":
        inner_x, inner_y = 1 - 3 / width, 1 - 2 / height
        x = (where[..., 2] * 2 + 1 + where[..., 0].clamp(-inner_x, inner_x)) / 3 - 1
        y = (where[..., 3] * 2 + 1 + where[..., 1].clamp(-inner_y, inner_y)) / 2 - 1
        return sample(texture, torch.stack([x, y], -1))
    return sample(texture, where)


def render(
    solid: str,
    texture: Tensor,
    background: Tensor,
    turned: Tensor,
    distance: Tensor,
    right: Tensor,
    down: Tensor,
    lamp: Tensor,
    *,
    ambient: float = 0.6,
    fineness: int = 2,
) -> tuple[Tensor, Tensor]:
    """Pictures of the solid before backgrounds, and how much of each pixel it covers.

    Args:
        solid: one of `SOLIDS`.
        texture: (C, h, w), or (n, C, h, w) one for each view.
        background: (n, C, H, W).
        turned: (n, 3, 3), see `rotation`.
        distance: (n,) to the object's middle.
        right: (n,) place of its middle in the picture.
        down: likewise.
        lamp: (n, 3) unit vectors from the object to the lamp, as the camera sees them; (0, 0, -1) is at the camera.
        ambient: share of the light that comes from everywhere; the rest falls off with the angle to the lamp (Lambert).
        fineness: rays along each side of a pixel.

    Returns:
        (n, C, H, W) and (n, 1, H, W).
    """
    height, width = background.shape[2:]
    rays = pixels(height, width, background, fineness)
    hits = trace(solid, turned, distance, right, down, rays)
    facing = (hits.normal * lamp.view(-1, 1, 1, 3)).sum(-1).clamp_min(0)
    shade = (ambient + (1 - ambient) * facing).unsqueeze(1)
    solid_ = hits.hit.to(texture).unsqueeze(1)
    colour = F.avg_pool2d(paint(solid, texture, hits.at) * shade * solid_, fineness)
    share = F.avg_pool2d(solid_, fineness)
    return background * (1 - share) + colour, share
