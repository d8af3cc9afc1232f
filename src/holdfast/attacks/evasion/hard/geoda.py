"""GeoDA: from the input to the boundary along its estimated normal (Rahmati, Moosavi-Dezfooli, Frossard, Dai 2020)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.attack import Attack, State
from holdfast.attacks.common.frequencies import band, from_band
from holdfast.attacks.common.label_normal import mean_direction
from holdfast.attacks.common.label_walk import adversarial_starts, halvings, host_rows, to_boundary
from holdfast.core.arrays import on_device
from holdfast.core.cards import Card, parameter
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.judge.asks import HardLabelAsk
from holdfast.numerics.distance import between, box, distance
from holdfast.numerics.hyperplane import least_move
from holdfast.numerics.search import bisect

__all__ = ["GeoDA", "GeoDAState"]

_WAYS = 5  # ways tried with an estimate
_SHORTER = 0.999  # a way is worth a search where it is so much shorter
_COARSE = 6  # halvings of a way that is compared with others
_FEWEST = 8  # directions that an estimate is worth making from


@dataclass(frozen=True)
class GeoDAState(State):
    """``x`` is adversarial and next to the boundary.

    Attributes:
        over: (n,) bool: no start was found, or too few queries are left for another estimate.
        blocks: (n,) int64 on the host: blocks of directions that each sample has drawn.
    """

    over: Tensor
    blocks: np.ndarray


@dataclass(frozen=True, kw_only=True)
class GeoDA(Attack[HardLabelAsk, GeoDAState]):
    """Each step: the boundary's normal from the labels around x; then the point at which the way from the clean input
    that is shortest to the plane with this normal crosses the boundary.
    """

    queries: int = parameter(10_000, "most queries of a sample, at least 1", "ours; the paper reports up to 20 000")
    each: int = parameter(200, "queries for one step on average", "ours: curved boundaries want steps; 500 in the code")
    ratio: float = parameter(
        0.9, "lambda in (0, 1]: estimates grow by lambda^(-2/3)", "ours, for more steps; 0.6 in Rahmati et al. 2020"
    )
    fewest: int = parameter(20, "directions of an estimate at least", "ours: fewer tell little")
    frequencies: float = parameter(
        0.5, "share of the lowest frequencies of an axis, in (0, 1]", "ours; 75 of 224 in Rahmati et al. 2020"
    )
    gamma: float = parameter(1.0, "scale of the radius of the labels and of the bisection", "as HopSkipJump")
    tries: int = parameter(100, "starts tried, at least 1", "as HopSkipJump")
    candidates: int = parameter(50, "starts compared, at least 1", "as HopSkipJump")
    starts: Tensor | None = parameter(None, "(K, *features) an input of each class to start from", "as HopSkipJump")

    card: ClassVar[Card] = Card(
        title="GeoDA",
        rows=("E34", "T03"),
        paper="Rahmati, Moosavi-Dezfooli, Frossard, Dai 2020, GeoDA: a geometric framework for black-box adversarial "
        "attacks, arXiv:2003.06468",
        section="2.2",
        summary="Estimates the boundary's normal from labels and goes from the input along it to the boundary.",
        access=Access.HARD_LABEL,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.MINIMAL_DISTORTION,
        norms=(Norm.L1, Norm.L2, Norm.LINF),
        affine_ratio={Norm.L1: 1.3, Norm.L2: 1.1, Norm.LINF: 1.1},
        failure_modes=(
            "A start must be found: noise may be of the label's own class, and seldom is of a target's; give `starts`.",
            "It takes the boundary for a plane: where it is curved, the way along the normal leads nowhere nearer.",
            "Where the boundary turns quickly, low frequencies do not hold its normal.",
        ),
        checked_by="the exact affine oracle; the angle to the true normal; the logs of Sign-OPT on its MNIST network",
    )

    @property
    @override
    def iterations(self) -> int:
        return max(1, round(self.queries / self.each))

    @override
    def start(self, ask: HardLabelAsk) -> GeoDAState:
        problem = ask.problem
        x, started = adversarial_starts(ask, tries=self.tries, candidates=self.candidates, starts=self.starts)
        rows = host_rows(started)
        if len(rows):
            at = on_device(rows, x.device)
            x = x.index_copy(0, at, to_boundary(ask.at(rows), x[at], halvings(problem, self.gamma)))
        return GeoDAState.at(x, over=~started, blocks=np.zeros(len(x), dtype=np.int64))

    @override
    def step(self, ask: HardLabelAsk, state: GeoDAState) -> GeoDAState:
        problem = ask.problem
        x = state.x
        count = self._directions_now(ask.left, problem, state)
        over = count < _FEWEST
        count = count.masked_fill(over, 0)
        low, high = box(problem.set, problem.x)
        free = (high > low).expand_as(x).flatten(1).sum(1).clamp_min(1).double()
        x_distance = between(Norm.L2, x, problem.x)
        normal, blocks = mean_direction(
            ask, x, count.cpu().numpy(), self.gamma * x_distance / free, self._directions, state.blocks
        )
        normal = normal / problem.flat(distance(Norm.L2, normal).clamp_min(torch.finfo(torch.float64).tiny))
        return replace(state, x=self._through(ask, x, normal, count > 0), over=over, blocks=blocks)

    @override
    def finished(self, state: GeoDAState) -> Tensor:
        return state.over

    def _directions_now(self, left: Tensor, problem: Problem, state: GeoDAState) -> Tensor:
        """(n,) directions of this step: of what is left, after the searches of all steps to come, the share that lets
        the estimates grow geometrically, the fastest way to a small final distance.
        """
        search = halvings(problem, self.gamma) + _WAYS + _COARSE
        steps = on_device(self.iterations - state.step, left.device).double()
        growth = self.ratio ** (-2 / 3)
        total = steps if growth == 1 else (growth**steps - 1) / (growth - 1)
        count = ((left - steps * search) / total).long().clamp_min(self.fewest)
        return torch.minimum(count, left - search)

    def _directions(self, problem: Problem, count: int, block: np.ndarray) -> Tensor:
        shape = tuple(problem.x.shape[1:])
        low = problem.keyed.normal("direction", (count, *band(shape, self.frequencies)), step=block).to(problem.x)
        return from_band(low.flatten(0, 1), shape).view(*low.shape[:2], *shape)

    def _through(self, ask: HardLabelAsk, x: Tensor, normal: Tensor, active: Tensor) -> Tensor:
        """The nearest point found where ways from the clean input cross the boundary: the way to the point of the
        estimated plane that is nearest inside the box, then, in case the boundary is curved, ways ever nearer to the
        one to x. Each way first has to be adversarial where it is as near as the best so far.
        """
        problem = ask.problem
        norm, (low, high) = problem.set.norm, (edge.double() for edge in box(problem.set, problem.x))
        wide = problem.x.double()
        here = x.double() - wide
        gap = (normal * here).flatten(1).sum(1)
        foot = least_move(norm, normal, gap.clamp_min(0), wide, low, high)
        best, nearest = x.clone(), between(norm, x, problem.x)
        ways, bracket = here.clone(), torch.zeros((2, len(x)), dtype=torch.float64, device=x.device)
        rows = host_rows(active & (gap > 0))
        if not len(rows):
            return best
        some, at = ask.at(rows), on_device(rows, x.device)
        for k in range(_WAYS):
            way = here[at] + (foot[at] - here[at]) / 2**k
            far = _SHORTER * nearest[at] / distance(norm, way).clamp_min(torch.finfo(torch.float64).tiny)
            yes = some.adversarial(_along(some.problem, way, far))
            better = host_rows(yes)
            if not len(better):
                continue
            nearer, yes_far = some.at(better), far[yes]
            path = partial(_along, nearer.problem, way[yes])
            low, end = bisect(
                lambda s, a=nearer, q=path: a.adversarial(q(s)), torch.zeros_like(yes_far), yes_far, _COARSE
            )
            best[at[yes]] = path(end)
            nearest[at[yes]] = between(norm, best[at[yes]], nearer.problem.x)
            ways[at[yes]], bracket[0, at[yes]], bracket[1, at[yes]] = way[yes], low, end
        rows = host_rows(bracket[1] > 0)
        if len(rows):
            last, at = ask.at(rows), on_device(rows, x.device)
            fine = halvings(problem, self.gamma) - _COARSE
            path = partial(_along, last.problem, ways[at])
            _, end = bisect(lambda s: last.adversarial(path(s)), bracket[0, at], bracket[1, at], fine)
            best[at] = path(end)
        return best


def _along(problem: Problem, way: Tensor, fraction: Tensor) -> Tensor:
    return (problem.x.double() + problem.flat(fraction) * way).to(problem.x.dtype).clamp(*box(problem.set, problem.x))
