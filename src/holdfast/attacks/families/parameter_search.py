"""Searches over few free features with labels alone: every cell of a grid, and random draws.

They serve problems in which a handful of features may change, as the parameters of lifted samples do. One step asks many
points of each sample.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.attack import Attack, State
from holdfast.core.arrays import on_device
from holdfast.core.cards import Card, parameter
from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.judge.asks import HardLabelAsk
from holdfast.numerics.distance import box
from holdfast.numerics.project import linf_bounds, project

__all__ = ["GridSearch", "ParameterSearch", "SearchState", "WorstOfK"]

_MOST = 32  # free features


def _card(title: str, summary: str, failure: str) -> Card:
    return Card(
        title=title,
        rows=("E38", "T03"),
        paper="Engstrom, Tran, Tsipras, Schmidt, Madry 2019, Exploring the Landscape of Spatial Robustness, "
        "arXiv:1712.02779",
        section="2.2",
        summary=summary,
        access=Access.HARD_LABEL,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.BUDGET,
        norms=tuple(Norm),
        failure_modes=(failure,),
        checked_by="a planted vulnerable cell; the ledger equals the rows asked",
    )


@dataclass(frozen=True)
class SearchState(State):
    """The free features of each sample.

    Attributes:
        free: (n, k) int64, which features of the flat input they are.
        low: (n, k) their least values.
        high: (n, k) their largest.
    """

    free: Tensor
    low: Tensor
    high: Tensor


@dataclass(frozen=True)
class ParameterSearch(Attack[HardLabelAsk, SearchState]):
    """Asks numbered trials, ``block`` of each sample in a step; a trial is a point of the unit cube of the free features."""

    block: int = parameter(8, "trials of a sample that one step asks, at least 1", "ours: memory against calls")

    @property
    @abstractmethod
    def count(self) -> int:
        """Trials of a sample."""

    @abstractmethod
    def points(self, problem: Problem, step: np.ndarray, trial: np.ndarray, axes: int) -> Tensor:
        """(n, block, axes) points of the unit cube for the trials (n, block) of the samples' steps (n,).

        Trials beyond the last one get any point.
        """

    @property
    @override
    def iterations(self) -> int:
        return -(-self.count // self.block)

    @property
    @override
    def passes(self) -> int:
        return self.count + 1

    @override
    def check(self, problem: Problem) -> None:
        super().check(problem)
        title = self.card.title
        if self.block < 1:
            raise UsageError(f"block of {title} must be at least 1, got {self.block}")
        low, high = box(problem.set, problem.x)
        if not bool((low.isfinite() & high.isfinite()).all()):
            raise UnsupportedError(f"{title} covers the box, so the box must be finite")
        each = _mask(problem).sum(1)
        if len(each) and (bool((each != each[0]).any()) or not 0 < int(each[0]) <= _MOST):
            raise UnsupportedError(
                f"{title} searches the same number of free features for each sample, 1 to {_MOST}, not "
                f"{sorted({int(v) for v in each.cpu().numpy()})}; it is meant for the parameters of a transform"
            )

    @override
    def start(self, ask: HardLabelAsk) -> SearchState:
        problem = ask.problem
        mask = _mask(problem)
        axes = int(mask[:1].sum())
        free = mask.nonzero()[:, 1].view(-1, axes) if axes else problem.y.new_zeros(len(mask), 0)
        low, high = box(problem.set, problem.x) if problem.set.norm is Norm.L0 else linf_bounds(problem.set, problem.x)
        low, high = (edge.expand_as(problem.x).flatten(1).gather(1, free) for edge in (low, high))
        return SearchState.at(problem.x, free=free, low=low, high=high)

    @override
    def step(self, ask: HardLabelAsk, state: SearchState) -> SearchState:
        problem = ask.problem
        trial = state.step[:, None] * self.block + np.arange(self.block)
        u = self.points(problem, state.step, trial, state.free.shape[1]).to(problem.x)
        # How many trials are left is known on the host: nothing waits for the device.
        which, column = (trial < self.count).nonzero()
        some, at = ask.at(which), on_device(which, u.device)
        subset = some.problem
        low, high = state.low[at], state.high[at]
        value = torch.lerp(low, high, u[at, on_device(column, u.device)])
        z = subset.x.flatten(1).scatter(1, state.free[at], torch.minimum(torch.maximum(value, low), high))
        z = z.view_as(subset.x)
        if problem.set.norm is not Norm.LINF:  # the bounds hold the linf ball alone
            z = project(subset.ball, z, subset.x)
        some.labels(z)
        return state


@dataclass(frozen=True)
class GridSearch(ParameterSearch):
    """Every cell of a grid over the free features, those nearest to the middle first."""

    cells: tuple[int, ...] = parameter((31, 5, 5), "values of each free feature, at least 1", "Engstrom et al. 2019")

    card: ClassVar[Card] = _card(
        "Grid over parameters",
        "Asks every cell of a grid over the few features that may change.",
        "Between two cells there may be what it does not see; refine the grid.",
    )

    @property
    @override
    def count(self) -> int:
        return prod(self.cells)

    @override
    def check(self, problem: Problem) -> None:
        super().check(problem)
        if min(self.cells, default=0) < 1:
            raise UsageError(f"a grid needs at least one value of each feature, got {self.cells}")
        free = int(_mask(problem)[:1].sum())
        if len(problem) and free != len(self.cells):
            raise UsageError(f"a grid over {free} free features needs as many numbers of values, got {self.cells}")

    @override
    def points(self, problem: Problem, step: np.ndarray, trial: np.ndarray, axes: int) -> Tensor:
        lines = [
            torch.linspace(0, 1, n, dtype=torch.float64) if n > 1 else torch.tensor([0.5]).double() for n in self.cells
        ]
        grid = torch.cartesian_prod(*lines).view(-1, len(lines))
        ordered = grid[(grid - 0.5).abs().amax(1).argsort(stable=True)].to(problem.x.device)
        return ordered[on_device(np.minimum(trial, self.count - 1), problem.x.device)]


@dataclass(frozen=True)
class WorstOfK(ParameterSearch):
    """Random points, each uniform in the ranges; those of the ``growing`` features widen from nothing as trials are made."""

    trials: int = parameter(10, "points of a sample, at least 1", "Engstrom et al. 2019: worst of 10")
    growing: tuple[int, ...] = parameter(
        (), "positions of the features whose range grows with the trial", "Hosseini & Poovendran 2018: saturation"
    )

    card: ClassVar[Card] = _card(
        "Random parameters",
        "Asks random values of the few features that may change.",
        "A small region is found late: the chance of missing it falls as (1 - share)^trials.",
    )

    @property
    @override
    def count(self) -> int:
        return self.trials

    @override
    def check(self, problem: Problem) -> None:
        super().check(problem)
        if self.trials < 1:
            raise UsageError(f"trials of {self.card.title} must be at least 1, got {self.trials}")
        if any(k < 0 or (len(problem) and k >= int(_mask(problem)[:1].sum())) for k in self.growing):
            raise UsageError(f"there are no free features at the positions {self.growing}")

    @override
    def points(self, problem: Problem, step: np.ndarray, trial: np.ndarray, axes: int) -> Tensor:
        u = problem.keyed.uniform("theta", (self.block, axes), step).to(problem.x.device).double()
        if not self.growing:
            return u
        fraction = torch.ones_like(u)
        fraction[..., list(self.growing)] = on_device(trial / self.count, u.device).unsqueeze(-1)
        return 0.5 + (u - 0.5) * fraction


def _mask(problem: Problem) -> Tensor:
    """(n, d) bool: the features that may change."""
    if problem.set.mask is None:
        return torch.ones_like(problem.x, dtype=torch.bool).flatten(1)
    return problem.set.mask.expand_as(problem.x).flatten(1)
