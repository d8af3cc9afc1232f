"""TI-FGSM: momentum of smoothed gradients (Dong et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from holdfast.attacks.common.gradient_transform import GradientTransform
from holdfast.attacks.families.momentum import MomentumSteps
from holdfast.core.cards import Card, parameter
from holdfast.core.threat import Access, Formulation, Goal, Norm

__all__ = ["TIFGSM"]


@dataclass(frozen=True)
class TIFGSM(MomentumSteps):
    """The gradient is convolved with a Gaussian, which stands for the mean over shifted inputs."""

    kernel: int | None = parameter(
        None,
        "side of the kernel, odd; None: a twentieth of the image's side, at least 3",
        "Dong et al. 2019: 15 of 299 pixels",
    )

    card: ClassVar[Card] = Card(
        title="TI-FGSM",
        rows=("E35", "T03", "T06"),
        paper="Dong, Pang, Su, Zhu 2019, Evading Defenses to Transferable Adversarial Examples by Translation-Invariant "
        "Attacks, arXiv:1904.02884",
        section="2.2",
        summary="Momentum steps along the smoothed gradient of a surrogate.",
        access=Access.TRANSFER,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.BUDGET,
        norms=(Norm.L2, Norm.LINF),
        affine_ratio={Norm.L2: 1.2, Norm.LINF: 1.15},
        failure_modes=(
            "It says how like the surrogate the attacked model is; a failure says nothing of robustness.",
            "Smoothing takes the fine pattern away that breaks undefended models: against those DI or VMI transfer better.",
            "On inputs that are no images neighbouring features have nothing in common, and smoothing only harms.",
        ),
        checked_by="kernel 1 is MI-FGSM to the bit; the kernel sums to 1; a point becomes the kernel",
    )

    @property
    @override
    def transform(self) -> GradientTransform:
        return GradientTransform(kernel=self.kernel)
