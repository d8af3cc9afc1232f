"""FGSM: one steepest step on the loss (Goodfellow et al. 2015, section 4), and its iterated form."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from typing_extensions import override

from holdfast.attacks.attack import Attack, State
from holdfast.core.cards import Card, parameter
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.judge.asks import WhiteBoxAsk
from holdfast.numerics import ascent
from holdfast.numerics.losses import Loss, pick_loss
from holdfast.numerics.steps import pinned_by_box

__all__ = ["FGSM"]


@dataclass(frozen=True)
class FGSM(Attack[WhiteBoxAsk, State]):
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

    @override
    def start(self, ask: WhiteBoxAsk) -> State:
        return State.at(ask.problem.x)

    @override
    def step(self, ask: WhiteBoxAsk, state: State) -> State:
        problem = ask.problem
        loss, _ = pick_loss(self.loss, problem.goal, ask.classes)
        grad = ask.gradient(state.x, loss).grad
        pinned = pinned_by_box(problem.ball, state.x, problem.x, grad)
        length = problem.flat(problem.set.eps / self.steps).to(grad.dtype)
        return replace(state, x=ascent.step(problem.ball, state.x, grad, problem.x, length, pinned=pinned))
