"""The nearest point of a hyperplane inside the box, exact in l0, l1, l2 and linf.

To move ``<w, delta>`` by a gap, each feature goes its own way (the sign of w) and has the room that the box leaves.
l2 gives ``min(u |w_i|, room_i)``, linf ``min(u, room_i)``; both solve ``sum_i min(u p_i, q_i) = gap``. l1 fills the
features in the order of |w_i|, l0 in the order of what they can give, |w_i| room_i.
"""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.core.arrays import falling_order
from holdfast.core.threat import Norm
from holdfast.numerics.capped import room, solve_capped
from holdfast.numerics.distance import distance, per_sample

__all__ = ["affine_distance", "least_move", "project_on_hyperplane"]


def project_on_hyperplane(norm: Norm, x: Tensor, w: Tensor, b: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """The least delta with ``<w, x + delta> + b = 0`` and x + delta in the box (FAB: Croce & Hein 2020).

    Args:
        norm: what is least; l0 too.
        x: (n, \\*features), in the box.
        w: (n, \\*features), normals.
        b: (n,) offsets.
        lower: broadcastable to x; equal to x where a mask forbids a change.
        upper: likewise.

    Returns:
        (n, \\*features) delta in the dtype of x; the corner of the box nearest to the plane where the box does not
        reach it.

    Example:
        >>> x, w = torch.tensor([[0.5, 0.5]]), torch.tensor([[2.0, 1.0]])
        >>> project_on_hyperplane(Norm.L2, x, w, torch.tensor([-2.75]), torch.tensor(0.0), torch.tensor(1.0)).tolist()
        [[0.5, 0.25]]
    """
    gap = -((w.double() * x.double()).flatten(1).sum(1) + b.double())
    turn = torch.where(gap < 0, -1.0, 1.0)
    return least_move(norm, per_sample(turn, w) * w.double(), gap.abs(), x, lower, upper).to(x.dtype)


def affine_distance(norm: Norm, w: Tensor, gap: Tensor, x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """The least lp size of a delta with ``<w, delta> >= gap`` and x + delta in the box.

    Args:
        norm: any of the four.
        w: (m, \\*features).
        gap: (m,); 0 or less costs nothing.
        x: (m, \\*features), in the box.
        lower: broadcastable to x.
        upper: likewise.

    Returns:
        (m,) float64; infinite where the box does not reach.

    Example:
        >>> x, w = torch.tensor([[0.5, 0.5]]), torch.tensor([[2.0, 1.0]])
        >>> edges = torch.tensor(0.0), torch.tensor(1.0)
        >>> [affine_distance(norm, w, torch.tensor([1.25]), x, *edges).item() for norm in (Norm.L0, Norm.L1, Norm.LINF)]
        [2.0, 0.75, 0.4166666666666667]
    """
    wide = w.double()
    needed = gap.double().clamp_min(0)
    size = distance(norm, least_move(norm, wide, needed, x, lower, upper))
    return torch.where(_reach(wide, room(wide, x, lower, upper)).sum(1) >= needed, size, float("inf"))


def least_move(norm: Norm, w: Tensor, gap: Tensor, x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """(m, \\*features) float64: the least delta with ``<w, delta> = gap >= 0``, or the corner that comes nearest."""
    space = room(w, x, lower, upper).flatten(1)
    size, give = w.abs().flatten(1), _reach(w, space.view_as(w))
    if norm is Norm.L2:
        u = solve_capped(size.square(), give, gap)
        move = torch.minimum(size * u.unsqueeze(1), space)
    elif norm is Norm.LINF:
        u = solve_capped(size, give, gap)
        move = torch.minimum(u.unsqueeze(1), space)
    else:
        move = _greedy(size if norm is Norm.L1 else give, size, give, gap)
        move = torch.minimum(move, space)
    return (move * w.flatten(1).sign()).nan_to_num(0.0).view_as(w)


def _reach(w: Tensor, space: Tensor) -> Tensor:
    """(m, d) what each feature can give; nothing where w is 0, even with unbounded room."""
    return torch.where(w == 0, 0.0, w.abs() * space).flatten(1)


def _greedy(key: Tensor, size: Tensor, give: Tensor, gap: Tensor) -> Tensor:
    """(m, d) moves that fill the gap feature by feature in falling order of the key, the last one in part."""
    order = falling_order(key)
    sorted_give = give.gather(1, order)
    before = sorted_give.cumsum(1).roll(1, 1)
    before[:, :1] = 0
    part = torch.minimum((gap.unsqueeze(1) - before).clamp_min(0), sorted_give)
    move = part / size.gather(1, order).clamp_min(torch.finfo(torch.float64).tiny)
    return torch.zeros_like(size).scatter(1, order, move)
