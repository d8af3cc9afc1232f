"""NI-FGSM: momentum asked where it leads (Lin et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from holdfast.attacks.common.gradient_transform import GradientTransform
from holdfast.attacks.families.momentum import MomentumSteps
from holdfast.core.cards import Card
from holdfast.core.threat import Access, Formulation, Goal, Norm

__all__ = ["NIFGSM"]


@dataclass(frozen=True)
class NIFGSM(MomentumSteps):
    """The gradient is asked at ``x + alpha mu v``, one step ahead along the momentum."""

    card: ClassVar[Card] = Card(
        title="NI-FGSM",
        rows=("E35", "T03", "T06"),
        paper="Lin, Song, He, Wang, Hopcroft 2020, Nesterov Accelerated Gradient and Scale Invariance for Adversarial "
        "Attacks, arXiv:1908.06281",
        section="2.2",
        summary="Momentum steps on a surrogate, its gradient asked one step ahead along the momentum.",
        access=Access.TRANSFER,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.BUDGET,
        norms=(Norm.L2, Norm.LINF),
        affine_ratio={Norm.L2: 1.15, Norm.LINF: 1.05},
        failure_modes=(
            "It says how like the surrogate the attacked model is; a failure says nothing of robustness.",
            "Looking ahead helps where the path is bent; in a few steps on a flat surrogate it is MI-FGSM.",
        ),
        checked_by="momentum 0 is MI-FGSM with momentum 0 to the bit; surrogate = attacked model against the affine oracle",
    )

    @property
    @override
    def transform(self) -> GradientTransform:
        return GradientTransform(look_ahead=True)
