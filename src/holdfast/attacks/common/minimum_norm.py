"""What the minimum-norm attacks share: annealing, an adversarial start, and the walk back from the best witness."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from holdfast.attacks.common.boundary import tighten
from holdfast.core.arrays import on_device
from holdfast.core.problem import Problem
from holdfast.core.threat import Norm
from holdfast.judge.asks import WhiteBoxAsk
from holdfast.numerics.distance import between, box, distance

__all__ = [
    "START_PASSES",
    "adversarial_restart",
    "adversarial_start",
    "cosine",
    "finish",
    "geometric",
    "reach_of_box",
    "walk_back",
]

_CLIMB = 8  # gradient steps of a start, the first of 1/64 of the box, each twice the one before
_FIRST = 2.0**-6
_NOISE = 8  # points of the box that are tried after them

START_PASSES = 2 * _CLIMB + 2 + _NOISE
"""Forwards and backwards that `adversarial_start` costs a sample at most."""


def reach_of_box(problem: Problem) -> Tensor:
    """(n,) float64 the distance of the farthest point of the set: no radius beyond it is of use."""
    low, high = box(problem.set, problem.x)
    far = torch.maximum(problem.x.double() - low.double(), high.double() - problem.x.double())
    return torch.minimum(distance(problem.set.norm, far), problem.set.eps)


def cosine(problem: Problem, step: np.ndarray, steps: int, first: float, last: float) -> Tensor:
    """(n,) float64 a parameter that falls from ``first`` to ``last`` along half a cosine (Loshchilov & Hutter 2017)."""
    fraction = np.minimum(step, steps) / steps
    value = last + (first - last) * (1 + np.cos(np.pi * fraction)) / 2
    return torch.as_tensor(value, dtype=torch.float64).to(problem.x.device)


def geometric(problem: Problem, step: np.ndarray, steps: int, first: float, last: float) -> Tensor:
    """(n,) float64 a parameter that falls from ``first`` to ``last`` by the same factor each step."""
    value = first * (last / first) ** (np.minimum(step, steps) / steps)
    return torch.as_tensor(value, dtype=torch.float64).to(problem.x.device)


def adversarial_start(ask: WhiteBoxAsk) -> tuple[Tensor, Tensor]:
    """An adversarial point of the box for each sample, however far.

    It is the nearest witness where one is known. Otherwise it is the first that comes up of: eight sign steps on the
    margin, each twice the one before, the last as wide as the box; the corners of the box; eight points of keyed noise.
    Only the samples that are still without one are asked.

    Args:
        ask: about the samples; eps is not looked at.

    Returns:
        (n, \\*features) the point that was asked, or the clean input; (n,) bool: it is adversarial.
    """
    problem = ask.problem
    x_adv, distance_known = ask.best
    crossed = distance_known.isfinite()
    low, high = box(problem.set, problem.x)
    scale = torch.where((high - low).isfinite(), high - low, 1.0)
    least, most = torch.maximum(low, problem.x - scale), torch.minimum(high, problem.x + scale)
    span = (most - least).expand_as(problem.x)
    here = problem.x

    for k in range(_CLIMB + 2 + _NOISE):
        at = np.flatnonzero(~crossed.cpu().numpy())  # read each time, so that nobody pays for others
        if not len(at):
            break
        some, rows = ask.at(at), on_device(at, here.device)
        subset = some.problem
        if k < _CLIMB:
            answer = some.gradient(here[rows])
            moved = here[rows] + _FIRST * 2**k * span[rows] * answer.grad.sign()
            here = here.index_copy(0, rows, moved.clamp(*box(subset.set, subset.x)))
        else:
            if k == _CLIMB:
                point = here[rows]  # where the last step led
            elif k == _CLIMB + 1:
                middle = (least + most) / 2
                point = torch.where(problem.x < middle, most, least)[rows]  # the corner that is farthest
            else:
                noise = subset.keyed.uniform("start", tuple(problem.x.shape[1:]), k).to(problem.x)
                point = least.expand_as(here)[rows] + noise * span[rows]
            answer = some.scores(point.clamp(*box(subset.set, subset.x)))
        over = answer.adversarial
        x_adv = x_adv.index_copy(0, rows, torch.where(subset.flat(over), answer.x, x_adv[rows]))
        crossed = crossed.index_copy(0, rows, over)
    return x_adv, crossed


def adversarial_restart(ask: WhiteBoxAsk, due: np.ndarray, crossed: Tensor, steps: int) -> tuple[Tensor, Tensor] | None:
    """Where a sample that has not crossed in time may go on: an adversarial start, walked back to the boundary.

    On a model whose gradients are small or masked, a start and the walk back put a search where it would get late or
    never by itself (the starting points of Pintor et al. 2021).

    Args:
        ask: about the samples.
        due: (n,) bool on the host: samples whose time is up at this step.
        crossed: (n,) bool: an iterate was adversarial.
        steps: forwards of the walk back.

    Returns:
        (n, \\*features) the points, (n,) float64 their distance, infinite for samples without one or not in need of
        one; None if nobody is due.
    """
    problem = ask.problem
    rows = np.flatnonzero(due)
    if not len(rows):
        return None
    at = rows[~crossed.cpu().numpy()[rows]]
    some, index = ask.at(at), on_device(at, problem.x.device)
    subset = some.problem
    point, started = adversarial_start(some)
    walk_back(some, point, started, steps)
    best, nearest = some.best
    point = torch.where(subset.flat(nearest.isfinite()), best, point)  # the walk's end, unless eps is too small for it
    far = torch.where(started, between(subset.set.norm, point, subset.x), float("inf"))
    nowhere = torch.full_like(problem.set.eps, float("inf"))
    return problem.x.index_copy(0, index, point), nowhere.index_copy(0, index, far)


def finish(ask: WhiteBoxAsk, steps: int, *, start: bool = True) -> None:
    """The end of a minimum-norm search: the walk back from the nearest witness; where there is none, from a start.

    Args:
        ask: about the samples.
        steps: forwards of the walk; 0 leaves it out.
        start: look for an adversarial start where no witness is known.
    """
    x_adv, best_distance = ask.best
    crossed = best_distance.isfinite()
    if start:
        at = np.flatnonzero(~crossed.cpu().numpy())
        if len(at):
            rows = on_device(at, x_adv.device)
            point, started = adversarial_start(ask.at(at))
            x_adv, crossed = x_adv.index_copy(0, rows, point), crossed.index_copy(0, rows, started)
    walk_back(ask, x_adv, crossed & (best_distance > 0), steps)


def walk_back(ask: WhiteBoxAsk, x_adv: Tensor, crossed: Tensor, steps: int) -> None:
    """Asks points ever nearer to where the way from x to x_adv crosses the boundary.

    The way is a straight line in l1 and l2; in linf a box around x that grows until it holds x_adv; in l0 the features
    of x_adv one by one, those with the largest effect first, each pushed to the edge of the box that serves it.

    Args:
        ask: about the samples.
        x_adv: (n, \\*features) adversarial points.
        crossed: (n,) bool: which of them are.
        steps: forwards a sample, one of them at x_adv; l0 takes a gradient besides.
    """
    at = np.flatnonzero(crossed.cpu().numpy())
    if steps < 2 or not len(at):
        return
    some, end = ask.at(at), x_adv[on_device(at, x_adv.device)]
    way = _by_feature(some, end) if some.problem.set.norm is Norm.L0 else _by_size(some.problem, end)
    whole = torch.ones_like(some.problem.set.eps)
    tighten(some, way, whole, some.scores(way(whole)).margin, steps - 1)


def _by_size(problem: Problem, end: Tensor) -> Callable[[Tensor], Tensor]:
    """x + share * delta; in linf delta cut to share of its size."""
    wide = problem.x.double()
    delta = end.double() - wide
    low, high = box(problem.set, problem.x)
    largest = problem.flat(delta.flatten(1).abs().amax(1))

    def way(fraction: Tensor) -> Tensor:
        s = problem.flat(fraction)
        moved = delta.clamp(-s * largest, s * largest) if problem.set.norm is Norm.LINF else s * delta
        return (wide + moved).to(end.dtype).clamp(low, high)

    return way


def _by_feature(ask: WhiteBoxAsk, end: Tensor) -> Callable[[Tensor], Tensor]:
    """x with the features that make the given share of the linearised effect of all that changed."""
    problem = ask.problem
    grad = ask.as_given.gradient(end).grad.nan_to_num(0.0)
    low, high = box(problem.set, problem.x)
    edge = torch.where(grad > 0, high, low)
    changed = end != problem.x
    best = torch.where(changed & edge.isfinite() & (grad != 0), edge, end)
    effect = (grad.double() * (best.double() - problem.x.double())).flatten(1)
    # Where the gradient says nothing, the features that changed most come first.
    size = (best.double() - problem.x.double()).abs().flatten(1)
    effect = torch.where((effect > 0).any(1, keepdim=True), effect, size)
    order = effect.argsort(dim=1, descending=True, stable=True)
    gains = effect.gather(1, order).clamp_min(0)
    before = gains.cumsum(1) - gains
    total = gains.sum(1, keepdim=True)
    share_before = torch.zeros_like(before).scatter(1, order, before / total.clamp_min(torch.finfo(before.dtype).tiny))

    def way(fraction: Tensor) -> Tensor:
        keep = (share_before < fraction.unsqueeze(1)) & (effect > 0)
        return torch.where(keep.view_as(end), best, problem.x)

    return way
