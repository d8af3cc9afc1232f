"""PGD: projected gradient ascent on a loss inside the budget set (Madry et al. 2018, section 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from holdfast.attacks.families.projected_gradient import ProjectedGradient, ProjectedState
from holdfast.core.cards import Card
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.judge.asks import WhiteBoxAsk
from holdfast.numerics.losses import pick_loss

__all__ = ["PGD"]


@dataclass(frozen=True)
class PGD(ProjectedGradient[ProjectedState]):
    """``x <- project(x + step * steepest(grad loss))``, from a random point of the set, ``restarts`` times."""

    card: ClassVar[Card] = Card(
        title="PGD",
        rows=("E03", "E10", "T01", "T02", "T03"),
        paper="Madry, Makelov, Schmidt, Tsipras, Vladu 2018, Towards Deep Learning Models Resistant to Adversarial "
        "Attacks, arXiv:1706.06083",
        section="2.2",
        summary="Projected gradient ascent on a loss inside the set, from random starts.",
        access=Access.WHITE_BOX,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.BUDGET,
        norms=(Norm.L0, Norm.L1, Norm.L2, Norm.LINF),
        affine_ratio={Norm.L1: 1.05, Norm.L2: 1.02, Norm.LINF: 1.02},
        failure_modes=(
            "Cross-entropy has no gradient once the margin is large; use loss=margin.",
            "A fixed step can circle the optimum; APGD adapts it.",
        ),
        checked_by="parity with a bare loop; published figures on the adversarially trained MNIST network",
    )

    @override
    def start(self, ask: WhiteBoxAsk) -> ProjectedState:
        return self.initial(ask.problem)

    @override
    def ascent(self, ask: WhiteBoxAsk, state: ProjectedState) -> tuple[Tensor, ProjectedState]:
        loss, _ = pick_loss(self.loss, ask.problem.goal, ask.classes)
        return ask.gradient(state.x, loss).grad, state
