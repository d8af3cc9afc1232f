"""FAB: the Fast Adaptive Boundary attack on the nearest of all linearised boundaries (Croce & Hein 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.common.boundary import nearest_plane
from holdfast.attacks.families.fast_boundary import FastBoundary, Plane
from holdfast.core.cards import Card
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.judge.asks import WhiteBoxAsk
from holdfast.numerics.distance import box

__all__ = ["FAB"]


@dataclass(frozen=True)
class FAB(FastBoundary):
    """Each step costs one backward for each class; `FABT` costs one."""

    card: ClassVar[Card] = Card(
        title="FAB",
        rows=("E08", "T03"),
        paper="Croce, Hein 2020, Minimally distorted Adversarial Examples with a Fast Adaptive Boundary Attack, "
        "arXiv:1907.02044",
        section="2.2",
        summary="Projections on the nearest linearised boundary in the box, biased toward the clean input.",
        access=Access.WHITE_BOX,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.MINIMAL_DISTORTION,
        norms=(Norm.L1, Norm.L2, Norm.LINF),
        affine_ratio={Norm.L1: 1.01, Norm.L2: 1.01, Norm.LINF: 1.01},
        failure_modes=(
            "A step costs K backwards: with many classes use FAB-T.",
            "Gradients that vanish or are masked leave nothing to linearise.",
        ),
        checked_by="the exact affine oracle; published medians on the MNIST networks",
    )

    @override
    def restart(self, problem: Problem) -> np.ndarray:
        return problem.round

    @override
    def plane(self, ask: WhiteBoxAsk, x: Tensor) -> Plane:
        problem = ask.problem
        if problem.goal is Goal.TARGETED:
            return Plane.of_criterion(ask, x)
        classes = (problem.y.unsqueeze(1) + torch.arange(ask.classes, device=x.device)) % ask.classes
        answer = ask.jacobian(x, classes)
        chosen, grad = answer.scores.gather(1, classes), answer.grad
        value, normal = chosen[:, 1:] - chosen[:, :1], grad[:, 1:] - grad[:, :1]
        value = value - answer.unsure.unsqueeze(1)
        j = nearest_plane(problem.set.norm, x, -value, normal.nan_to_num(0.0), *box(problem.set, problem.x))
        every = torch.arange(len(x), device=x.device)
        return Plane(value[every, j], normal[every, j])
