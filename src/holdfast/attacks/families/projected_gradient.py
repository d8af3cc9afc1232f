"""The loop that PGD and its kin share: projected steepest ascent inside the budget set, from random starts."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.attack import Attack, State
from holdfast.attacks.common.grid import gridless, valid
from holdfast.core.cards import parameter
from holdfast.core.problem import Problem
from holdfast.core.threat import Norm
from holdfast.judge.oracles import WhiteBoxOracle
from holdfast.numerics.losses import Loss
from holdfast.numerics.project import linf_bounds, project
from holdfast.numerics.sampling import uniform_in_ball
from holdfast.numerics.steps import pinned_by_box, steepest

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


@dataclass(frozen=True)
class ProjectedGradient(Attack[WhiteBoxOracle, P]):
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

    @property
    @override
    def rounds(self) -> int:
        return self.restarts

    @property
    @override
    def iterations(self) -> int:
        return self.steps

    @abstractmethod
    def ascent(self, oracle: WhiteBoxOracle, problem: Problem, state: P) -> tuple[Tensor, P]:
        """(n, \\*features) the gradient to follow at the iterate, and the state with what was learned on the way."""

    def opening(self, problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
        """First iterate, and the bounds of the state."""
        ball, x = gridless(problem), problem.x
        low = high = x.new_empty(len(x), 0)
        if ball.norm is Norm.LINF:
            low, high = linf_bounds(ball, x)
        return (uniform_in_ball(ball, x, problem.keyed, "start") if self.random_start else x), low, high

    @override
    def step(self, oracle: WhiteBoxOracle, problem: Problem, state: P) -> P:
        grad, state = self.ascent(oracle, problem, state)
        x = state.x + self._move(problem, state.x, grad)
        if problem.set.norm is Norm.LINF:
            return replace(state, x=x.clamp_(state.low, state.high))  # the projection, its bounds computed once
        return replace(state, x=project(gridless(problem), x, problem.x))

    @override
    def conclude(self, oracle: WhiteBoxOracle, problem: Problem, state: P) -> None:
        oracle.logits(valid(problem, state.x), problem.rows)

    def _move(self, problem: Problem, x: Tensor, grad: Tensor) -> Tensor:
        norm, share = problem.set.norm, self.relative_step or 2.5 / self.steps
        if norm is Norm.L0:
            # No step is steepest for l0: the gradient, scaled so that its largest entry crosses the box; shorter steps
            # never displace a feature that is in. The projection keeps those that gain most (Croce & Hein 2019).
            largest = problem.flat(grad.flatten(1).abs().amax(1)).clamp_min(torch.finfo(grad.dtype).tiny)
            return (self.relative_step or 1.0) * (problem.set.upper - problem.set.lower) * grad / largest
        eps = problem.flat(problem.set.eps).to(grad.dtype)
        if norm is not Norm.L1:
            return share * eps * steepest(norm, grad)
        pinned = pinned_by_box(problem.set, x, problem.x, grad)
        return share * eps * steepest(norm, grad, share=self.sparsity, pinned=pinned)
