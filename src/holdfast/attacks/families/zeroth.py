"""What the soft-label attacks share: the loss at many points of each sample, and ascent on estimated gradients.

A method is estimator x solver x attack space: `holdfast.numerics.zeroth` has the estimators, `attacks.common.space` the
spaces, and here are the questions and the solver of the methods that search inside a budget.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.attack import Attack, State
from holdfast.attacks.common.grid import valid
from holdfast.core.errors import UsageError
from holdfast.core.problem import Problem
from holdfast.core.threat import Goal, Norm
from holdfast.judge.asks import SoftLabelAsk
from holdfast.numerics.distance import box
from holdfast.numerics.losses import (
    Loss,
    complete,
    cross_entropy,
    cross_entropy_targeted,
    log_margin,
    log_margin_targeted,
)
from holdfast.numerics.project import linf_bounds, project, snap_to_grid
from holdfast.numerics.steps import steepest
from holdfast.numerics.zeroth import Estimate, Estimator, Values

__all__ = [
    "Ascent",
    "AscentParameters",
    "AscentState",
    "askable",
    "coarse",
    "edges",
    "inward",
    "soft_loss",
    "soft_losses",
]


def soft_loss(goal: Goal, name: str = "log-margin", kappa: float = inf) -> Loss:
    """The loss of a soft-label attack, which it maximises, of log-probabilities that may lack classes.

    Args:
        goal: untargeted or targeted.
        name: ``log-margin`` (the hinge of ZOO, without its sign) or ``ce``.
        kappa: log-margin only: the confidence at which it stops to grow.

    Raises:
        UsageError: no such loss.
    """
    aimed = goal is Goal.TARGETED
    if name == "log-margin":
        return log_margin_targeted(kappa) if aimed else log_margin(kappa)
    if name != "ce":
        raise UsageError(f"no soft-label loss '{name}'; use log-margin or ce")
    inner = cross_entropy_targeted if aimed else cross_entropy
    return lambda scores, y, target: inner(complete(scores), y, target)


def soft_losses(ask: SoftLabelAsk, name: str = "log-margin", kappa: float = inf) -> Values:
    """`soft_loss` as a function of points (n, q, \\*features) that may be asked, (n, q) float64; see `askable`."""
    loss = soft_loss(ask.problem.goal, name, kappa)
    return lambda points: ask.as_given.losses(points, loss)


def askable(problem: Problem, low: Tensor, high: Tensor) -> Callable[[Tensor], Tensor]:
    """Points (n, q, \\*features) -> the nearest ones between the edges (n, \\*features) and on the grid."""

    def clip(points: Tensor) -> Tensor:
        n, q = points.shape[:2]
        inside = torch.minimum(torch.maximum(points, low.unsqueeze(1)), high.unsqueeze(1))
        if problem.set.grid is None:
            return inside
        sample = torch.arange(n, device=points.device).repeat_interleave(q)
        flat = snap_to_grid(problem.set.select(sample), inside.flatten(0, 1), problem.x[sample])
        return flat.view_as(points)

    return clip


def inward(problem: Problem, x: Tensor, low: Tensor, high: Tensor, reach: float) -> Tensor:
    """x moved so far from the edges, where there is room, that no step of ``reach`` is cut off: a step that the edge
    cuts to one side would bias the estimate.
    """
    room = ((high - low) / 2).clamp_max(reach)
    return valid(problem, torch.minimum(torch.maximum(x, low + room), high - room))


def edges(problem: Problem) -> tuple[Tensor, Tensor]:
    """Least and largest values (n, \\*features) that may be asked: of the linf ball if there is one, else of the box."""
    ball, x = problem.ball, problem.x
    if ball.norm is Norm.LINF:
        return linf_bounds(ball, x)
    low, high = (edge.expand_as(x) for edge in box(ball, x))
    return low, high


def coarse(problem: Problem, sigma: float) -> float:
    """sigma, or two steps of the grid if there is one and they are more: shorter steps would round to nothing."""
    return sigma if problem.set.grid is None else max(sigma, 2 * float(problem.set.grid))


@dataclass(frozen=True, kw_only=True)
class AscentState(State):
    """The iterate of a search inside the budget.

    Attributes:
        momentum: (n, \\*features) running mean of the estimates.
        rate: (n,) float64 step as a share of eps.
        history: (n, patience) float64 the last mean losses, the latest first; -inf where there is none.
        low: (n, \\*features) least values that may be asked.
        high: largest values.
    """

    momentum: Tensor
    rate: Tensor
    history: Tensor
    low: Tensor
    high: Tensor


@dataclass(frozen=True, kw_only=True)
class AscentParameters:
    """What the loop of `Ascent` takes.

    Attributes:
        queries: most queries of a sample.
        rate: first step as a share of eps.
        momentum: what the running mean of the estimates keeps, in [0, 1).
        patience: steps after which the loss must have grown, else the rate halves; 0: it never does.
        loss: see `soft_loss`.
        least_rate: the rate halves no further.
    """

    queries: int
    rate: float
    momentum: float = 0.0
    patience: int = 0
    loss: str = "log-margin"
    least_rate: float = 1e-3


@dataclass(frozen=True)
class Ascent(Attack[SoftLabelAsk, AscentState]):
    """``x <- project(x + rate * eps * steepest(direction))``, the direction from an estimate of the loss's gradient.

    A step asks the estimate's points around x and then the next iterate itself. The rate halves when the loss is less
    than it was ``patience`` steps before (Ilyas et al. 2018, authors' code).

    A method declares the parameters below and its `estimator`; it may override `direction`.
    """

    @property
    @abstractmethod
    def parameters(self) -> AscentParameters:
        """What the loop takes."""

    @abstractmethod
    def estimator(self, problem: Problem) -> Estimator:
        """The estimator of the loss's gradient."""

    def values(self, ask: SoftLabelAsk) -> Values:
        """What the estimator asks: the loss, or several values (n, q, K) of which the first is the loss."""
        return soft_losses(ask, self.parameters.loss)

    def direction(self, problem: Problem, state: AscentState, estimate: Estimate) -> tuple[Tensor, Tensor]:
        """The direction to go, (n, \\*features), and the momentum: by default a mean of the estimates that decays."""
        decay = self.parameters.momentum
        momentum = decay * state.momentum + (1 - decay) * estimate.grad
        return steepest(problem.set.norm, momentum), momentum

    @override
    def start(self, ask: SoftLabelAsk) -> AscentState:
        problem = ask.problem
        low, high = edges(problem)
        eps = problem.set.eps
        return AscentState.at(
            problem.x,
            momentum=torch.zeros_like(problem.x),
            rate=torch.full_like(eps, self.parameters.rate),
            history=eps.new_full((len(eps), max(1, self.parameters.patience)), -inf),
            low=low,
            high=high,
        )

    @override
    def step(self, ask: SoftLabelAsk, state: AscentState) -> AscentState:
        problem = ask.problem
        estimate = self.estimate(ask, state)
        move, momentum = self.direction(problem, state, estimate)
        rate, history = self._slow(state, estimate.value if estimate.value.ndim == 1 else estimate.value[:, 0])
        x = state.x + problem.flat(rate * problem.set.eps).to(move.dtype) * move
        if problem.set.norm is Norm.LINF:
            x = torch.minimum(torch.maximum(x, state.low), state.high)  # the projection, its bounds computed once
        else:
            x = project(problem.ball, x, problem.x)
        ask.scores(x)
        return replace(state, x=x, momentum=momentum, rate=rate, history=history)

    def estimate(self, ask: SoftLabelAsk, state: AscentState) -> Estimate:
        """Asks around the iterate."""
        problem = ask.problem
        estimator, shape = self.estimator(problem), tuple(state.x.shape[1:])
        centre = inward(problem, state.x, state.low, state.high, estimator.reach(shape))
        clip = askable(problem, state.low, state.high)
        return estimator(self.values(ask), centre, problem.keyed, state.step, clip)

    def _slow(self, state: AscentState, value: Tensor) -> tuple[Tensor, Tensor]:
        """The rate, halved where the loss fell over the last steps, and the history, which then starts anew."""
        if not self.parameters.patience:
            return state.rate, state.history
        history = torch.cat([value.unsqueeze(1), state.history[:, :-1]], dim=1)
        fell = (value < state.history[:, -1]) & state.history[:, -1].isfinite()
        rate = torch.where(fell, (state.rate / 2).clamp_min(self.parameters.least_rate), state.rate)
        return rate, history.masked_fill(fell.unsqueeze(1), -inf)
