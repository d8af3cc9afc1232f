"""The loop of all physical attacks: expectation over transformation with a texture as the variable (Athalye et al. 2018).

A method declares how its texture gets into a picture; what is here draws conditions, asks the models at the pictures,
pulls the gradient back to the texture, and moves that with Adam inside what can be made.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Self, TypeVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.common.adam import adam
from holdfast.attacks.common.grid import valid
from holdfast.attacks.shared import Applied, Artefact, SharedAttack, SharedState
from holdfast.core.cards import parameter
from holdfast.core.draws import SampleDraws
from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.core.problem import Problem
from holdfast.core.registry import name_of
from holdfast.core.threat import Goal
from holdfast.judge.asks import WhiteBoxAsk
from holdfast.numerics.distance import box
from holdfast.numerics.losses import Loss, cross_entropy, cross_entropy_targeted, margin, margin_targeted

__all__ = ["PhysicalAttack", "PhysicalState", "Printed"]

_DRAWS = 10


class Printed(NamedTuple):
    """What gets into a picture.

    Attributes:
        texture: what is learned.
        mask: where it may lie, None where that is everywhere.
    """

    texture: Tensor
    mask: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class PhysicalState(SharedState):
    """Attributes:
    texture: what is learned.
    mean: Adam's first moment, likewise.
    square: its second moment, likewise.
    count: (1,) int64 Adam's steps.
    """

    texture: Tensor
    mean: Tensor
    square: Tensor
    count: Tensor

    @classmethod
    def at(cls, texture: Tensor, **more: Tensor) -> Self:
        """The state before the first step."""
        zero = torch.zeros_like(texture)
        count = torch.zeros(1, dtype=torch.int64, device=texture.device)
        return cls(texture=texture, mean=zero, square=zero, count=count, **more)

    @property
    def printed(self) -> Printed:
        """What gets into a picture."""
        return Printed(self.texture)


P = TypeVar("P", bound=PhysicalState)


@dataclass(frozen=True, kw_only=True)
class PhysicalAttack(SharedAttack[WhiteBoxAsk, P]):
    """``texture <- clamp(texture - rate * adam(grad))`` of ``penalty - mean loss`` over fresh draws of the scene.

    Pictures are scaled to [0, 1] by the sets' boxes. With several models the mean of their losses counts.

    Attributes:
        learned: name of the texture in an artefact.
        geometry: names of the parameters that an artefact takes along, for its pictures are made with them.
    """

    state = PhysicalState
    learned: ClassVar[str] = "texture"
    geometry: ClassVar[tuple[str, ...]] = ()

    steps: int = parameter(500, "steps of Adam, at least 1", "ours")
    batch: int = parameter(64, "samples of a step, at least 1", "ours")
    views: int = parameter(1, "draws of each sample in a step, at least 1", "Brown et al. 2017: 1 an image and step")
    rate: float = parameter(0.1, "first step of Adam, above 0; falls to 0 as a cosine", "ours")
    loss: str = parameter(
        "margin", "ce or margin", "ours: the margin leaves fooled pictures alone; most papers take ce"
    )
    kappa: float = parameter(5.0, "margin at which a picture counts as fooled, 0 or more", "ours")
    aim: int = parameter(-1, "class to steer to where the problem has no targets; -1: just away", "ours")
    rotation: float = parameter(20.0, "largest turn to either side in degrees, 0 or more", "ours")
    zoom: float = parameter(0.2, "largest change of the size factor to either side of 1, in [0, 1)", "ours")
    light: float = parameter(0.2, "largest change of brightness, contrast and tone, in [0, 1)", "ours")
    noise: float = parameter(0.01, "standard deviation of the camera's noise, 0 or more", "ours")

    def __post_init__(self) -> None:
        if min(self.rotation, self.zoom, self.light, self.noise) < 0 or max(self.zoom, self.light) >= 1:
            raise UsageError("rotation and noise must be at least 0, zoom and light in [0, 1)")
        if self.loss not in ("ce", "margin"):
            raise UsageError(f"no loss '{self.loss}' here; use ce or margin")
        if min(self.steps, self.batch, self.views) < 1:
            raise UsageError("steps, batch and views must be at least 1")

    # what a method declares

    @abstractmethod
    def begin(self, problem: Problem, x: Tensor) -> P:
        """The state before the first step; x (n, C, H, W) in [0, 1]."""

    @abstractmethod
    def picture(self, printed: Printed, x: Tensor, draws: SampleDraws, step: int) -> Applied:
        """Pictures in [0, 1] of the samples x with the artefact; differentiable in the texture."""

    def penalty(self, state: P) -> Tensor:
        """() what the texture itself costs; nothing by default."""
        return state.texture.new_zeros(())

    def weights(self, losses: Tensor) -> Tensor:
        """(k,) weights of the models by their mean losses (k,), of sum 1."""
        return torch.full_like(losses, 1 / len(losses))

    def admit(self, texture: Tensor, state: P) -> Tensor:
        """The nearest texture that can be made."""
        return texture.clamp(0, 1)

    def lights(self) -> dict[str, tuple[float, float]]:
        """Ranges of what `lit` needs."""
        around = (1 - self.light, 1 + self.light)
        return {"light": around, "contrast": around, "tone": (-self.light, self.light)}

    def turns(self) -> dict[str, tuple[float, float]]:
        """Ranges of the turn and the size."""
        return {"angle": (-self.rotation, self.rotation), "scale": (1 - self.zoom, 1 + self.zoom)}

    # the contract

    @property
    @override
    def samples_a_step(self) -> int:
        return self.batch

    @property
    @override
    def draws(self) -> int:
        return _DRAWS

    @override
    def check(self, problem: Problem, models: int) -> None:
        super().check(problem, models)
        shape = tuple(problem.x.shape[1:])
        if len(shape) != 3 or shape[0] not in (1, 3) or min(shape[1:]) < 2:
            raise UnsupportedError(
                f"{self.card.title} needs pictures (1 or 3, height, width); these inputs are {shape}"
            )
        if not bool((problem.set.lower.isfinite() & problem.set.upper.isfinite()).all()):
            raise UnsupportedError(
                f"{self.card.title} needs a box with finite edges: paint has a darkest and a brightest"
            )

    @override
    def start(self, asks: Sequence[WhiteBoxAsk]) -> P:
        return self.begin(asks[0].problem, _unit(asks[0].problem)[0])

    @override
    def step(self, asks: Sequence[WhiteBoxAsk], state: P, step: int) -> P:
        grad = self.gradient(asks, state, step).nan_to_num(0.0)
        way, mean, square = adam(grad.unsqueeze(0), state.mean.unsqueeze(0), state.square.unsqueeze(0), state.count)
        rate = self.rate * 0.5 * float(1 + np.cos(np.pi * step / self.steps))
        moved = self.admit(state.texture - rate * way[0], state)
        return replace(state, texture=moved, mean=mean[0], square=square[0], count=state.count + 1)

    def gradient(self, asks: Sequence[WhiteBoxAsk], state: P, step: int) -> Tensor:
        """Of the objective, which the attack minimises, with respect to the texture: asks all models at one set of pictures
        and pulls their gradients back.
        """
        rows = np.tile(np.arange(len(asks[0].problem)), self.views)
        seen = _seen(asks[0].problem, rows, self.views)
        loss, target = self._loss(seen)
        unit, low, width = _unit(seen)
        with torch.enable_grad():
            texture = state.texture.detach().requires_grad_()
            free = replace(state, texture=texture)
            shot = low + width * self.picture(free.printed, unit, seen.keyed, step).x
            point = _inside(seen, shot.detach())
            aim = None if target is None else torch.full_like(seen.target, target)
            answers = [ask.at(rows).as_given.gradient(point, loss, target=aim) for ask in asks]
            weights = self.weights(torch.stack([a.value.nan_to_num(0.0).mean() for a in answers]))
            push = sum(
                (w * a.grad.nan_to_num(0.0) for w, a in zip(weights, answers, strict=True)), torch.zeros_like(shot)
            )
            objective = self.penalty(free) - (shot * push.detach()).sum() / len(shot)
            return torch.autograd.grad(objective, texture)[0]

    def _loss(self, problem: Problem) -> tuple[Loss, int | None]:
        """The loss, and the class to steer to where it is not the problem's."""
        aimed = problem.goal is Goal.TARGETED
        targeted = aimed or self.aim >= 0
        if self.loss == "ce":
            loss = cross_entropy_targeted if targeted else cross_entropy
        else:
            loss = margin_targeted(self.kappa) if targeted else margin(self.kappa)
        return loss, self.aim if targeted and not aimed else None

    @override
    def artefact(self, state: P) -> Artefact:
        printed = state.printed
        tensors = {self.learned: printed.texture} | ({} if printed.mask is None else {"mask": printed.mask})
        return Artefact(name_of(self), tensors, {name: getattr(self, name) for name in self.geometry})

    @torch.no_grad()
    @override
    def apply(self, artefact: Artefact, x: Tensor, draws: SampleDraws, problem: Problem | None = None) -> Applied:
        tensors = {k: v.to(x) for k, v in artefact.tensors.items()}
        printed = Printed(tensors[self.learned], tensors.get("mask"))
        made = replace(self, **{name: artefact.facts[name] for name in self.geometry})
        if problem is None:
            return made.picture(printed, x, draws, 0)
        unit, low, width = _unit(problem)
        taken = made.picture(printed, unit, draws, 0)
        return replace(taken, x=_inside(problem, low + width * taken.x))


def _unit(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """The samples in [0, 1], and the lower edge and the width of their box."""
    low, high = box(replace(problem.set, mask=None), problem.x)
    width = high - low
    return ((problem.x - low) / torch.where(width > 0, width, 1.0)).clamp(0, 1), low, width


def _inside(problem: Problem, x: Tensor) -> Tensor:
    """x in the box, on the grid of valid values if there is one: what a camera would store."""
    whole = replace(problem, set=replace(problem.set, mask=None))
    low, high = box(whole.set, problem.x)
    return valid(whole, torch.minimum(torch.maximum(x, low), high))


def _seen(problem: Problem, rows: np.ndarray, views: int) -> Problem:
    """Each sample as often as ``rows`` says, with draws of their own in each view."""
    if views == 1:
        return problem
    many = problem.select(rows)
    return replace(many, draws=problem.keyed.draws.of(many.ids, np.repeat(np.arange(views), len(problem))))
