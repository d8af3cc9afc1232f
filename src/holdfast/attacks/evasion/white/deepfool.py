"""DeepFool: steps to the nearest linearised class boundary (Moosavi-Dezfooli et al. 2016, algorithm 2)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.attack import Attack, State
from holdfast.attacks.common.boundary import (
    deepfool_step,
    leave_a_class,
    onto_plane,
    rivals,
    tighten,
)
from holdfast.core.arrays import on_device
from holdfast.core.cards import Card, parameter
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.judge.asks import WhiteBoxAsk
from holdfast.numerics.distance import box

__all__ = ["DeepFool", "DeepFoolState"]


@dataclass(frozen=True, kw_only=True)
class DeepFoolState(State):
    """``x`` is the overshot point.

    Attributes:
        bare: (n, \\*features) clean + delta.
        classes: (n, k) int64 the label and the classes whose boundaries are looked at.
        over: (n,) bool: the overshot point is adversarial.
        margin: (n,) the criterion's margin at the overshot point.
    """

    bare: Tensor
    classes: Tensor
    over: Tensor
    margin: Tensor


@dataclass(frozen=True, kw_only=True)
class DeepFool(Attack[WhiteBoxAsk, DeepFoolState]):
    """``delta <- delta + project(x + delta, nearest boundary in the box)`` until ``x + 1.02 delta`` crosses.

    Targeted, the boundary is the one between the target and whichever class is best at ``x + delta``; the steps grow to
    twice their length.
    """

    steps: int = parameter(50, "most steps, at least 1", "Moosavi-Dezfooli et al. 2016, authors' code")
    candidates: int = parameter(
        10, "classes of largest logit looked at, at least 2", "Moosavi-Dezfooli et al. 2016, section 4"
    )
    overshoot: float = parameter(0.02, "share by which the asked point passes delta", "Moosavi-Dezfooli et al. 2016")
    search: int = parameter(
        5, "forwards that bring the crossing back toward x along delta", "ours: takes the overshoot out of the distance"
    )

    card: ClassVar[Card] = Card(
        title="DeepFool",
        rows=("E07", "T03"),
        paper="Moosavi-Dezfooli, Fawzi, Frossard 2016, DeepFool: a simple and accurate method to fool deep neural "
        "networks, arXiv:1511.04599",
        section="2.2",
        summary="Newton-like steps to the nearest linearised boundary between the class and its rivals.",
        access=Access.WHITE_BOX,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.MINIMAL_DISTORTION,
        norms=(Norm.L2, Norm.LINF),
        affine_ratio={Norm.L2: 1.01, Norm.LINF: 1.01},
        failure_modes=(
            "It stops at the first crossing and never walks along the boundary: its distances are upper bounds, often "
            "1.2 to 2 times those of FAB.",
            "Targeted, one step costs one backward but only the best class is seen: with several in the way it comes to a "
            "point where the target wins, not to the nearest.",
            "Vanishing or masked gradients leave it where it is.",
        ),
        checked_by="the exact affine oracle; published and measured medians on the MNIST networks",
    )

    @override
    def check(self, problem: Problem) -> None:
        super().check(problem)
        if problem.goal is not Goal.TARGETED:
            leave_a_class(self.card.title, problem)

    @override
    def start(self, ask: WhiteBoxAsk) -> DeepFoolState:
        problem = ask.problem
        clean = ask.clean
        return DeepFoolState.at(
            problem.x,
            bare=problem.x,
            classes=rivals(clean, problem.y, self.candidates),
            over=torch.zeros_like(problem.y, dtype=torch.bool),
            margin=torch.zeros_like(problem.y, dtype=clean.dtype),
        )

    @override
    def step(self, ask: WhiteBoxAsk, state: DeepFoolState) -> DeepFoolState:
        problem = ask.problem
        norm, (low, high) = problem.set.norm, box(problem.set, problem.x)
        # A sample that is over, if it is not taken out at once, asks nothing new.
        here = torch.where(problem.flat(state.over), state.x, state.bare)
        looks = ask.as_given  # the boundary is that of the model, between valid points too
        if problem.goal is Goal.TARGETED:
            g = looks.gradient(here, problem.criterion.margin)
            there = onto_plane(norm, here, g.value + g.unsure, g.grad.nan_to_num(0.0), low, high)
            # With several classes in the way exact steps may go to and fro between two of them; longer ones pass both.
            longer = problem.flat(1 + on_device(state.step, here.device).double() / self.steps).to(here.dtype)
            bare = (here + longer * (there - here)).clamp(low, high)
        else:
            told = looks.jacobian(here, state.classes)
            bare = deepfool_step(norm, here, told.scores, told.grad, state.classes, low, high, told.unsure)
        ends = torch.full_like(problem.set.eps, 1 + self.overshoot)
        x = torch.where(problem.flat(state.over), state.x, ask.valid(_ray(problem, bare, ends)))
        answer = looks.scores(x)
        return replace(
            state,
            x=x,
            bare=torch.where(problem.flat(state.over), state.bare, bare),
            over=state.over | answer.adversarial,
            margin=torch.where(state.over, state.margin, answer.margin),
        )

    @override
    def finished(self, state: DeepFoolState) -> Tensor:
        return state.over

    @override
    def finalize(self, ask: WhiteBoxAsk, state: DeepFoolState) -> None:
        rows = np.flatnonzero(state.over.cpu().numpy())
        some, at = ask.at(rows), state.select(rows)
        ends = torch.full_like(some.problem.set.eps, 1 + self.overshoot)
        tighten(some, lambda t: _ray(some.problem, at.bare, t), ends, at.margin, self.search)


def _ray(problem: Problem, bare: Tensor, fraction: Tensor) -> Tensor:
    """clean + share * delta, in the box."""
    wide = problem.x.double()
    return (wide + problem.flat(fraction) * (bare.double() - wide)).to(bare.dtype).clamp(*box(problem.set, problem.x))
