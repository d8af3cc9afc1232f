"""Signed gradient steps downhill, each point for a group of its own."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.falsification.trials import Along, Trials

__all__ = ["End", "descend"]

_STEPS = 60
_MOMENTUM = 0.75
_PATIENCE = 5  # steps without gain before a step is halved


class End(NamedTuple):
    """What descents have reached: the least scores (n,), where, and for which groups."""

    score: Tensor
    x: Tensor
    target: Tensor


def descend(trials: Trials, x: Tensor, target: Tensor, along: Along, first: float) -> Tensor | End | None:
    """Goes downhill with momentum, with steps that are halved where nothing is gained.

    Args:
        trials: tries the points.
        x: (n, \\*features).
        target: (n,) int64, the group that each is to break.
        along: what is followed.
        first: the first step, as a part of the box.

    Returns:
        A witness, or where it ends; None if time is up before.
    """
    wide, shape = trials.upper - trials.lower, (-1,) + (1,) * (x.ndim - 1)
    size = x.new_full((len(x),), first)
    best_x, best = x, x.new_full((len(x),), math.inf)
    before, since = x, torch.zeros(len(x), dtype=torch.long, device=x.device)
    for step in range(_STEPS + 1):
        value, grad, scores = trials.gradient(x, target, along)
        witness = trials.settle(x, scores)
        if witness is not None or trials.over:
            return witness
        better = value < best
        best_x, best = torch.where(better.view(shape), x, best_x), torch.minimum(value, best)
        if step == _STEPS:
            break
        since = torch.where(better, 0, since + 1)
        stuck = since >= _PATIENCE
        size, since = torch.where(stuck, size / 2, size), torch.where(stuck, 0, since)
        moved = x - size.view(shape) * wide * _direction(grad, wide, along)
        moved = moved.clamp(trials.lower, trials.upper)
        if step:
            moved = x + _MOMENTUM * (moved - x) + (1 - _MOMENTUM) * (x - before)
            moved = moved.clamp(trials.lower, trials.upper)
        before, x = x, torch.where(stuck.view(shape), best_x, moved)
    return End(best, best_x, target)


def _direction(grad: Tensor, wide: Tensor, along: Along) -> Tensor:
    """Steps in parts of the box, at most 1 in each input."""
    if along is not Along.GRADIENT:
        return grad.sign()
    scaled = grad * wide
    return scaled / scaled.abs().amax(tuple(range(1, grad.ndim)), keepdim=True).clamp_min(1e-300)
