"""VMI-FGSM: momentum of gradients tuned by their variance (Wang & He 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from holdfast.attacks.common.gradient_transform import GradientTransform
from holdfast.attacks.families.momentum import MomentumSteps
from holdfast.core.cards import Card, parameter
from holdfast.core.threat import Access, Formulation, Goal, Norm

__all__ = ["VMIFGSM"]


@dataclass(frozen=True)
class VMIFGSM(MomentumSteps):
    """The gradient is corrected by how the last one differed from the mean over its neighbourhood."""

    neighbours: int = parameter(20, "points around the iterate, at least 0", "Wang & He 2021, section 4.4")
    reach: float = parameter(1.5, "how far they may lie as a share of eps, at least 0", "Wang & He 2021, section 4.4")

    card: ClassVar[Card] = Card(
        title="VMI-FGSM",
        rows=("E35", "T03", "T06"),
        paper="Wang, He 2021, Enhancing the Transferability of Adversarial Attacks through Variance Tuning, arXiv:2103.15571",
        section="2.2",
        summary="Momentum steps along gradients that are evened out over the neighbourhood of the iterate before.",
        access=Access.TRANSFER,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.BUDGET,
        norms=(Norm.L2, Norm.LINF),
        affine_ratio={Norm.L2: 1.2, Norm.LINF: 1.1},
        failure_modes=(
            "It says how like the surrogate the attacked model is; a failure says nothing of robustness.",
            "Each step asks 21 gradients of the surrogate; compare with others at equal passes.",
        ),
        checked_by="no neighbours is MI-FGSM to the bit; on an affine model the variance is 0",
    )

    @property
    @override
    def transform(self) -> GradientTransform:
        return GradientTransform(neighbours=self.neighbours, reach=self.reach)
