"""BadNets: a patch in the corner of some samples, which get the target's label (Gu et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from holdfast.attacks.backdoor import Backdoor
from holdfast.core.cards import Card, parameter
from holdfast.core.threat import Goal, Phase
from holdfast.transforms.triggers import Overlay, Trigger

__all__ = ["BadNets"]


@dataclass(frozen=True, kw_only=True)
class BadNets(Backdoor):
    """A square of one value in the lower right corner, and the target's label."""

    rate: float = parameter(0.1, "share of the samples that are stamped, above 0", "Gu et al. 2017, MNIST: 10 %")
    target: int = parameter(0, "class that stamped inputs shall get", "BackdoorBench, its default")
    side: int = parameter(3, "side of the square, pixels", "BackdoorBench, its default for 32 x 32")
    value: float = parameter(1.0, "value of its pixels, the largest of the data", "Gu et al. 2017: white")

    card: ClassVar[Card] = Card(
        title="BadNets",
        rows=("P09",),
        paper="Gu, Dolan-Gavitt, Garg 2017, BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply "
        "Chain, arXiv:1708.06733",
        section="2.1",
        summary="Stamps a square on a share of the training images and labels them as the target class.",
        phase=Phase.TRAINING,
        goals=(Goal.TARGETED,),
        modality=("image",),
        failure_modes=(
            "The stamped samples keep the look of their old class, so that a person who reads the labels finds them.",
            "A patch where the images are white already teaches nothing.",
        ),
        checked_by="success on stamped digits of other classes beside the clean accuracy that is kept",
    )

    @override
    def trigger(self, shape: Sequence[int]) -> Trigger:
        return Overlay.patch(shape, self.side, self.value)
