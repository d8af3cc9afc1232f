"""Descent on a criterion's own margin, for criteria that no loss of scores and labels stands for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from typing_extensions import override

from holdfast.attacks.attack import Attack, State
from holdfast.core.cards import Card, parameter
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.judge.asks import WhiteBoxAsk
from holdfast.numerics import ascent
from holdfast.numerics.project import project

__all__ = ["CriterionAscent"]


@dataclass(frozen=True, kw_only=True)
class CriterionAscent(Attack[WhiteBoxAsk, State]):
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

    @override
    def start(self, ask: WhiteBoxAsk) -> State:
        problem = ask.problem
        noise = problem.keyed.normal("start", tuple(problem.x.shape[1:])).to(problem.x)
        return State.at(project(problem.ball, problem.x + self.spread * noise, problem.x))

    @override
    def step(self, ask: WhiteBoxAsk, state: State) -> State:
        problem = ask.problem
        grad = ask.gradient(state.x).grad
        left = problem.flat(problem.set.eps.new_tensor(1 - state.step / self.steps)).to(grad.dtype)
        length = self.relative_step * problem.flat(problem.set.eps).to(grad.dtype) * left
        return replace(state, x=ascent.step(problem.ball, state.x, grad, problem.x, length))
