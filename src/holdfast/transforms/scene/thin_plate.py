"""Thin-plate splines: the smoothest bending of a print that takes given points to given places (Bookstein 1989)."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from holdfast.core.errors import UsageError
from holdfast.transforms.scene.camera import sample

__all__ = ["bent", "control_points", "spline"]

_solve: Callable[..., Tensor] = torch.linalg.solve  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
_FIELD = 33  # a bending is smooth: it is computed on so many points a side and read bilinearly in between


def control_points(side: int, like: Tensor) -> Tensor:
    """(side * side, 2) a grid on the print from edge to edge.

    Example:
        >>> control_points(2, torch.zeros(1)).tolist()
        [[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]]
    """
    if side < 2:
        raise UsageError(f"a grid of control points needs at least 2 a side, got {side}")
    line = torch.linspace(-1, 1, side, dtype=like.dtype, device=like.device)
    return torch.cartesian_prod(line, line).flip(1)


def spline(points: Tensor, at: Tensor) -> Tensor:
    """(P, K) the matrix that takes displacements of K control points to those of P other points.

    The kernel is ``r^2 log r``, with an affine part: displacements that are affine in place are reproduced everywhere.

    Args:
        points: (K, 2) control points, at least 3 that are not on one line.
        at: (P, 2).

    Example:
        >>> corners = control_points(2, torch.zeros(1, dtype=torch.float64))
        >>> spline(corners, corners).round(decimals=9).abs().tolist() == torch.eye(4).tolist()
        True
    """
    k = len(points)
    base, there = points.double(), at.double()
    system = base.new_zeros(k + 3, k + 3)
    system[:k] = _terms(there=base, points=base)
    system[k:, :k] = system[:k, k:].T
    solved = _solve(system, torch.eye(k + 3, dtype=torch.float64, device=base.device)[:, :k])
    return (_terms(there, base) @ solved).to(points.dtype)


@lru_cache(maxsize=8)
def _to_field(side: int) -> Tensor:
    """The spline from a grid of control points to the field's points; the same in every step."""
    like = torch.zeros(1, dtype=torch.float64)
    return spline(control_points(side, like), control_points(_FIELD, like))


def _terms(there: Tensor, points: Tensor) -> Tensor:
    """(P, K + 3): the kernel at each control point's distance, then 1, x and y."""
    square = (there.unsqueeze(1) - points).square().sum(-1)
    return torch.cat([0.5 * torch.xlogy(square, square), torch.ones_like(there[:, :1]), there], 1)


def bent(at: Tensor, shifts: Tensor) -> Tensor:
    """(n, H, W, 2) places on a print after its grid of control points was shifted; beyond the edge as at the edge.

    Args:
        at: (n, H, W, 2) places on the flat print.
        shifts: (n, side * side, 2) how far the pixel that sees a control point looks away from it.

    Example:
        >>> at = torch.rand(2, 4, 4, 2)
        >>> torch.equal(bent(at, torch.zeros(2, 9, 2)), at)
        True
    """
    field = (
        (_to_field(round(shifts.shape[1] ** 0.5)).to(shifts) @ shifts).view(-1, _FIELD, _FIELD, 2).permute(0, 3, 1, 2)
    )
    # The field's outermost points are the print's edges, those of a picture are half a pixel beyond its outermost ones.
    return at + sample(field, at * ((_FIELD - 1) / _FIELD)).permute(0, 2, 3, 1)
