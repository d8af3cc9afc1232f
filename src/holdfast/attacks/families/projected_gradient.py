"""The loop that PGD and its kin share: projected steepest ascent inside the budget set, from random starts."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import TypeVar

from torch import Tensor
from typing_extensions import override

from holdfast.attacks.attack import Attack, State
from holdfast.core.cards import parameter
from holdfast.core.problem import Problem
from holdfast.core.threat import Norm
from holdfast.judge.asks import WhiteBoxAsk
from holdfast.numerics import ascent
from holdfast.numerics.losses import Loss
from holdfast.numerics.project import linf_bounds
from holdfast.numerics.sampling import uniform_in_ball
from holdfast.numerics.steps import pinned_by_box

__all__ = ["ProjectedGradient", "ProjectedState"]


@dataclass(frozen=True)
class ProjectedState(State):
    """The iterate, and for linf the set.

    Attributes:
        low: (n, \\*features) least values of the linf set; (n, 0) for the other norms.
        high: largest values, likewise.
    """

    low: Tensor
    high: Tensor


P = TypeVar("P", bound=ProjectedState)


@dataclass(frozen=True, kw_only=True)
class ProjectedGradient(Attack[WhiteBoxAsk, P]):
    """``x <- project(x + step * steepest(gradient))``, from a random point of the set, ``restarts`` times."""

    steps: int = parameter(40, "gradient steps of a restart, at least 1", "Madry et al. 2018, MNIST")
    restarts: int = parameter(1, "random starts, at least 1", "Madry et al. 2018; raise it for a stronger attack")
    relative_step: float | None = parameter(
        None, "step as a share of eps; None: 2.5 / steps", "Madry et al. 2018: 2.5 eps / steps reaches the whole ball"
    )
    loss: str | Loss = parameter(
        "ce", "ce, margin, dlr, joint (under a detector), or a loss of one's own", "Madry et al. 2018 use cross-entropy"
    )
    random_start: bool = parameter(True, "start at a uniform point of the set", "Madry et al. 2018")
    sparsity: float = parameter(
        0.02, "l1: share of the features that a step moves, in (0, 1]", "ours; SLIDE (Tramer & Boneh 2019) moves 1 %"
    )

    @abstractmethod
    def ascent(self, ask: WhiteBoxAsk, state: P) -> tuple[Tensor, P]:
        """(n, \\*features) the gradient to follow at the iterate, and the state with what was learned on the way."""

    def initial(self, problem: Problem) -> ProjectedState:
        """The state of new samples, but for what a method knows beside."""
        ball, x = problem.ball, problem.x
        low = high = x.new_empty(len(x), 0)
        if ball.norm is Norm.LINF:
            low, high = linf_bounds(ball, x)
        start = uniform_in_ball(ball, x, problem.keyed, "start") if self.random_start else x
        return ProjectedState.at(start, low=low, high=high)

    @override
    def step(self, ask: WhiteBoxAsk, state: P) -> P:
        problem = ask.problem
        grad, state = self.ascent(ask, state)
        ball, fraction = problem.ball, self.relative_step or 2.5 / self.steps
        length, pinned = fraction * problem.flat(ball.eps).to(grad.dtype), None
        if ball.norm is Norm.L0:  # as long as crosses the box, for shorter ones never displace a feature that is in
            length = (self.relative_step or 1.0) * (ball.upper - ball.lower)
        elif ball.norm is Norm.L1:
            pinned = pinned_by_box(ball, state.x, problem.x, grad)
        bounds = (state.low, state.high) if ball.norm is Norm.LINF else None
        x = ascent.step(ball, state.x, grad, problem.x, length, sparsity=self.sparsity, pinned=pinned, bounds=bounds)
        return replace(state, x=x)
