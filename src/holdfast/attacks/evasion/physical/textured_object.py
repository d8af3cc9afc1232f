"""A 3D object whose texture is adversarial from every side (Athalye et al. 2018), through a differentiable renderer."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, pi
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.families.scene_artefact import PhysicalAttack, PhysicalState, Printed
from holdfast.attacks.shared import Applied
from holdfast.core.cards import Card, parameter
from holdfast.core.draws import SampleDraws
from holdfast.core.errors import UsageError
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Formulation, Goal
from holdfast.transforms.scene.camera import conditions, half_side, lit, room, with_noise
from holdfast.transforms.scene.printing import lab
from holdfast.transforms.scene.solid import SOLIDS, distance_for, render, rotation

__all__ = ["TexturedObject"]

_PLAIN = 0.5


@dataclass(frozen=True, kw_only=True)
class TexturedObject(PhysicalAttack[PhysicalState]):
    """A solid with a learned texture is rendered before the samples, which are the backgrounds, in random poses, sizes,
    places and lights.

    What the object is to be taken for is the goal of the problem: with targets the model must name the target from
    every side, the paper's case; untargeted it must stop naming what the background shows.
    """

    views: int = parameter(
        2, "draws of each sample in a step, at least 1", "ours: a pose shows only a part of the texture"
    )
    solid: str = parameter("sphere", "sphere, box or plane (a square)", "ours: analytic, so that poses are exact")
    area: float = parameter(0.25, "share of the picture that the sphere covers at size 1, in (0, 0.6]", "ours")
    rotation: float = parameter(
        180.0, "largest turn about the vertical axis to either side, degrees", "Athalye et al. 2018: all"
    )
    pitch: float = parameter(30.0, "largest turn about the two other axes to either side, degrees", "ours")
    wander: float = parameter(0.5, "how much of the room to the edges its middle moves in, in [0, 1]", "ours")
    lamp: float = parameter(0.5, "largest sideways part of the light's direction to either side, 0 or more", "ours")
    ambient: float = parameter(0.6, "share of the light that comes from everywhere, in [0, 1]", "ours")
    likeness: float = parameter(
        0.01,
        "weight of the squared Lab distance to the plain object, 0 or more",
        "Athalye et al. 2018 tune it each time",
    )
    resolution: int = parameter(0, "texels from top to bottom; 0: as many as pixels, seen from the front", "ours")

    geometry: ClassVar[tuple[str, ...]] = ("solid", "area")
    card: ClassVar[Card] = Card(
        title="Adversarial 3D texture",
        rows=("E42", "T03"),
        paper="Athalye, Engstrom, Ilyas, Kwok 2018 (Athalye, Sutskever in the first version), Synthesizing Robust Adversarial "
        "Examples, arXiv:1707.07397",
        section="2.2",
        summary="The texture of a rendered solid that fools from every side, by expectation over poses and light.",
        access=Access.WHITE_BOX,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.PENALTY,
        modality=("image",),
        shared=True,
        failure_modes=(
            "Untargeted success includes plain occlusion of the background: compare with a texture that was not fitted.",
            "Solids are a sphere, a box and a square; scanned meshes are not read.",
        ),
        checked_by="silhouette of a sphere in closed form; a frontal square gives its texture back; finite differences",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.solid not in SOLIDS:
            raise UsageError(f"there is no solid '{self.solid}'; use one of {', '.join(SOLIDS)}")
        if not 0 < self.area <= 0.6 or not 0 <= self.wander <= 1 or not 0 <= self.ambient <= 1:
            raise UsageError("a textured object needs area in (0, 0.6], wander and ambient in [0, 1]")

    @override
    def begin(self, problem: Problem, x: Tensor) -> PhysicalState:
        channels, height, width = x.shape[1:]
        across = half_side(self.area, height, width, round=True) * min(height, width)
        high = max(2, self.resolution or ceil(across * (pi / 2 if self.solid == "sphere" else 1)))
        shape = {"sphere": (high, 2 * high), "box": (2 * high, 3 * high), "plane": (high, high)}[self.solid]
        return PhysicalState.at(torch.full((channels, *shape), _PLAIN, dtype=x.dtype, device=x.device))

    @override
    def picture(self, printed: Printed, x: Tensor, draws: SampleDraws, step: int) -> Applied:
        height, width = x.shape[2:]
        turn, place, lamp = (-self.pitch, self.pitch), (-self.wander, self.wander), (-self.lamp, self.lamp)
        drawn = conditions(
            draws, step, x, **self.turns(), **self.lights(), pitch=turn, roll=turn, right=place, down=place,
            lamp_x=lamp, lamp_y=lamp,
        )  # fmt: skip
        radius = half_side(self.area, height, width, round=True)
        across, along = room(radius * drawn["scale"], height, width)
        toward = F.normalize(torch.stack([drawn["lamp_x"], drawn["lamp_y"], -torch.ones_like(across)], 1), dim=1)
        painted = lit(printed.texture.expand(len(x), -1, -1, -1), drawn)
        shown, _ = render(
            self.solid,
            painted,
            x,
            rotation(drawn["angle"], drawn["pitch"], drawn["roll"]),
            distance_for(radius) / drawn["scale"],
            drawn["right"] * across,
            drawn["down"] * along,
            toward,
            ambient=self.ambient,
        )
        kept = {k: drawn[k] for k in ("angle", "pitch", "scale", "light")}
        return Applied(with_noise(shown, draws, step, self.noise), kept)

    @override
    def penalty(self, state: PhysicalState) -> Tensor:
        texture = state.texture
        plain = lab(torch.full_like(texture, _PLAIN))
        return self.likeness * (lab(texture) - plain).square().sum(-3).mean()
