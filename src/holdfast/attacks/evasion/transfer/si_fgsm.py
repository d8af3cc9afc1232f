"""SI-FGSM: momentum of the mean gradient over darker copies (Lin et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from holdfast.attacks.common.gradient_transform import GradientTransform
from holdfast.attacks.families.momentum import MomentumSteps
from holdfast.core.cards import Card, parameter
from holdfast.core.threat import Access, Formulation, Goal, Norm

__all__ = ["SIFGSM"]


@dataclass(frozen=True)
class SIFGSM(MomentumSteps):
    """The gradient is the mean over ``x, x/2, x/4, ...``, for a network answers the same to darker copies."""

    scales: int = parameter(5, "copies, at least 1", "Lin et al. 2020, section 4.1")

    card: ClassVar[Card] = Card(
        title="SI-FGSM",
        rows=("E35", "T03", "T06"),
        paper="Lin, Song, He, Wang, Hopcroft 2020, Nesterov Accelerated Gradient and Scale Invariance for Adversarial "
        "Attacks, arXiv:1908.06281",
        section="2.2",
        summary="Momentum steps along the summed gradient over copies of the input at falling scales.",
        access=Access.TRANSFER,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.BUDGET,
        norms=(Norm.L2, Norm.LINF),
        affine_ratio={Norm.L2: 1.3, Norm.LINF: 1.25},
        failure_modes=(
            "It says how like the surrogate the attacked model is; a failure says nothing of robustness.",
            "Scales shrink toward 0: inputs whose neutral value is another (normalised data) are shifted, not darkened.",
        ),
        checked_by="one scale is MI-FGSM to the bit; the gradient is that of the summed loss by autograd",
    )

    @property
    @override
    def transform(self) -> GradientTransform:
        return GradientTransform(scales=self.scales)
