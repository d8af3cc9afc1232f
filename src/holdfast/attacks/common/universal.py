"""What attacks with one perturbation v for many samples share: its ball, and how it lies on a sample."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi

import torch
from torch import Tensor

from holdfast.attacks.common.grid import valid
from holdfast.attacks.shared import SharedState
from holdfast.core.problem import Problem
from holdfast.core.sets import LpBall
from holdfast.numerics.ascent import step
from holdfast.numerics.project import project

__all__ = ["UniversalState", "ascend", "falling", "on_samples", "project_shared"]


@dataclass(frozen=True)
class UniversalState(SharedState):
    """Attributes:
    v: (\\*features) the perturbation.
    """

    v: Tensor


def on_samples(problem: Problem, v: Tensor) -> Tensor:
    """(n, \\*features) ``x + v``, moved into each sample's set: its own eps, box, mask and grid.

    Args:
        problem: the samples.
        v: (\\*features).
    """
    return valid(problem, project(problem.ball, problem.x + v, problem.x))


def project_shared(set: LpBall, v: Tensor) -> Tensor:
    """v in the largest of the samples' balls, the box apart: what a sample's box cuts off, another may need.

    Args:
        set: of the samples.
        v: (\\*features).

    Example:
        >>> from holdfast.core.threat import Norm
        >>> project_shared(LpBall.uniform(Norm.LINF, 0.25, 5), torch.tensor([0.5, -0.125])).tolist()
        [0.25, -0.125]
    """
    one = v.unsqueeze(0)
    return project(_largest(set, v), one, torch.zeros_like(one))[0]


def ascend(set: LpBall, v: Tensor, grad: Tensor, fraction: float) -> Tensor:
    """``project(v + fraction * eps * steepest(grad))``, eps the largest of the samples'; l1 moves 2 % of the features.

    Args:
        set: of the samples.
        v: (\\*features).
        grad: (\\*features).
        fraction: of eps.
    """
    one, length = v.unsqueeze(0), fraction * set.eps.amax().to(grad.dtype)
    return step(_largest(set, v), one, grad.unsqueeze(0), torch.zeros_like(one), length, sparsity=0.02)[0]


def _largest(set: LpBall, like: Tensor) -> LpBall:
    """One ball without a box, as large as the largest of the samples'."""
    edge = torch.full((), float("inf"), dtype=like.dtype, device=like.device)
    return LpBall(norm=set.norm, eps=set.eps.amax().view(1), lower=-edge, upper=edge)


def falling(first: float, step: int, steps: int) -> float:
    """A step size that falls from ``first`` to 0 as half a cosine.

    Example:
        >>> [round(falling(0.1, k, 4), 4) for k in range(5)]
        [0.1, 0.0854, 0.05, 0.0146, 0.0]
    """
    return first * 0.5 * (1 + cos(pi * step / steps))
