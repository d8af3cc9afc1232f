"""DI-FGSM: momentum of gradients through random resizing (Xie et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from holdfast.attacks.common.gradient_transform import GradientTransform
from holdfast.attacks.families.momentum import MomentumSteps
from holdfast.core.cards import Card, parameter
from holdfast.core.threat import Access, Formulation, Goal, Norm

__all__ = ["DIFGSM"]


@dataclass(frozen=True)
class DIFGSM(MomentumSteps):
    """The gradient is asked through random resizing and padding, with some probability, anew in each step."""

    diversity: float = parameter(
        0.5, "chance that an input is resized and padded, 0 to 1", "Xie et al. 2019, section 4.1"
    )
    least_size: float = parameter(0.9, "least side of a resized input, in (0, 1]", "Xie et al. 2019: 299 of 330 pixels")

    card: ClassVar[Card] = Card(
        title="DI-FGSM",
        rows=("E35", "T03", "T06"),
        paper="Xie, Zhang, Zhou, Bai, Wang, Ren, Yuille 2019, Improving Transferability of Adversarial Examples with Input "
        "Diversity, arXiv:1803.06978",
        section="2.2",
        summary="Momentum steps on a surrogate, asked through random resizing and padding.",
        access=Access.TRANSFER,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.BUDGET,
        norms=(Norm.L2, Norm.LINF),
        affine_ratio={Norm.L2: 1.3, Norm.LINF: 1.2},
        failure_modes=(
            "It says how like the surrogate the attacked model is; a failure says nothing of robustness.",
            "Resizing suits images; other inputs are taken as strips, where it moves features to their neighbours' places.",
            "A model that was not trained to bear resizing gives gradients of other answers: use less of it.",
        ),
        checked_by="probability 0 is MI-FGSM to the bit; the map back is the transpose of the map; keyed draws",
    )

    @property
    @override
    def transform(self) -> GradientTransform:
        return GradientTransform(diversity=self.diversity, least_size=self.least_size)
