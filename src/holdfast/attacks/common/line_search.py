"""The move of the NES modes that begin far from x: ascent in a ball that shrinks around x, never losing what was reached
(Ilyas et al. 2018, algorithm 2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from holdfast.attacks.common.label_walk import host_rows
from holdfast.core.arrays import on_device
from holdfast.judge.asks import HardLabelAsk
from holdfast.numerics.project import project

__all__ = ["FIRST_SHRINK", "line_search"]

FIRST_SHRINK = 0.1  # of the ball's radius: the most that a step takes off
_RATES = 4  # step sizes tried for each shrinking of the ball
_TRIES = 8

A = TypeVar("A", bound=HardLabelAsk)


def line_search(
    ask: A,
    x: Tensor,
    move: Tensor,
    rate: Tensor,
    radius: Tensor,
    shrink: Tensor,
    keeps: Callable[[A, Tensor], Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """The first of several moves that keeps what has been reached: the ball a little smaller and steps of decreasing
    size, then less of a shrinking, in the end none. A sample of which no move does stays.

    Args:
        ask: about the samples.
        x: (n, \\*features) the iterate.
        move: (n, \\*features) the direction.
        rate: (n,) float64 the first step as a share of eps.
        radius: (n,) float64 of the ball.
        shrink: (n,) float64 how much is taken off it at first.
        keeps: asks about points (m, \\*features) of those samples that still wait for one; answers (m,) bool.

    Returns:
        x, radius and shrink for the next step.
    """
    problem = ask.problem
    eps, moved, then = problem.set.eps, x, shrink / 2**_RATES
    after = radius
    waiting = torch.ones_like(radius, dtype=torch.bool)
    for k in range(_TRIES):
        rows = host_rows(waiting)
        if not len(rows):
            break
        less = shrink / 4 ** (k // _RATES) if k < _TRIES - 1 else torch.zeros_like(radius)
        smaller = torch.maximum(radius - less, eps)
        length = problem.flat(rate * eps / 2 ** (k % _RATES)).to(x.dtype)
        z = project(problem.ball.with_eps(smaller), x + length * move, problem.x)
        at = on_device(rows, x.device)
        yes = torch.zeros_like(waiting).index_copy_(0, at, keeps(ask.at(rows), z[at]))
        moved = torch.where(problem.flat(yes), z, moved)
        after = torch.where(yes, smaller, after)
        then = torch.where(yes, torch.minimum(2 * less, FIRST_SHRINK * smaller), then)
        waiting = waiting & ~yes
    return moved, after, then
