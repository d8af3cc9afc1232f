"""The move of the NES modes that begin far from x: ascent in a ball that shrinks around x, never losing what was reached
(Ilyas et al. 2018, algorithm 2).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from holdfast.attacks.common.grid import gridless, valid
from holdfast.core.problem import Problem
from holdfast.numerics.project import project

__all__ = ["FIRST_SHRINK", "approach"]

FIRST_SHRINK = 0.1  # of the ball's radius: the most that a step takes off
_RATES = 4  # step sizes tried for each shrinking of the ball
_TRIES = 8


def approach(
    problem: Problem,
    x: Tensor,
    move: Tensor,
    rate: Tensor,
    reach: Tensor,
    shrink: Tensor,
    keeps: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """The first of several moves that keeps what has been reached: the ball a little smaller and steps of decreasing
    size, then less of a shrinking, in the end none. A sample of which no move does stays.

    Args:
        problem: the samples.
        x: (n, \\*features) the iterate.
        move: (n, \\*features) the direction.
        rate: (n,) float64 the first step as a share of eps.
        reach: (n,) float64 radius of the ball.
        shrink: (n,) float64 how much is taken off it at first.
        keeps: asked at points (n, \\*features) about the samples that are True in (n,) bool; answers (n,) bool.

    Returns:
        x, reach and shrink for the next step.
    """
    eps, ball = problem.set.eps, gridless(problem)
    moved, radius, then = x, reach, shrink / 2**_RATES
    waiting = torch.ones_like(reach, dtype=torch.bool)
    for k in range(_TRIES):
        less = shrink / 4 ** (k // _RATES) if k < _TRIES - 1 else torch.zeros_like(reach)
        smaller = torch.maximum(reach - less, eps)
        size = problem.flat(rate * eps / 2 ** (k % _RATES)).to(x.dtype)
        z = project(ball.with_eps(smaller), x + size * move, problem.x)
        yes = keeps(valid(problem, z), waiting) & waiting
        moved = torch.where(problem.flat(yes), z, moved)
        radius = torch.where(yes, smaller, radius)
        then = torch.where(yes, torch.minimum(2 * less, FIRST_SHRINK * smaller), then)
        waiting = waiting & ~yes
    return moved, radius, then
