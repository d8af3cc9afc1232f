"""What the attacks that walk on linearised decision boundaries share: the nearest plane, and the search along a ray."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from holdfast.core.criterion import Misclassified
from holdfast.core.errors import UnsupportedError
from holdfast.core.problem import Problem
from holdfast.core.threat import Norm
from holdfast.judge.asks import WhiteBoxAsk
from holdfast.numerics.distance import distance
from holdfast.numerics.hyperplane import affine_distance, project_on_hyperplane

__all__ = ["deepfool_step", "leave_a_class", "nearest_plane", "onto_plane", "rivals", "tighten"]

_IN_BOX = 3
_PAST = 0.05


def leave_a_class(title: str, problem: Problem) -> None:
    """Refuses a criterion that is not about leaving a class: there is no boundary of logits to walk on.

    Raises:
        UnsupportedError: the criterion is another.
    """
    if not isinstance(problem.criterion, Misclassified):
        name = type(problem.criterion).__name__
        raise UnsupportedError(f"{title} walks on the boundaries between a class and others; it cannot serve {name}")


def nearest_plane(norm: Norm, x: Tensor, gap: Tensor, normal: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Which of k planes ``<normal, z - x> = gap`` is nearest to x in the box.

    The distance without the box, ``|gap| / ||normal||_q``, is a lower bound of the one inside it; the three planes that
    it puts first are measured in the box.

    Args:
        norm: p.
        x: (n, \\*features), in the box.
        gap: (n, k).
        normal: (n, k, \\*features).
        low: broadcastable to x.
        high: likewise.

    Returns:
        (n,) int64.

    Example:
        >>> x, normal = torch.tensor([[0.5, 0.0]]), torch.tensor([[[1.0, 0.0], [0.1, -9.0]]])
        >>> gap, edges = torch.tensor([[0.4, 0.2]]), (torch.zeros(()), torch.ones(()))
        >>> nearest_plane(Norm.L2, x, gap, normal, *edges).item()  # the second is nearer, but outside the box
        0
    """
    n, k = gap.shape
    normal_norms = distance(norm.dual, normal.flatten(0, 1)).view(n, k)
    free = torch.where(normal_norms > 0, gap.abs().double() / normal_norms, float("inf"))
    first = free.argsort(dim=1, stable=True)[:, :_IN_BOX]
    every = torch.arange(n, device=x.device)
    choice = first[:, 0]
    if first.shape[1] == 1:
        return choice
    best = torch.full_like(free[:, 0], float("inf"))
    for j in first.unbind(1):
        g = gap[every, j]
        toward = normal[every, j] * torch.where(g < 0, -1.0, 1.0).to(x.dtype).view(-1, *[1] * (x.ndim - 1))
        inside = affine_distance(norm, toward, g.abs(), x, low, high)
        choice, best = torch.where(inside < best, j, choice), torch.minimum(inside, best)
    return choice


def rivals(scores: Tensor, y: Tensor, candidates: int) -> Tensor:
    """(n, k) int64: the label, then the ``candidates - 1`` other classes of largest score, if there are so many.

    Example:
        >>> rivals(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0]), 2).tolist()
        [[0, 2]]
    """
    others = scores.scatter(1, y.unsqueeze(1), float("-inf"))
    k = min(max(candidates, 2), scores.shape[1]) - 1
    return torch.cat([y.unsqueeze(1), others.topk(k, dim=1).indices], dim=1)


def deepfool_step(
    norm: Norm, x: Tensor, scores: Tensor, grad: Tensor, classes: Tensor, low: Tensor, high: Tensor, unsure: Tensor
) -> Tensor:
    """(n, \\*features) the nearest point in the box of the nearest linearised boundary (Moosavi-Dezfooli et al. 2016).

    Args:
        norm: what is nearest.
        x: (n, \\*features), in the box.
        scores: (n, K) at x.
        grad: (n, k, \\*features) of the scores at ``classes``.
        classes: (n, k) the label first, as `rivals` gives them.
        low: broadcastable to x.
        high: likewise.
        unsure: (n,) how far rounding may move the margin, which is still to go at a tie.
    """
    chosen, grad = scores.gather(1, classes), grad.nan_to_num(0.0)
    gap, normal = chosen[:, :1] - chosen[:, 1:], grad[:, 1:] - grad[:, :1]
    gap = gap + unsure.unsqueeze(1)
    every = torch.arange(len(gap), device=gap.device)
    j = nearest_plane(norm, x, gap, normal, low, high)
    return onto_plane(norm, x, -gap[every, j], normal[every, j], low, high)


def onto_plane(norm: Norm, x: Tensor, value: Tensor, normal: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """(n, \\*features) the nearest point z in the box with ``value + <normal, z - x> = 0``, as `project_on_hyperplane`."""
    offset = value.double() - (normal.double() * x.double()).flatten(1).sum(1)
    return (x + project_on_hyperplane(norm, x, normal, offset, low, high)).clamp(low, high)


def tighten(ask: WhiteBoxAsk, path: Callable[[Tensor], Tensor], high: Tensor, margin: Tensor, steps: int) -> None:
    """Asks points of a ray from x to an adversarial point, ever nearer to where it crosses the boundary.

    Each step asks a little past the crossing that the margins at both ends foretell (regula falsi), so that on an
    affine model the excess falls twentyfold a step. The archive keeps the nearest witness among the points.

    Args:
        ask: about the samples.
        path: (n,) float64 -> (n, \\*features); ``path(0)`` is x.
        high: (n,) float64 where the ray is adversarial.
        margin: (n,) the criterion's margin there, negative.
        steps: forwards a sample.
    """
    problem = ask.problem
    low = torch.zeros_like(high)
    at_low = problem.criterion.margin(ask.clean, problem.y, problem.target).double()
    at_high = margin.double()
    for _ in range(steps):
        fraction = (at_low / (at_low - at_high)).nan_to_num(0.5).clamp(0.0, 1.0)
        middle = low + (high - low) * (fraction + _PAST * (1 - fraction))
        answer = ask.scores(path(middle))
        value, over = answer.margin.double(), answer.adversarial
        low, at_low = torch.where(over, low, middle), torch.where(over, at_low, value.clamp_min(0))
        high, at_high = torch.where(over, middle, high), torch.where(over, value, at_high)
