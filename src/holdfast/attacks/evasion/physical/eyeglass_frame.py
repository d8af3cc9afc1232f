"""Adversarial eyeglass frames (Sharif et al. 2016): printed glasses that make one person another, or nobody."""

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
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Formulation, Goal
from holdfast.transforms.scene.camera import conditions, homography, lit, pixels, sample, seen_at, with_noise
from holdfast.transforms.scene.printing import non_printability, printable, total_variation

__all__ = ["EyeglassFrame"]

# The frame on its own sheet, whose edges are at -1 and 1 across and at -1/2 and 1/2 down.
_LENS, _WIDE, _HIGH, _THIN = 0.5, 0.36, 0.3, 0.14  # middle of a lens, its half axes, thickness of the rim
_BRIDGE, _TEMPLE, _RAISED = 0.16, 0.86, -0.06  # half the bridge, inner end of a temple, height of both


@dataclass(frozen=True, kw_only=True)
class EyeglassFrame(PhysicalAttack[PhysicalState]):
    """The texture covers a frame of two rims, a bridge and two temples, over the eyes of pictures that show a face
    upright and filling the picture; the frame sits a little differently on each.

    Untargeted is the paper's dodging, targeted its impersonation. Fit it on pictures of one person (one class), or of
    several for one frame that many can wear.
    """

    rotation: float = parameter(4.0, "largest turn to either side in degrees, 0 or more", "ours: glasses on a nose")
    zoom: float = parameter(0.05, "largest change of the size factor to either side of 1, in [0, 1)", "ours")
    size: float = parameter(0.85, "half the frame's width in half the shorter side of the picture, above 0", "ours")
    height: float = parameter(-0.2, "of the eyes, in half the shorter side from the middle, down is positive", "ours")
    slip: float = parameter(0.04, "largest shift to either side, likewise", "ours")
    smoothness: float = parameter(0.15, "weight of total variation, 0 or more", "ours: our variation is a mean")
    printability: float = parameter(
        0.05, "weight of the non-printability score, 0 or more", "ours: our score is scaled"
    )

    geometry: ClassVar[tuple[str, ...]] = ("size", "height")
    card: ClassVar[Card] = Card(
        title="Eyeglass frames",
        rows=("E41", "T03"),
        paper="Sharif, Bhagavatula, Bauer, Reiter 2016, Accessorize to a Crime, CCS, doi:10.1145/2976749.2978392",
        section="2.2",
        summary="A printed eyeglass frame, smooth and in printable colours, that makes a face be taken for another.",
        access=Access.WHITE_BOX,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.PENALTY,
        modality=("image",),
        shared=True,
        failure_modes=(
            "The frame is drawn for aligned faces: on other pictures it is a mask of that shape and no more.",
            "Occlusion alone breaks some samples: compare with a frame of one colour.",
        ),
        checked_by="pixels off the frame stay; held-out success against a frame that was not fitted",
    )

    @override
    def begin(self, problem: Problem, x: Tensor) -> PhysicalState:
        channels, side = x.shape[1], max(4, min(x.shape[2:]))
        return PhysicalState.at(torch.full((channels, side, 2 * side), 0.5, dtype=x.dtype, device=x.device))

    @override
    def picture(self, printed: Printed, x: Tensor, draws: SampleDraws, step: int) -> Applied:
        height, width = x.shape[2:]
        slip = (-self.slip, self.slip)
        drawn = conditions(draws, step, x, **self.turns(), **self.lights(), right=slip, down=slip)
        half = self.size * drawn["scale"]
        pose = {**drawn, "down": drawn["down"] + self.height}
        at = seen_at(homography(pose, half), pixels(height, width, x))
        pixel = (half * min(height, width) / 2).view(-1, 1, 1)
        fraction = (0.5 + pixel * frame_depth(at)).clamp(0, 1).unsqueeze(1)
        frame = lit(sample(printed.texture, at * at.new_tensor([1.0, 2.0])), drawn)
        shown = x + fraction * (frame - x)
        return Applied(with_noise(shown, draws, step, self.noise), {k: drawn[k] for k in ("angle", "scale", "light")})

    @override
    def penalty(self, state: PhysicalState) -> Tensor:
        texture = state.texture
        channels, high, wide = texture.shape
        on = frame_depth(pixels(high, wide, texture) / 2) > 0
        score = non_printability(texture, printable(texture, channels), on)
        return self.smoothness * total_variation(texture, on) + self.printability * score


def frame_depth(at: Tensor) -> Tensor:
    """How deep inside the frame places (..., 2) on its sheet lie, negative outside; nearly a distance near the edge.

    Example:
        >>> places = torch.tensor([[0.0, -0.06], [0.86, 0.0], [0.5, 0.0], [0.0, 0.4]])  # bridge, rim, lens, below
        >>> (frame_depth(places) > 0).tolist()
        [True, True, False, False]
    """
    x, y = at[..., 0].abs(), at[..., 1]
    ellipse = (((x - _LENS) / _WIDE).square() + (y / _HIGH).square()).clamp_min(1e-12).sqrt()
    rim = _THIN / 2 - (ellipse - 1).abs() * _HIGH
    bar = _THIN / 2 - (y - _RAISED).abs()
    bridge = torch.minimum(bar, _BRIDGE - x)
    temple = torch.minimum(bar, torch.minimum(x - _TEMPLE, 1 - x))
    return torch.maximum(rim, torch.maximum(bridge, temple))
