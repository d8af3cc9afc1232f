"""The loop of the Fast Adaptive Boundary attack (Croce & Hein 2020, algorithm 1), shared by FAB and FAB-T."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.attack import Attack, State
from holdfast.attacks.common.boundary import leave_a_class, tighten
from holdfast.core.arrays import on_device
from holdfast.core.cards import parameter
from holdfast.core.problem import Problem
from holdfast.core.threat import Goal
from holdfast.judge.asks import WhiteBoxAsk
from holdfast.numerics.distance import between, box, distance
from holdfast.numerics.hyperplane import project_on_hyperplane
from holdfast.numerics.sampling import uniform_in_ball

__all__ = ["FastBoundary", "FastBoundaryState", "Plane"]


class Plane(NamedTuple):
    """A linearised boundary: ``value + <normal, z - x> = 0``; value (n,), normal (n, \\*features).

    It lies as far beyond the tie as rounding may move a margin (`holdfast.core.criterion.Criterion.unsure`).
    """

    value: Tensor
    normal: Tensor

    @classmethod
    def of_criterion(cls, ask: WhiteBoxAsk, x: Tensor) -> Plane:
        """The criterion's margin, linearised at x: one forward and one backward.

        Targeted, where the margin vanishes is the boundary between the target and whichever class is best at x.
        """
        g = ask.gradient(x, ask.problem.criterion.margin)
        return cls(g.value + g.unsure, g.grad.nan_to_num(0.0))


@dataclass(frozen=True, kw_only=True)
class FastBoundaryState(State):
    """Attributes:
    best: (n, \\*features) the nearest adversarial point of this round, inside the ball or not.
    best_distance: (n,) float64 its distance; infinite if there is none.
    margin: (n,) the criterion's margin there.
    over: (n,) bool: nothing is to be done in this round.
    """

    best: Tensor
    best_distance: Tensor
    margin: Tensor
    over: Tensor


@dataclass(frozen=True, kw_only=True)
class FastBoundary(Attack[WhiteBoxAsk, FastBoundaryState]):
    """Projects the iterate and the clean input on the nearest linearised boundary in the box, mixes the two with a bias
    toward the clean input, and steps back toward it whenever the boundary was crossed.
    """

    steps: int = parameter(100, "steps of a round, at least 1", "Croce & Hein 2020, section 4")
    restarts: int = parameter(1, "starts, at least 1; the first at x, the others random", "AutoAttack")
    alpha_max: float = parameter(0.1, "largest bias toward x, 0 to 1", "Croce & Hein 2020, section 4")
    eta: float = parameter(1.05, "extrapolation past the boundary, at least 1", "Croce & Hein 2020, section 4")
    beta: float = parameter(0.9, "share of delta that a backward step keeps, 0 to 1", "Croce & Hein 2020, section 4")
    search: int = parameter(3, "forwards of the final search along the ray to x", "Croce & Hein 2020, section 3.3")

    @abstractmethod
    def restart(self, problem: Problem) -> np.ndarray:
        """(n,) which start the round of each sample is; 0 starts at x."""

    @abstractmethod
    def plane(self, ask: WhiteBoxAsk, x: Tensor) -> Plane:
        """The linearised boundary that each sample walks to."""

    @override
    def check(self, problem: Problem) -> None:
        super().check(problem)
        if problem.goal is not Goal.TARGETED:
            leave_a_class(self.card.title, problem)

    @override
    def start(self, ask: WhiteBoxAsk) -> FastBoundaryState:
        problem = ask.problem
        x = problem.x
        again = np.flatnonzero(self.restart(problem) > 0)
        if len(again):
            x = x.index_copy(0, on_device(again, x.device), _random_start(ask.at(again)))
        nothing = torch.zeros_like(problem.set.eps)
        return FastBoundaryState.at(
            x,
            best=problem.x,
            best_distance=nothing + float("inf"),
            margin=nothing,
            over=torch.zeros_like(problem.y).bool(),
        )

    @override
    def step(self, ask: WhiteBoxAsk, state: FastBoundaryState) -> FastBoundaryState:
        problem = ask.problem
        low, high = (edge.expand_as(state.x) for edge in box(problem.set, problem.x))
        x = self._mix(ask, state, low, high).clamp(low, high)
        answer = ask.scores(x)
        crossed, margin = answer.adversarial, answer.margin.double()
        size = between(problem.set.norm, x, problem.x)
        better = crossed & (size < state.best_distance)
        back = problem.x + self.beta * (x - problem.x)
        return replace(
            state,
            x=torch.where(problem.flat(crossed), back, x).clamp(low, high),
            best=torch.where(problem.flat(better), x, state.best),
            best_distance=torch.where(better, size, state.best_distance),
            margin=torch.where(better, margin, state.margin),
        )

    @override
    def finished(self, state: FastBoundaryState) -> Tensor:
        return state.over

    @override
    def finalize(self, ask: WhiteBoxAsk, state: FastBoundaryState) -> None:
        rows = np.flatnonzero(state.best_distance.isfinite().cpu().numpy())
        some, at = ask.at(rows), state.select(rows)
        subset = some.problem
        low, high = box(subset.set, subset.x)

        def path(fraction: Tensor) -> Tensor:
            wide = subset.x.double()
            return (wide + subset.flat(fraction) * (at.best.double() - wide)).to(subset.x.dtype).clamp(low, high)

        tighten(some, path, torch.ones_like(at.best_distance), at.margin, self.search)

    def _mix(self, ask: WhiteBoxAsk, state: FastBoundaryState, low: Tensor, high: Tensor) -> Tensor:
        """The biased mean of where the iterate and the clean input reach the boundary, both a little past it."""
        problem = ask.problem
        norm, clean, x, n = problem.set.norm, problem.x, state.x, len(state.x)
        value, normal = self.plane(ask.as_given, x)  # of the model between valid points too
        normal = normal.nan_to_num(0.0)
        offset = value.double() - (normal.double() * x.double()).flatten(1).sum(1)
        twice = (torch.cat([t, t]) for t in (normal, offset, low, high))
        delta = project_on_hyperplane(norm, torch.cat([x, clean]), *twice)
        size = distance(norm, delta)
        ours, theirs = size[:n], size[n:]
        bias = (ours / (ours + theirs).clamp_min(torch.finfo(torch.float64).tiny)).clamp_max(self.alpha_max)
        eta = torch.full_like(bias, self.eta)
        if problem.goal is Goal.TARGETED:
            # Several classes may be in the target's way. Until all are passed, a pull to x leads back to the first, and
            # only ever longer steps surely leave two of them.
            crossed = state.best_distance.isfinite()
            bias = torch.where(crossed, bias, 0.0)
            eta = torch.where(crossed, eta, eta + on_device(state.step, x.device) / self.steps)
        alpha, eta = problem.flat(bias).to(x.dtype), problem.flat(eta).to(x.dtype)
        return (1 - alpha) * (x + eta * delta[:n]) + alpha * (clean + eta * delta[n:])


def _random_start(ask: WhiteBoxAsk) -> Tensor:
    """Half as far as the nearest point known, or as eps, whichever is less; half-way to noise if neither is known."""
    problem = ask.problem
    draws, (low, high) = problem.keyed, box(problem.set, problem.x)
    radius = torch.minimum(ask.best[1], problem.set.eps)
    ball = problem.set.with_eps(torch.where(radius.isfinite(), radius / 2, 1.0))
    near = uniform_in_ball(ball, problem.x, draws, "start")
    noise = draws.uniform("far", tuple(problem.x.shape[1:])).to(problem.x)
    width = torch.where((high - low).isfinite(), high - low, 1.0)
    least = torch.maximum(low, problem.x - width)
    far = problem.x + 0.5 * (least + noise * (torch.minimum(high, problem.x + width) - least) - problem.x)
    return torch.where(problem.flat(radius.isfinite()), near, far)
