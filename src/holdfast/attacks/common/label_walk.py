"""What walks along a decision boundary share: a start that is adversarial, and the way from it to the boundary."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, log2

import numpy as np
import torch
from torch import Tensor

from holdfast.core.arrays import on_device
from holdfast.core.problem import Problem
from holdfast.core.threat import Goal, Norm
from holdfast.judge.asks import HardLabelAsk
from holdfast.numerics.distance import between, box, distance
from holdfast.numerics.search import bisect

__all__ = ["adversarial_starts", "halvings", "host_rows", "ray", "to_boundary"]

_COARSE = 6  # halvings of a start that is compared with others


def adversarial_starts(
    ask: HardLabelAsk, *, tries: int, candidates: int, starts: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """An adversarial point of each sample: of several starts, the one that is nearest once it is drawn toward x.

    A later start first has to be adversarial where it is as near as the best so far. Reads the draws named "start".

    Args:
        ask: about the samples, which are charged for every point.
        tries: starts tried at most.
        candidates: starts that are compared: so many tries are made from the one on that found the first.
        starts: None, or (K, \\*features), an input of each class to start from.

    Returns:
        (n, \\*features) the points, near the boundary and asked (x where there is none), and (n,) bool, where there is
        one.
    """
    problem = ask.problem
    x, norm = problem.x.clone(), problem.set.norm
    nearest, compared = torch.full_like(problem.set.eps, float("inf")), np.zeros(len(x), dtype=np.int64)
    for k in range(tries):
        rows = np.flatnonzero(compared < candidates)
        if not len(rows):
            break
        some, at = ask.at(rows), on_device(rows, x.device)
        path, far = ray(some.problem, _try(some.problem, k, starts))
        end = between(norm, path(far), some.problem.x)
        limit = torch.where(nearest[at] < end, far * nearest[at] / end, far)
        yes = some.adversarial(path(limit))
        better = host_rows(yes)
        if len(better):
            x[at[yes]] = to_boundary(some.at(better), path(limit)[yes], _COARSE)
            nearest[at[yes]] = between(norm, x[at[yes]], some.problem.x[yes])
        compared[rows] += nearest[at].isfinite().cpu().numpy()
    return x, nearest.isfinite()


def _try(problem: Problem, k: int, starts: Tensor | None) -> Tensor:
    """The k-th start: a given input; else in turn noise, corners of the box, a grey, noise blended with x."""
    x, (low, high), draws = problem.x, box(problem.set, problem.x), problem.keyed
    if starts is not None and (k == 0 if problem.goal is Goal.TARGETED else k < len(starts) - 1):
        label = problem.target if problem.goal is Goal.TARGETED else (problem.y + 1 + k) % len(starts)
        return problem.counted(starts)[label].clamp(low, high)
    kind, wider = k % 4, 2.0 ** min(k // 4, 60)
    # Where the box has no edges, the noise reaches further with every turn.
    span = torch.where((high - low).isfinite(), high - low, wider)
    least = torch.maximum(low, x - span)
    shape = () if kind == 2 else tuple(x.shape[1:])
    u = draws.uniform("start", shape, step=k).to(x)
    u = problem.flat(u) if kind == 2 else (u > 0.5).to(x) if kind == 1 else u
    noise = least + u * (torch.minimum(high, x + span) - least)
    return (torch.lerp(x, noise, 0.5) if kind == 3 else noise).clamp(low, high)


def halvings(problem: Problem, gamma: float = 1.0) -> int:
    """Questions of a bisection: until the interval is gamma / d^1.5 (l1, l2), gamma / d^2 (linf) of its length."""
    d = problem.x[0].numel()
    return max(1, ceil(log2(d ** (2.0 if problem.set.norm is Norm.LINF else 1.5) / gamma)))


def to_boundary(ask: HardLabelAsk, x: Tensor, halvings: int) -> Tensor:
    """The adversarial end of a bisection between the clean input and the adversarial x, ``halvings`` queries each."""
    problem = ask.problem
    path, far = ray(problem, x)
    _, end = bisect(lambda s: ask.adversarial(path(s)), torch.zeros_like(far), far, halvings)
    return torch.where(problem.flat(end < far), path(end), x)


def ray(problem: Problem, x: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The way from the clean input, at 0, to x, at the second value: straight, or by growing a box (linf)."""
    wide, edges = problem.x.double(), box(problem.set, problem.x)
    delta = x.double() - wide

    def path(fraction: Tensor) -> Tensor:
        s = problem.flat(fraction)
        move = torch.minimum(torch.maximum(delta, -s), s) if problem.set.norm is Norm.LINF else s * delta
        return (wide + move).to(x.dtype).clamp(*edges)

    return path, distance(Norm.LINF, delta) if problem.set.norm is Norm.LINF else torch.ones_like(problem.set.eps)


def host_rows(flags: Tensor) -> np.ndarray:
    """Host indices of the true entries."""
    return np.flatnonzero(flags.cpu().numpy())
