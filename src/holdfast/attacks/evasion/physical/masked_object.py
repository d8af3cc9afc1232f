"""Robust physical perturbations, RP2 (Eykholt et al. 2018): stickers on an object that stay adversarial as it is seen."""

from __future__ import annotations

from collections.abc import Sequence
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
from holdfast.judge.asks import WhiteBoxAsk
from holdfast.transforms.scene.camera import (
    blurred,
    clipped,
    conditions,
    homography,
    lit,
    pixels,
    sample,
    seen_at,
    with_noise,
)
from holdfast.transforms.scene.printing import non_printability, printable

__all__ = ["MaskedObject", "MaskedObjectState"]


@dataclass(frozen=True)
class MaskedObjectState(PhysicalState):
    """Attributes:
    mask: uint8, like the texture: where it may lie.
    object: likewise, the mean of the fitting samples.
    searches: (1,) uint8: the mask is still looked for.
    """

    mask: Tensor
    object: Tensor
    searches: Tensor

    @property
    @override
    def printed(self) -> Printed:
        return Printed(self.texture, self.mask)


@dataclass(frozen=True, kw_only=True)
class MaskedObject(PhysicalAttack[MaskedObjectState]):
    """``delta`` is added to the object inside a mask; the object with it is turned, scaled, moved and lit as a whole.

    The samples are pictures of one object, or of objects of one kind, that fills the picture at the same place (signs
    as a detector crops them). The mask is where the set of every fitting sample lets a feature change. Without one,
    the first steps fit delta everywhere with an l1 penalty, and the share ``area`` of the pixels that it changes most
    is the mask of the others, which start anew (the paper's two stages, its choice by eye made a rule).
    """

    area: float = parameter(0.2, "share of the pixels in a mask that is found, in (0, 1]", "ours")
    finding: float = parameter(0.3, "share of the steps that find the mask, in (0, 1)", "ours")
    sparsity: float = parameter(0.5, "weight of mean |delta| while the mask is found, 0 or more", "ours")
    size: float = parameter(0.002, "weight of mean |delta| inside the mask, 0 or more", "ours: the paper tunes lambda")
    printability: float = parameter(
        0.05, "weight of the non-printability score, 0 or more", "ours: our score is scaled"
    )
    rotation: float = parameter(10.0, "largest turn to either side in degrees, 0 or more", "ours")
    zoom: float = parameter(0.1, "largest change of the size factor to either side of 1, in [0, 1)", "ours")
    shift: float = parameter(0.05, "largest move to either side in half the shorter side, 0 or more", "ours")
    tilt: float = parameter(0.1, "largest perspective to either side, in [0, 0.5]", "ours: seen from beside the road")
    blur: float = parameter(0.0, "largest blur, standard deviation in pixels, 0 or more", "ours")

    state = MaskedObjectState
    learned: ClassVar[str] = "delta"
    card: ClassVar[Card] = Card(
        title="RP2",
        rows=("E40", "T03"),
        paper="Eykholt, Evtimov, Fernandes, Li, Rahmati, Xiao, Prakash, Kohno, Song 2018, Robust Physical-World Attacks "
        "on Deep Learning Visual Classification, arXiv:1707.08945",
        section="2.2",
        summary="Stickers inside a mask on an object, in printable colours, over photos and synthetic views of it.",
        access=Access.WHITE_BOX,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.PENALTY,
        modality=("image",),
        shared=True,
        failure_modes=(
            "One delta on objects of different looks is a masked universal perturbation: fit on one kind of object.",
            "A clean sample counts as right as it is; a strong turn or light may break it without any sticker.",
        ),
        checked_by="a full mask and one still view give the step of SGD-UAP; real photos of stop signs",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.area <= 1 or not 0 < self.finding < 1 or not 0 <= self.tilt <= 0.5:
            raise UsageError("RP2 needs area in (0, 1], finding in (0, 1) and tilt in [0, 0.5]")

    @override
    def begin(self, problem: Problem, x: Tensor) -> MaskedObjectState:
        given = problem.set.mask
        whole = torch.ones_like(x[0], dtype=torch.bool)
        mask = whole if given is None else given.expand(len(x), *x.shape[1:]).all(0)
        if not bool(mask.any()):
            raise UsageError("the samples' masks have no feature in common, so no sticker fits on all of them")
        searches = torch.tensor([given is None]).to(torch.uint8)
        return MaskedObjectState.at(
            torch.zeros_like(x[0]), mask=mask.to(torch.uint8), object=x.mean(0), searches=searches
        )

    @override
    def step(self, asks: Sequence[WhiteBoxAsk], state: MaskedObjectState, step: int) -> MaskedObjectState:
        state = super().step(asks, state, step)
        if bool(state.searches) and step + 1 >= max(1, int(self.finding * self.steps)) and step + 1 < self.steps:
            mask, nothing = most_changed(state.texture, self.area), torch.zeros_like(state.searches)
            return MaskedObjectState.at(
                torch.zeros_like(state.texture), mask=mask.to(torch.uint8), object=state.object, searches=nothing
            )
        return state

    @override
    def picture(self, printed: Printed, x: Tensor, draws: SampleDraws, step: int) -> Applied:
        height, width = x.shape[2:]
        move, tilt = (-self.shift, self.shift), (-self.tilt, self.tilt)
        drawn = conditions(
            draws,
            step,
            x,
            **self.turns(),
            **self.lights(),
            right=move,
            down=move,
            lean=tilt,
            tip=tilt,
            blur=(0, self.blur),
        )
        at = seen_at(homography(drawn, drawn["scale"]), pixels(height, width, x))
        edges = at.new_tensor([min(height, width) / width, min(height, width) / height])
        mask = torch.ones_like(printed.texture) if printed.mask is None else printed.mask.to(x)
        print_ = clipped(x + mask * printed.texture)
        shown = blurred(lit(sample(print_, at * edges), drawn), drawn["blur"], self.blur)
        return Applied(with_noise(shown, draws, step, self.noise), {k: drawn[k] for k in ("angle", "scale", "light")})

    @override
    def penalty(self, state: MaskedObjectState) -> Tensor:
        delta, mask = state.texture, state.mask.to(state.texture)
        if bool(state.searches):
            return self.sparsity * delta.abs().mean()
        printed = (state.object + mask * delta).clamp(0, 1)
        score = non_printability(printed, printable(delta, len(delta)), mask.amax(0))
        return self.size * (mask * delta).abs().sum() / mask.sum() + self.printability * score

    @override
    def admit(self, texture: Tensor, state: MaskedObjectState) -> Tensor:
        return texture.clamp(-1, 1) * state.mask.to(texture)


def most_changed(delta: Tensor, area: float) -> Tensor:
    """bool (C, H, W): the share of the pixels at which delta (C, H, W) is largest over all channels; one at least.

    Example:
        >>> most_changed(torch.tensor([[[0.1, -0.9], [0.3, 0.2]]]), 0.5).tolist()
        [[[False, True], [True, False]]]
    """
    size = delta.abs().sum(0)
    count = max(1, round(area * size.numel()))
    mask = torch.zeros_like(size, dtype=torch.bool).flatten()
    mask[size.flatten().topk(count).indices] = True
    return mask.view_as(size).expand_as(delta).clone()
