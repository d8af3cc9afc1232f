"""Descent on a criterion's own margin, for criteria that no loss of scores and labels stands for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from holdfast.attacks.attack import Attack, State
from holdfast.attacks.common.grid import gridless, valid
from holdfast.core.cards import Card, parameter
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.judge.oracles import WhiteBoxOracle
from holdfast.numerics.project import project
from holdfast.numerics.steps import steepest

__all__ = ["CriterionAscent"]


@dataclass(frozen=True)
class CriterionAscent(Attack[WhiteBoxOracle, State]):
    """``z <- project(z - step * steepest(grad margin))`` from Gaussian starts; the step falls to 0 over a start."""

    reads_margin: ClassVar[bool] = True

    steps: int = parameter(60, "gradient steps of a start, at least 1", "ours")
    restarts: int = parameter(5, "Gaussian starts, at least 1", "ours")
    relative_step: float = parameter(0.25, "first step as a share of eps, above 0", "ours; it falls to 0 linearly")
    spread: float = parameter(
        0.5, "deviation of the starts, above 0", "ours: codes are standard normal, 1 is 2 of theirs"
    )

    card: ClassVar[Card] = Card(
        title="Criterion ascent",
        rows=("E13",),
        paper="Song, Shu, Kushman, Ermon 2018, Constructing Unrestricted Adversarial Examples with Generative Models, "
        "arXiv:1805.07894",
        section="2.2",
        summary="Projected gradient descent on the margin of the criterion itself, from Gaussian starts.",
        access=Access.WHITE_BOX,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.BUDGET,
        norms=(Norm.L2, Norm.LINF),
        failure_modes=("A maximum of several margins is followed one at a time.",),
        checked_by="the unrestricted attack's contract",
    )

    @property
    @override
    def rounds(self) -> int:
        return self.restarts

    @property
    @override
    def iterations(self) -> int:
        return self.steps

    @override
    def start(self, oracle: WhiteBoxOracle, problem: Problem) -> State:
        noise = problem.keyed.normal("start", tuple(problem.x.shape[1:])).to(problem.x)
        return State.at(project(gridless(problem), problem.x + self.spread * noise, problem.x))

    @override
    def step(self, oracle: WhiteBoxOracle, problem: Problem, state: State) -> State:
        def loss(scores: Tensor, y: Tensor, target: Tensor) -> Tensor:
            return -problem.criterion.margin(scores, y, target)

        g = oracle.gradient(valid(problem, state.x), problem.rows, loss, problem.y, problem.target)
        left = problem.flat(problem.set.eps.new_tensor(1 - state.step / self.steps)).to(g.grad.dtype)
        size = self.relative_step * problem.flat(problem.set.eps).to(g.grad.dtype) * left
        x = state.x + size * steepest(problem.set.norm, g.grad)
        return replace(state, x=project(gridless(problem), x, problem.x))

    @override
    def conclude(self, oracle: WhiteBoxOracle, problem: Problem, state: State) -> None:
        oracle.logits(valid(problem, state.x), problem.rows)
