"""The exact answer for an affine classifier in the box: what minimal-distortion attacks are held to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.core.threat import Norm
from holdfast.numerics.hyperplane import affine_distance, least_move

__all__ = ["AffineOptimum", "affine_optimum"]


@dataclass(frozen=True)
class AffineOptimum:
    """What no attack can beat.

    Attributes:
        distance: (n,) float64 greatest lower bound of the distance of an adversarial example; 0 where x is already
            misclassified, infinite where the box holds none.
        x_adv: (n, \\*features) float64, a point on the boundary at that distance; x where there is none.
        label: (n,) int64, the class on the other side; y where there is none.
    """

    distance: Tensor
    x_adv: Tensor
    label: Tensor


def affine_optimum(
    norm: Norm,
    weight: Tensor,
    bias: Tensor,
    x: Tensor,
    y: Tensor,
    lower: Tensor,
    upper: Tensor,
    target: Tensor | None = None,
) -> AffineOptimum:
    """The least perturbation that reaches another class of ``weight @ x + bias`` in the box.

    Untargeted, the optimum is the least over classes of the exact distance to that class's half-space, since leaving y
    means that some class reaches it. Targeted, it is the distance to where the target beats y: exact for two classes,
    a lower bound for more, since a third may be in the way.

    Args:
        norm: any of the four.
        weight: (K, d), d the number of features.
        bias: (K,).
        x: (n, \\*features), in the box.
        y: (n,) int64.
        lower: broadcastable to x.
        upper: likewise.
        target: None, or (n,) int64.

    Returns:
        The optimum, in float64.

    Example:
        >>> w, x = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.75, 0.25]])
        >>> edges = torch.tensor(0.0), torch.tensor(1.0)
        >>> best = affine_optimum(Norm.LINF, w, torch.zeros(2), x, torch.tensor([0]), *edges)
        >>> best.distance.item(), best.x_adv.tolist(), best.label.item()
        (0.25, [[0.5, 0.5]], 1)
    """
    wide, w = x.double(), weight.double()
    scores = wide.flatten(1) @ w.T + bias.double()
    own = scores.gather(1, y.unsqueeze(1)).squeeze(1)
    best = torch.full_like(own, float("inf"))
    delta, label = torch.zeros_like(wide), y.clone()
    for k in range(len(w)):
        direction = (w[k] - w[y]).view_as(wide)
        gap = (own - scores[:, k]).clamp_min(0)
        size = affine_distance(norm, direction, gap, wide, lower, upper)
        allowed = y != k if target is None else (target == k) & (y != k)
        better = allowed & (size < best)
        move = least_move(norm, direction, gap, wide, lower, upper)
        best = torch.where(better, size, best)
        delta = torch.where(better.view(-1, *[1] * (x.ndim - 1)), move, delta)
        label = torch.where(better, k, label)
    return AffineOptimum(best, wide + delta, label)
