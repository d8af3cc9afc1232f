"""FAB-T: FAB with one target class in a round, as AutoAttack runs it (Croce & Hein 2020)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.families.fast_boundary import FastBoundary, FastBoundaryState, Plane
from holdfast.core.arrays import on_device
from holdfast.core.cards import Card, parameter
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.judge.asks import WhiteBoxAsk

__all__ = ["FABT"]


@dataclass(frozen=True)
class FABT(FastBoundary):
    """One backward, of the difference of two logits, in a step; the targets are the rivals of largest clean logit."""

    targets: int = parameter(9, "target classes, one in a round, at least 1", "AutoAttack: Croce & Hein 2020b")

    card: ClassVar[Card] = Card(
        title="FAB-T",
        rows=("E08", "T03"),
        paper="Croce, Hein 2020, Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse "
        "Parameter-free Attacks, arXiv:2003.01690",
        section="2.2",
        summary="FAB toward one rival class in a round, the nearest rivals first.",
        access=Access.WHITE_BOX,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.MINIMAL_DISTORTION,
        norms=(Norm.L1, Norm.L2, Norm.LINF),
        affine_ratio={Norm.L1: 1.01, Norm.L2: 1.01, Norm.LINF: 1.01},
        failure_modes=(
            "With more than targets + 1 classes, the nearest boundary may belong to a rival that is not tried.",
            "Gradients that vanish or are masked leave nothing to linearise.",
        ),
        checked_by="the exact affine oracle; the passes of AutoAttack's own runs",
    )

    @property
    @override
    def rounds(self) -> int:
        return self.targets * self.restarts

    @override
    def restart(self, problem: Problem) -> np.ndarray:
        return problem.round // self.targets

    @override
    def start(self, ask: WhiteBoxAsk) -> FastBoundaryState:
        problem = ask.problem
        state = super().start(ask)
        # A model with fewer classes has fewer targets; a targeted problem has one.
        last = 1 if problem.goal is Goal.TARGETED else ask.classes - 1
        over = problem.round % self.targets >= last
        return replace(state, over=on_device(over, problem.x.device))

    @override
    def plane(self, ask: WhiteBoxAsk, x: Tensor) -> Plane:
        problem = ask.problem
        if problem.goal is Goal.TARGETED:
            return Plane.of_criterion(ask, x)
        rivals = ask.clean.scatter(1, problem.y.unsqueeze(1), float("-inf"))
        order = rivals.argsort(dim=1, descending=True, stable=True)
        which = on_device(problem.round % self.targets, x.device).clamp_max(order.shape[1] - 1)
        aim = order.gather(1, which.unsqueeze(1)).squeeze(1)
        g = ask.gradient(x, _difference, target=aim)
        return Plane(g.value - g.unsure, g.grad)


def _difference(scores: Tensor, y: Tensor, aim: Tensor) -> Tensor:
    return (scores.gather(1, aim.unsqueeze(1)) - scores.gather(1, y.unsqueeze(1))).squeeze(1)
