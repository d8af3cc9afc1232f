"""What attacks with one perturbation v for many samples share: its ball, and how it lies on a sample."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from holdfast.attacks.common.grid import valid
from holdfast.core.problem import Problem
from holdfast.core.sets import LpBall
from holdfast.numerics.project import project

__all__ = ["on_samples", "project_shared"]


def on_samples(problem: Problem, v: Tensor) -> Tensor:
    """(n, \\*features) ``x + v``, moved into each sample's set: its own eps, box, mask and grid.

    Args:
        problem: the samples.
        v: (\\*features).
    """
    return valid(problem, project(replace(problem.set, grid=None), problem.x + v, problem.x))


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
    edge = torch.full((), float("inf"), dtype=v.dtype, device=v.device)
    ball = LpBall(set.norm, set.eps.amax().view(1), -edge, edge)
    return project(ball, v.unsqueeze(0), torch.zeros_like(v).unsqueeze(0))[0]
