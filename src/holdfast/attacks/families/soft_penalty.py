"""The frame of the soft-label attacks of the penalty formulation: the weight of the loss, the queries, the walk back.

``minimise size(delta) + c * max(margin, -kappa)`` with the gradient of the margin estimated. The papers search for c by
whole optimisations, one after another; queries are too dear for that. Here the first success, at distance r, gives it:
were the margin m affine, the hinge would hold the iterate on the boundary for any c above ``2 r^2 / |m(x)|``. Twice that
leaves the pull toward x half of the steps; as r falls, so do c and with it the noise of the steps.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.attack import Attack, State
from holdfast.attacks.common.label_walk import host_rows, to_boundary
from holdfast.core.arrays import on_device
from holdfast.core.cards import parameter
from holdfast.core.errors import UsageError
from holdfast.core.problem import Problem
from holdfast.judge.asks import SoftLabelAsk
from holdfast.numerics.distance import between, per_sample

__all__ = ["SoftPenalty", "SoftPenaltyState", "rooted"]


_DUTY = 2.0  # how much stronger the hinge is than the pull toward x
_MOST_BOOST = 1e3


@dataclass(frozen=True, kw_only=True)
class SoftPenaltyState(State):
    """``x`` is the last iterate that was asked.

    Attributes:
        c: (n,) float64 weight of the loss.
        boost: (n,) float64 factor of c, at least 1, that grows while no iterate is adversarial.
        inner: (n,) int64 steps made.
        nearest: (n, \\*features) the nearest iterate that was adversarial, in the ball or not; x if none was.
        best_distance: (n,) float64 its distance; infinite if none was.
        over: (n,) bool: too few queries are left for another step.
    """

    c: Tensor
    boost: Tensor
    inner: Tensor
    nearest: Tensor
    best_distance: Tensor
    over: Tensor


P = TypeVar("P", bound=SoftPenaltyState)


@dataclass(frozen=True, kw_only=True)
class SoftPenalty(Attack[SoftLabelAsk, P]):
    """Steps until the queries are up, then a bisection from the nearest witness toward the clean input."""

    queries: int = parameter(10_000, "most queries of a sample, at least 1", "ours")
    c: float = parameter(1.0, "weight of the loss until the first success, above 0", "Tu et al. 2019, code")
    adapt: float = parameter(
        0.05, "growth of the weight for a step without success, at least 0", "ours, instead of searches over the weight"
    )
    kappa: float = parameter(0.0, "margin at which the loss stops to grow, at least 0", "Chen et al. 2017")
    walk: int = parameter(8, "queries that bring the result back toward x, at least 0", "ours: takes the excess out")

    @override
    def check(self, problem: Problem) -> None:
        super().check(problem)
        if not (self.c > 0 and self.kappa >= 0 and 0 <= self.adapt < 1):
            raise UsageError(f"{self.card.title} needs c > 0, kappa >= 0 and adapt in [0, 1)")

    @override
    def step(self, ask: SoftLabelAsk, state: P) -> P:
        problem = ask.problem
        rows = host_rows(~state.over)  # the engine may notice the end of a sample later: it must ask nothing more
        if len(rows) == len(problem):
            return self.move(ask, state)
        if not len(rows):
            return state
        subset, at = self.move(ask.at(rows), state.select(rows)), on_device(rows, state.x.device)
        changed: dict[str, Any] = {}
        for f in fields(state):
            old, new = getattr(state, f.name), getattr(subset, f.name)
            if isinstance(old, Tensor):
                changed[f.name] = old.index_copy(0, at, new)
        return replace(state, **changed)

    @abstractmethod
    def move(self, ask: SoftLabelAsk, state: P) -> P:
        """One step of the samples that are not over."""

    @override
    def finished(self, state: P) -> Tensor:
        return state.over

    @override
    def finalize(self, ask: SoftLabelAsk, state: P) -> None:
        problem = ask.problem
        witness, distance = ask.best
        x = torch.where(problem.flat(distance < state.best_distance), witness, state.nearest)
        rows = host_rows(torch.minimum(distance, state.best_distance).isfinite() & (distance > 0))
        if len(rows) and self.walk:
            to_boundary(ask.at(rows), x[on_device(rows, x.device)], self.walk)

    def initial(self, kind: Callable[..., P], problem: Problem, **more: Any) -> P:
        """The state at its start; ``more`` are the fields of the method's own."""
        none = torch.zeros_like(problem.set.eps)
        zero = torch.zeros_like(problem.y, dtype=torch.int64)
        return kind(
            x=problem.x,
            step=np.zeros(len(problem), dtype=np.int64),
            c=none + self.c,
            boost=none + 1,
            inner=zero,
            nearest=problem.x,
            best_distance=none + torch.inf,
            over=zero.bool(),
            **more,
        )

    def turn(self, ask: SoftLabelAsk, state: P, x: Tensor, margin: Tensor, cost: int) -> P:
        """Counts a step, sets the weight, and ends once the queries are up.

        Args:
            ask: knows the samples, and what is left.
            state: before the step.
            x: (n, \\*features) the iterate.
            margin: (n,) the loss there, kappa where it is a success; not a number where it is not known.
            cost: queries of another step.
        """
        problem = ask.problem
        good = margin >= self.kappa
        distance = torch.where(good, between(problem.set.norm, x, problem.x), torch.inf)
        best_distance, nearer = torch.minimum(state.best_distance, distance), distance < state.best_distance
        boost = (state.boost * torch.where(good, 1 / (1 + self.adapt), 1 + self.adapt)).clamp(1.0, _MOST_BOOST)
        clean = problem.criterion.margin(ask.clean, problem.y, problem.target).double()
        weight = _DUTY * 2 * best_distance.square() / clean.abs().clamp_min(torch.finfo(torch.float64).tiny)
        return replace(
            state,
            x=x,
            c=boost * torch.where(best_distance.isfinite() & weight.isfinite(), weight.clamp_max(self.c), self.c),
            boost=boost,
            inner=state.inner + 1,
            nearest=torch.where(problem.flat(nearer), x, state.nearest),
            best_distance=best_distance,
            over=ask.left < cost + self.walk,
        )


def rooted(rate: float, inner: Tensor, like: Tensor) -> Tensor:
    """``rate / sqrt(k)`` at the k-th step of each sample, shaped to broadcast: the noise of the estimates dies away.

    Example:
        >>> rooted(1.0, torch.tensor([0, 3]), torch.zeros(2, 5)).tolist()
        [[1.0], [0.5]]
    """
    return per_sample(rate / (inner + 1).to(like.dtype).sqrt(), like)
