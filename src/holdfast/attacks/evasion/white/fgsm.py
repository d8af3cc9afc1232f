"""FGSM: one steepest step on the loss (Goodfellow et al. 2015, section 4), and its iterated form."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from typing_extensions import override

from holdfast.attacks.attack import Attack, State
from holdfast.attacks.common.grid import gridless, valid
from holdfast.core.cards import Card, parameter
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.judge.oracles import WhiteBoxOracle
from holdfast.numerics.losses import Loss, pick_loss
from holdfast.numerics.project import project
from holdfast.numerics.steps import pinned_by_box, steepest

__all__ = ["FGSM"]


@dataclass(frozen=True)
class FGSM(Attack[WhiteBoxOracle, State]):
    """``x <- project(x + eps / steps * steepest(grad loss))`` from the clean input; features at the edge of the box
    that the gradient pushes outward stay where they are.
    """

    steps: int = parameter(
        1, "steps of eps / steps each, at least 1; more than 1 is the iterated form", "Goodfellow 2015"
    )
    loss: str | Loss = parameter(
        "ce",
        "ce, margin, dlr, joint (under a detector), or a loss of one's own",
        "Goodfellow et al. 2015 use the training loss",
    )

    card: ClassVar[Card] = Card(
        title="FGSM",
        rows=("E01", "T03"),
        paper="Goodfellow, Shlens, Szegedy 2015, Explaining and Harnessing Adversarial Examples, arXiv:1412.6572; "
        "iterated: Kurakin, Goodfellow, Bengio 2017, arXiv:1607.02533",
        section="2.2",
        summary="One step of size eps along the steepest direction of the loss; or several small ones.",
        access=Access.WHITE_BOX,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.BUDGET,
        norms=(Norm.L1, Norm.L2, Norm.LINF),
        affine_ratio={},
        failure_modes=(
            "One step is weak against any training that looks at it: a survivor of FGSM alone says nothing.",
            "Cross-entropy has no gradient once the margin is large; use loss=margin.",
        ),
        checked_by="equals the closed form on a two-class linear model",
    )

    @property
    @override
    def iterations(self) -> int:
        return self.steps

    @override
    def start(self, oracle: WhiteBoxOracle, problem: Problem) -> State:
        return State.at(problem.x)

    @override
    def step(self, oracle: WhiteBoxOracle, problem: Problem, state: State) -> State:
        loss, _ = pick_loss(self.loss, problem.goal, oracle.classes)
        grad = oracle.gradient(valid(problem, state.x), problem.rows, loss, problem.y, problem.target).grad
        pinned = pinned_by_box(problem.set, state.x, problem.x, grad)
        reach = problem.flat(problem.set.eps / self.steps).to(grad.dtype)
        x = state.x + reach * steepest(problem.set.norm, grad, pinned=pinned)
        return replace(state, x=project(gridless(problem), x, problem.x))

    @override
    def conclude(self, oracle: WhiteBoxOracle, problem: Problem, state: State) -> None:
        oracle.logits(valid(problem, state.x), problem.rows)
