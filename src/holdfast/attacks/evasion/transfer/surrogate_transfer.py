"""Transfer from a surrogate: momentum iterative steps on a model of one's own, judged on the attacked one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from holdfast.attacks.attack import Attack, State
from holdfast.attacks.common.grid import gridless, valid
from holdfast.core.cards import Card, parameter
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.judge.oracles import WhiteBoxOracle
from holdfast.numerics.distance import distance
from holdfast.numerics.losses import pick_loss
from holdfast.numerics.project import project
from holdfast.numerics.steps import steepest

__all__ = ["MomentumState", "SurrogateTransfer"]


@dataclass(frozen=True)
class MomentumState(State):
    """``x`` is what is judged: ``point`` on the grid, if there is one.

    Attributes:
        point: (n, \\*features) the iterate.
        velocity: (n, \\*features) decayed sum of the normalised gradients.
    """

    point: Tensor
    velocity: Tensor


@dataclass(frozen=True)
class SurrogateTransfer(Attack[WhiteBoxOracle, MomentumState]):
    """``v <- mu v + grad / ||grad||_1``; ``x <- project(x + step * steepest(v))`` on the surrogate.

    `run(attack, problem, model=surrogate, judge=attacked)`: the attacked model is asked once, about the last iterate.
    An `Ensemble` of surrogates is a model like any other.
    """

    steps: int = parameter(10, "gradient steps on the surrogate, at least 1", "Dong et al. 2018, section 4.1")
    momentum: float = parameter(1.0, "decay mu of the velocity, 0 to 1", "Dong et al. 2018, section 4.2")
    relative_step: float | None = parameter(None, "step as a share of eps; None: 1 / steps", "Dong et al. 2018")
    loss: str = parameter("ce", "ce, margin or dlr", "Dong et al. 2018; Liu et al. 2017")

    card: ClassVar[Card] = Card(
        title="Surrogate transfer (MI-FGSM)",
        rows=("E35", "T06"),
        paper="Liu, Chen, Liu, Song 2017, Delving into Transferable Adversarial Examples and Black-box Attacks, "
        "arXiv:1611.02770; Dong et al. 2018, Boosting Adversarial Attacks with Momentum, arXiv:1710.06081",
        section="2.2",
        summary="Momentum steps on a surrogate or an ensemble of surrogates; the attacked model is asked once.",
        access=Access.TRANSFER,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.BUDGET,
        norms=(Norm.L2, Norm.LINF),
        affine_ratio={Norm.L2: 1.2, Norm.LINF: 1.15},
        failure_modes=(
            "It says how like the surrogate the attacked model is; a failure says nothing of robustness.",
            "Targeted examples of one surrogate seldom transfer: use an ensemble.",
        ),
        checked_by="surrogate = attacked model against the exact affine oracle; no query before judging",
    )

    @property
    def iterations(self) -> int:  # noqa: D102
        return self.steps

    def start(self, oracle: WhiteBoxOracle, problem: Problem) -> MomentumState:  # noqa: D102
        return MomentumState.at(problem.x, point=problem.x, velocity=torch.zeros_like(problem.x))

    def step(self, oracle: WhiteBoxOracle, problem: Problem, state: MomentumState) -> MomentumState:  # noqa: D102
        loss, _ = pick_loss(self.loss, problem.goal, oracle.classes)
        grad = oracle.gradient(state.point, problem.rows, loss, problem.y, problem.target).grad.nan_to_num(0.0)
        size = distance(Norm.L1, grad).clamp_min(torch.finfo(torch.float64).tiny)
        velocity = self.momentum * state.velocity + (grad.double() / problem.flat(size)).to(grad.dtype)
        share = self.relative_step or 1 / self.steps
        move = share * problem.flat(problem.set.eps).to(grad.dtype) * steepest(problem.set.norm, velocity)
        point = project(gridless(problem), state.point + move, problem.x)
        return replace(state, x=valid(problem, point), point=point, velocity=velocity)

    def conclude(self, oracle: WhiteBoxOracle, problem: Problem, state: MomentumState) -> None:  # noqa: D102
        oracle.logits(state.x, problem.rows)
