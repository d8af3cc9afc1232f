"""The adversarial T-shirt (Xu et al. 2020): a print on cloth that bends, against one model or several at once."""

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
from holdfast.numerics.project import project_on_simplex
from holdfast.transforms.scene.camera import (
    blurred,
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
from holdfast.transforms.scene.printing import total_variation
from holdfast.transforms.scene.thin_plate import bent

__all__ = ["TpsShirt"]


@dataclass(frozen=True, kw_only=True)
class TpsShirt(PhysicalAttack[PhysicalState]):
    """A square print on the middle of the picture, bent by a thin-plate spline with control points shifted at random,
    then turned, scaled, moved, blurred and lit.

    With several models the print is fitted against their worst case: the weights of the models are the exact solution
    of ``max_w -sum w_k L_k - gamma/2 |w - 1/K|^2`` over the simplex, so that the model that is fooled least counts most.
    """

    area: float = parameter(0.15, "share of the picture at size 1, in (0, 1)", "ours: a print on a person's chest")
    bend: float = parameter(0.1, "largest shift of a control point in half the print's side, in [0, 0.5]", "ours")
    control: int = parameter(5, "control points a side, at least 2", "ours; Xu et al. 2020 mark a checkerboard")
    wander: float = parameter(0.4, "how much of the room to the edges the middle moves in, in [0, 1]", "ours")
    blur: float = parameter(0.3, "largest blur, standard deviation in pixels, 0 or more", "ours")
    smoothness: float = parameter(0.05, "weight of total variation, 0 or more", "ours; Xu et al. 2020 smooth likewise")
    gamma: float = parameter(1.0, "how far the weights of several models stay from the hardest alone, above 0", "ours")
    resolution: int = parameter(0, "texels a side; 0: two for each pixel it is wide", "ours")

    geometry: ClassVar[tuple[str, ...]] = ("area", "control")
    card: ClassVar[Card] = Card(
        title="Adversarial T-shirt",
        rows=("E43", "T03"),
        paper="Xu, Zhang, Liu, Fan, Sun, Chen, Chen, Wang, Lin 2020, Adversarial T-shirt! Evading Person Detectors in a "
        "Physical World, arXiv:1910.11099",
        section="2.2",
        summary="A print on bending cloth, fitted over thin-plate-spline deformations and against several models at once.",
        access=Access.WHITE_BOX,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.BUDGET,
        modality=("image",),
        shared=True,
        failure_modes=(
            "The paper's victims are person detectors; here the models classify, and a detection is no output.",
            "Occlusion alone breaks some samples: compare with a print of the same size that was not fitted.",
            "Folds and self-occlusion of real cloth are no thin-plate spline.",
        ),
        checked_by="no shift is no warp; control points go where they are told; against a print that was not fitted",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.area < 1 or not 0 <= self.bend <= 0.5 or not 0 <= self.wander <= 1 or self.gamma <= 0:
            raise UsageError("a shirt needs area in (0, 1), bend in [0, 0.5], wander in [0, 1] and gamma above 0")

    @override
    def begin(self, problem: Problem, x: Tensor) -> PhysicalState:
        channels, height, width = x.shape[1:]
        side = self.resolution or max(2, round(2 * half_side(self.area, height, width) * min(height, width)))
        return PhysicalState.at(torch.full((channels, side, side), 0.5, dtype=x.dtype, device=x.device))

    @override
    def picture(self, printed: Printed, x: Tensor, draws: SampleDraws, step: int) -> Applied:
        height, width = x.shape[2:]
        place = (-self.wander, self.wander)
        drawn = conditions(
            draws,
            step,
            x,
            **self.turns(),
            **self.lights(),
            right=place,
            down=place,
            blur=(0, self.blur),
            bend=(0, self.bend),
        )
        half = half_side(self.area, height, width) * drawn["scale"]
        across, along = room(half, height, width)
        pose = {**drawn, "right": drawn["right"] * across, "down": drawn["down"] * along}
        flat = seen_at(homography(pose, half), pixels(height, width, x))
        pull = 2 * draws.uniform("cloth", (self.control**2, 2), step).to(x) - 1
        at = bent(flat, pull * drawn["bend"].view(-1, 1, 1))
        fraction = cover(at, half, min(height, width) / 2, "square")
        cloth = lit(sample(printed.texture, at), drawn)
        shown = blurred(x + fraction * (cloth - x), drawn["blur"], self.blur)
        kept = {k: drawn[k] for k in ("angle", "scale", "light", "bend")}
        return Applied(with_noise(shown, draws, step, self.noise), kept)

    @override
    def penalty(self, state: PhysicalState) -> Tensor:
        return self.smoothness * total_variation(state.texture)

    @override
    def weights(self, losses: Tensor) -> Tensor:
        even = torch.full_like(losses, 1 / len(losses))
        return project_on_simplex((even - losses / self.gamma).double().unsqueeze(0))[0].to(losses)
