"""The loop that all transfer attacks share: momentum of a gradient of the surrogate (Dong et al. 2018, algorithm 1)."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.attack import Attack, State
from holdfast.attacks.common.gradient_transform import GradientTransform, ahead
from holdfast.core.cards import parameter
from holdfast.core.problem import Problem
from holdfast.core.threat import Norm
from holdfast.judge.asks import WhiteBoxAsk
from holdfast.numerics import ascent
from holdfast.numerics.distance import distance
from holdfast.numerics.losses import Loss, pick_loss

__all__ = ["MomentumState", "MomentumSteps"]


@dataclass(frozen=True)
class MomentumState(State):
    """``x`` is what is judged: ``point`` on the grid, if there is one.

    Attributes:
        point: (n, \\*features) the iterate.
        velocity: (n, \\*features) decayed sum of the normalised gradients.
        variance: (n, \\*features) how the last gradient differed from those around it; (n, 0) where nobody asks.
    """

    point: Tensor
    velocity: Tensor
    variance: Tensor


@dataclass(frozen=True, kw_only=True)
class MomentumSteps(Attack[WhiteBoxAsk, MomentumState]):
    """``v <- mu v + g / ||g||_1``; ``x <- project(x + step * steepest(v))``, where g is the transformed gradient.

    `run(attack, problem, model=surrogate, judge=attacked)`: the attacked model is asked once, about the last iterate.
    An `Ensemble` of surrogates is a model like any other.
    """

    steps: int = parameter(10, "gradient steps on the surrogate, at least 1", "Dong et al. 2018, section 4.1")
    momentum: float = parameter(1.0, "decay mu of the velocity, 0 to 1", "Dong et al. 2018, section 4.2")
    relative_step: float | None = parameter(None, "step as a share of eps; None: 1 / steps", "Dong et al. 2018")
    loss: str | Loss = parameter(
        "ce", "ce, margin, dlr, joint (under a detector), or a loss of one's own", "Dong et al. 2018; Liu et al. 2017"
    )

    @property
    @abstractmethod
    def transform(self) -> GradientTransform:
        """Which gradient is followed."""

    @property
    @override
    def passes(self) -> int:
        return 2 * self.steps * self.transform.asks + 2

    @override
    def check(self, problem: Problem) -> None:
        super().check(problem)
        self.transform.check(self.card.title)

    @override
    def start(self, ask: WhiteBoxAsk) -> MomentumState:
        problem = ask.problem
        zero = torch.zeros_like(problem.x)
        even = self.transform.neighbours == 0
        variance = zero.new_empty(len(zero), 0) if even else zero
        return MomentumState.at(problem.x, point=problem.x, velocity=zero, variance=variance)

    @override
    def step(self, ask: WhiteBoxAsk, state: MomentumState) -> MomentumState:
        problem = ask.problem
        loss, _ = pick_loss(self.loss, problem.goal, ask.classes)
        change = self.transform

        def gradient(x: Tensor) -> Tensor:
            return ask.as_given.gradient(x, loss).grad  # of the surrogate between valid points too

        fraction = self.relative_step or 1 / self.steps
        size = fraction * problem.flat(problem.set.eps).to(state.x.dtype)
        at = state.point + ahead(problem, state.velocity, self.momentum, size) if change.look_ahead else state.point
        asked = state.step * change.asks
        grad, variance = change.gradient(gradient, problem, at, asked), state.variance
        follow = grad
        if change.neighbours:
            follow = grad + variance
            variance = change.spread(gradient, problem, at, asked) - grad
        weight = distance(Norm.L1, follow).clamp_min(torch.finfo(torch.float64).tiny)
        velocity = self.momentum * state.velocity + (follow.double() / problem.flat(weight)).to(follow.dtype)
        point = ascent.step(problem.ball, state.point, velocity, problem.x, size)
        return replace(state, x=ask.valid(point), point=point, velocity=velocity, variance=variance)
