"""The adversarial patch (Brown et al. 2017): a print that, put anywhere into a picture, decides the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.families.scene_artefact import PhysicalAttack, PhysicalState, Printed
from holdfast.attacks.shared import Applied
from holdfast.core.cards import Card, parameter
from holdfast.core.draws import SampleDraws
from holdfast.core.errors import UsageError
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Formulation, Goal
from holdfast.transforms.scene.camera import (
    conditions,
    cover,
    half_side,
    homography,
    lit,
    pixels,
    room,
    sample,
    seen_at,
    with_noise,
)

__all__ = ["Patch"]


@dataclass(frozen=True, kw_only=True)
class Patch(PhysicalAttack[PhysicalState]):
    """The patch lies at a random place of the picture, turned, scaled, tilted and lit at random; nothing else changes."""

    area: float = parameter(0.1, "share of the picture at size 1, in (0, 1)", "Brown et al. 2017: 10 %")
    shape: str = parameter("circle", "circle or square", "Brown et al. 2017: a disk")
    tilt: float = parameter(0.1, "largest perspective to either side, in [0, 0.5]", "ours")
    resolution: int = parameter(0, "texels a side; 0: two for each pixel it is wide", "ours")

    learned: ClassVar[str] = "patch"
    geometry: ClassVar[tuple[str, ...]] = ("shape", "area")
    card: ClassVar[Card] = Card(
        title="Adversarial patch",
        rows=("E39", "T03"),
        paper="Brown, Mane, Roy, Abadi, Gilmer 2017, Adversarial Patch, arXiv:1712.09665",
        section="2.2",
        summary="One print for all pictures that fools the model from any place, by expectation over transformation.",
        access=Access.WHITE_BOX,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.BUDGET,
        modality=("image",),
        shared=True,
        failure_modes=(
            "Occlusion alone breaks some samples: compare with a patch of the same size that was not fitted.",
            "It is a simulation: print, paper and camera change colours in ways that the draws do not cover.",
            "A patch aims at one class; with targets that differ from sample to sample it reaches none of them.",
        ),
        checked_by="held-out success over fresh draws against a patch of the same texels in another order",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.area < 1 or self.shape not in ("circle", "square") or not 0 <= self.tilt <= 0.5:
            raise UsageError("a patch needs area in (0, 1), tilt in [0, 0.5] and the shape circle or square")

    @override
    def begin(self, problem: Problem, x: Tensor) -> PhysicalState:
        channels, height, width = x.shape[1:]
        half = half_side(self.area, height, width, round=self.shape == "circle")
        side = self.resolution or max(2, round(2 * half * min(height, width)))
        return PhysicalState.at(torch.full((channels, side, side), 0.5, dtype=x.dtype, device=x.device))

    @override
    def picture(self, printed: Printed, x: Tensor, draws: SampleDraws, step: int) -> Applied:
        height, width = x.shape[2:]
        tilt = (-self.tilt, self.tilt)
        drawn = conditions(
            draws, step, x, **self.turns(), **self.lights(), right=(-1, 1), down=(-1, 1), lean=tilt, tip=tilt
        )
        half = half_side(self.area, height, width, round=self.shape == "circle") * drawn["scale"]
        across, along = room(half, height, width)
        pose = {**drawn, "right": drawn["right"] * across, "down": drawn["down"] * along}
        at = seen_at(homography(pose, half), pixels(height, width, x))
        fraction = cover(at, half, min(height, width) / 2, self.shape)
        shown = x + fraction * (lit(sample(printed.texture, at), drawn) - x)
        return Applied(with_noise(shown, draws, step, self.noise), {k: drawn[k] for k in ("angle", "scale", "light")})
