"""The normal of a decision boundary at a point, estimated from the labels around it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from holdfast.core.arrays import on_device
from holdfast.core.problem import Problem
from holdfast.judge.asks import HardLabelAsk
from holdfast.numerics.distance import box

__all__ = ["mean_direction"]

_NUMBERS = 1 << 15  # of a block of directions of one sample: what bounds the memory of an estimate
_LENGTH = 64  # directions of a block at most

Directions = Callable[[Problem, int, np.ndarray], Tensor]


def mean_direction(
    ask: HardLabelAsk,
    x: Tensor,
    count: np.ndarray,
    radius: Tensor,
    directions: Directions,
    blocks: np.ndarray,
) -> tuple[Tensor, np.ndarray]:
    """The sum of random directions, each signed by whether it leads to the adversarial side, less what the mean sign
    explains (HopSkipJump's estimate). Asked block by block.

    Args:
        ask: about the samples, which are charged for every direction.
        x: (n, \\*features) next to the boundary.
        count: (n,) on the host, directions of each sample.
        radius: (n,) float64 how far to look.
        directions: (problem, k, blocks) -> (n, k, \\*features), the directions number ``k * blocks`` and on of each.
        blocks: (n,) int64 on the host: blocks that each sample has drawn.

    Returns:
        (n, \\*features) float64, not scaled, and the blocks drawn.
    """
    problem = ask.problem
    shape = tuple(x.shape[1:])
    length = max(1, min(_LENGTH, _NUMBERS // max(1, problem.x[0].numel() if len(x) else 1)))
    moments, seen = x.new_zeros((2, *x.shape), dtype=torch.float64), x.new_zeros((2, len(x)), dtype=torch.float64)
    for j in range(-(-int(count.max(initial=0)) // length)):
        rows = np.flatnonzero(count > j * length)
        subset, at = problem.select(rows), on_device(rows, x.device)
        u, z = _looked_at(subset, x[at], radius[at], directions(subset, length, blocks[rows] + j))
        drawn, column = (np.arange(length) < (count[rows] - j * length)[:, None]).nonzero()
        sample, which = on_device(drawn, x.device), on_device(column, x.device)
        # The directions of an estimate may be shorter than a step of the grid: on it, they would all be asked at x.
        told = ask.as_given.at(rows[drawn]).labels(z[sample, which])
        weight = torch.zeros((2, len(rows), length), dtype=torch.float64, device=x.device)
        weight[0, sample, which] = told.answered.double()
        weight[1, sample, which] = torch.where(told.adversarial, 1.0, -1.0).double() * told.answered
        moments[:, at] += torch.einsum("man,anf->maf", weight, u.flatten(2).double()).view(2, -1, *shape)
        seen[:, at] += weight.sum(2)
    mean = seen[1] / seen[0].clamp_min(1)
    one_sided = problem.flat(mean.abs() == 1)
    estimate = torch.where(one_sided, problem.flat(mean) * moments[0], moments[1] - problem.flat(mean) * moments[0])
    return estimate, blocks + -(-count // length)


def _looked_at(problem: Problem, x: Tensor, radius: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """The directions as the box lets them be, in units of the radius, and the points that they lead to."""
    low, high = (edge.expand_as(x).unsqueeze(1) for edge in box(problem.set, problem.x))
    u = u.masked_fill(low == high, 0.0)
    norms = u.flatten(2).square().sum(2).sqrt().clamp_min(torch.finfo(x.dtype).tiny)
    each = (*norms.shape, *[1] * (x.ndim - 1))
    step = problem.flat(radius).to(x.dtype).unsqueeze(1)
    z = torch.minimum(torch.maximum(x.unsqueeze(1) + step * u / norms.view(each), low), high)
    return (z - x.unsqueeze(1)) / step.clamp_min(torch.finfo(x.dtype).tiny), z
