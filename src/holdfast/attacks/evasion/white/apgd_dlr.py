"""APGD-DLR: Auto-PGD on the difference of logits ratio (Croce & Hein 2020b)."""

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

__all__ = ["APGDDLR"]


@dataclass(frozen=True)
class APGDDLR(AutoPGD):
    """Auto-PGD on the DLR loss; with too few classes for it (3 untargeted, 4 targeted), on the margin."""

    card: ClassVar[Card] = Card(
        title="APGD-DLR",
        rows=("E04", "T03"),
        paper="Croce & Hein 2020, Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse "
        "Parameter-free Attacks, arXiv:2003.01690; l1: Croce & Hein 2021, Mind the Box, arXiv:2103.01208",
        section="2.2",
        summary="Auto-PGD on a loss that neither a shift nor a scale of the logits changes.",
        access=Access.WHITE_BOX,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.BUDGET,
        norms=(Norm.L1, Norm.L2, Norm.LINF),
        affine_ratio={Norm.L1: 1.02, Norm.L2: 1.01, Norm.LINF: 1.01},
        failure_modes=(
            "Untargeted, the runner-up class changes along the way and the search can dither; APGD-T fixes the class.",
            "Masked gradients; Square needs none.",
        ),
        checked_by="robust counts of AutoAttack on published networks",
    )

    @override
    def loss(self, problem: Problem, classes: int) -> Loss:
        return pick_loss("dlr", problem.goal, classes)[0]

    @override
    def aim(self, ask: WhiteBoxAsk) -> Tensor:
        problem = ask.problem
        return problem.target
