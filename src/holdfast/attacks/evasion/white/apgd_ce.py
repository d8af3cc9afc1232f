"""APGD-CE: Auto-PGD on the cross-entropy (Croce & Hein 2020b)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from holdfast.attacks.families.auto_pgd import AutoPGD
from holdfast.core.cards import Card
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.judge.asks import WhiteBoxAsk
from holdfast.numerics.losses import Loss, pick_loss

__all__ = ["APGDCE"]


@dataclass(frozen=True)
class APGDCE(AutoPGD):
    """Auto-PGD on ``-log f_y``; targeted, on ``log f_t``."""

    card: ClassVar[Card] = Card(
        title="APGD-CE",
        rows=("E04", "T03"),
        paper="Croce & Hein 2020, Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse "
        "Parameter-free Attacks, arXiv:2003.01690; l1: Croce & Hein 2021, Mind the Box, arXiv:2103.01208",
        section="2.2",
        summary="Gradient ascent on the cross-entropy that halves its own step and goes back to its best point.",
        access=Access.WHITE_BOX,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.BUDGET,
        norms=(Norm.L1, Norm.L2, Norm.LINF),
        affine_ratio={Norm.L1: 1.02, Norm.L2: 1.01, Norm.LINF: 1.01},
        failure_modes=(
            "Cross-entropy has no gradient once the margin is large (large logits); use APGD-DLR or APGD-T.",
            "Masked gradients; Square needs none.",
        ),
        checked_by="robust counts of AutoAttack on published networks",
    )

    @override
    def loss(self, problem: Problem, classes: int) -> Loss:
        return pick_loss("ce", problem.goal, classes)[0]

    @override
    def aim(self, ask: WhiteBoxAsk) -> Tensor:
        problem = ask.problem
        return problem.target
