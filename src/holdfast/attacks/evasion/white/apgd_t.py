"""APGD-T: Auto-PGD on the targeted DLR loss, one round for each of the nearest classes (Croce & Hein 2020b)."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from holdfast.attacks.families.auto_pgd import AutoPGD
from holdfast.core.arrays import on_device
from holdfast.core.cards import Card, parameter
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.judge.asks import WhiteBoxAsk
from holdfast.numerics.losses import Loss, pick_loss

__all__ = ["APGDT"]


@dataclass(frozen=True)
class APGDT(AutoPGD):
    """Auto-PGD on the targeted DLR loss towards the classes with the largest clean logits, one after the other.

    With fewer classes than 4 the loss is the targeted margin; with fewer other classes than rounds, the later rounds
    start anew towards the same classes.
    """

    targets: int = parameter(9, "nearest classes to head for, at least 1", "Croce & Hein 2020b, section 6 (AutoAttack)")

    card: ClassVar[Card] = Card(
        title="APGD-T",
        rows=("E04",),
        paper="Croce & Hein 2020, Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse "
        "Parameter-free Attacks, arXiv:2003.01690; l1: Croce & Hein 2021, Mind the Box, arXiv:2103.01208",
        section="2.2",
        summary="Auto-PGD towards each of the nearest classes in turn.",
        access=Access.WHITE_BOX,
        goals=(Goal.UNTARGETED,),
        formulation=Formulation.BUDGET,
        norms=(Norm.L1, Norm.L2, Norm.LINF),
        affine_ratio={Norm.L1: 1.02, Norm.L2: 1.01, Norm.LINF: 1.01},
        failure_modes=(
            "Costs as many runs as targets; the first few find most.",
            "Masked gradients; Square needs none.",
        ),
        checked_by="robust counts of AutoAttack on published networks",
    )

    @property
    @override
    def rounds(self) -> int:
        return self.targets * self.restarts

    @override
    def loss(self, problem: Problem, classes: int) -> Loss:
        return pick_loss("dlr", Goal.TARGETED, classes)[0]

    @override
    def aim(self, ask: WhiteBoxAsk) -> Tensor:
        problem = ask.problem
        scores = ask.clean
        nearest = scores.scatter(1, problem.y.unsqueeze(1), -inf).argsort(dim=1, descending=True, stable=True)
        which = problem.round % min(self.targets, ask.classes - 1)
        at = on_device(which, nearest.device)
        return nearest.gather(1, at.unsqueeze(1)).squeeze(1)
