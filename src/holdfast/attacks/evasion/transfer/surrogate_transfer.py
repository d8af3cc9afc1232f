"""Transfer from a surrogate: steps on a model of one's own, judged on the attacked one; every piece of the family a switch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from holdfast.attacks.common.gradient_transform import GradientTransform
from holdfast.attacks.families.momentum import MomentumSteps
from holdfast.core.cards import Card, parameter
from holdfast.core.threat import Access, Formulation, Goal, Norm

__all__ = ["SurrogateTransfer"]


@dataclass(frozen=True, kw_only=True)
class SurrogateTransfer(MomentumSteps):
    """The whole family as one composition; by default MI-FGSM, the plain momentum of Dong et al. 2018."""

    look_ahead: bool = parameter(False, "NI: ask the gradient where the momentum leads", "off; Lin et al. 2020: on")
    diversity: float = parameter(
        0.0, "DI: chance that an input is resized and padded, 0 to 1", "off; Xie et al. 2019: 0.5"
    )
    least_size: float = parameter(
        0.9, "DI: least side of a resized input, in (0, 1]", "Xie et al. 2019: 299 of 330 pixels"
    )
    kernel: int | None = parameter(
        1,
        "TI: side of the smoothing kernel, odd; None: a twentieth of the image's side",
        "off; Dong et al. 2019: 15 of 299",
    )
    scales: int = parameter(1, "SI: copies, divided by 1, 2, 4, ..., at least 1", "off; Lin et al. 2020: 5")
    neighbours: int = parameter(0, "VMI: neighbours that even out the gradient, at least 0", "off; Wang & He 2021: 20")
    reach: float = parameter(1.5, "VMI: their reach as a share of eps, at least 0", "Wang & He 2021, section 4.4")

    card: ClassVar[Card] = Card(
        title="Surrogate transfer",
        rows=("E35", "T03", "T05", "T06"),
        paper="Liu, Chen, Liu, Song 2017, Delving into Transferable Adversarial Examples and Black-box Attacks, "
        "arXiv:1611.02770; Dong et al. 2018, Boosting Adversarial Attacks with Momentum, arXiv:1710.06081",
        section="2.2",
        summary="Momentum steps on a surrogate or an ensemble of surrogates; the attacked model is asked once.",
        access=Access.TRANSFER,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.BUDGET,
        norms=(Norm.L2, Norm.LINF),
        affine_ratio={Norm.L2: 1.2, Norm.LINF: 1.15},
        failure_modes=(
            "It says how like the surrogate the attacked model is; a failure says nothing of robustness.",
            "Targeted examples of one surrogate seldom transfer: use an ensemble.",
        ),
        checked_by="surrogate = attacked model against the exact affine oracle; no query before judging",
    )

    @property
    @override
    def transform(self) -> GradientTransform:
        return GradientTransform(
            look_ahead=self.look_ahead,
            diversity=self.diversity,
            least_size=self.least_size,
            kernel=self.kernel,
            scales=self.scales,
            neighbours=self.neighbours,
            reach=self.reach,
        )
