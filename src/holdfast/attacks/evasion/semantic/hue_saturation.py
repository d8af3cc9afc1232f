"""Colour shift: one hue rotation and one saturation shift of the whole image, drawn at random (Hosseini & Poovendran 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from holdfast.attacks.families.parameter_search import WorstOfK
from holdfast.attacks.semantic import ImageAttack
from holdfast.core.cards import Card, parameter
from holdfast.core.threat import Access, Formulation, Goal
from holdfast.transforms.colour import HueSaturation
from holdfast.transforms.transform import Transform

__all__ = ["ColourShift"]


@dataclass(frozen=True, kw_only=True)
class ColourShift(ImageAttack):
    """Trial i of N: any hue, a saturation shift of at most ``i / N``; the first label that is wrong ends it.

    Small saturation shifts are tried first. The shift of a trial is drawn anew for each sample.
    """

    trials: int = parameter(1000, "random shifts of a sample, at least 1", "Hosseini & Poovendran 2018, section 3.3")
    hue: float = parameter(
        180.0, "largest hue rotation to either side, degrees, 0 to 180", "Hosseini & Poovendran: all"
    )
    saturation: float = parameter(1.0, "largest saturation shift to either side, 0 to 1", "Hosseini & Poovendran: all")
    block: int = parameter(8, "trials of a sample that one step asks, at least 1", "ours: memory against calls")

    card: ClassVar[Card] = Card(
        title="Colour shift",
        rows=("E37", "T03"),
        paper="Hosseini, Poovendran 2018, Semantic Adversarial Examples, arXiv:1804.00499",
        section="2.2",
        summary="Rotates the hue and shifts the saturation of the whole image at random until the label is wrong.",
        access=Access.HARD_LABEL,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.BUDGET,
        modality=("image",),
        failure_modes=(
            "Classes that colour defines (a ripe fruit, a traffic light) truly change: look at the pictures.",
            "Grey pixels become red when the saturation grows, since grey has no hue.",
            "Single-channel images have no hue and are refused.",
        ),
        checked_by="colorsys on random pixels; 360 degrees are the identity; success grows with the range",
    )

    @override
    def transform(self, shape: tuple[int, ...]) -> HueSaturation:
        return HueSaturation(self.hue, self.saturation)

    @override
    def search(self, transform: Transform) -> WorstOfK:
        growing = tuple(k for k, axis in enumerate(transform.axes) if axis.name == "saturation")
        return WorstOfK(trials=self.trials, growing=growing, block=self.block)
