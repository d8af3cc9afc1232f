"""Sign-OPT: descends on the distance to the boundary with one query per directional derivative (Cheng et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.families.direction_search import DirectionSearch, way
from holdfast.core.cards import Card, parameter
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.judge.asks import HardLabelAsk

__all__ = ["SignOPT"]


@dataclass(frozen=True)
class SignOPT(DirectionSearch):
    """A direction turned by a little is better if it is adversarial at the radius where the old one crosses: that one
    label is the sign of g's derivative, and the mean of the turns with their signs is how g falls.
    """

    directions: int = parameter(200, "random directions of an estimate, at least 2", "Cheng et al. 2020, section 3.1")

    card: ClassVar[Card] = Card(
        title="Sign-OPT",
        rows=("E32", "T03"),
        paper="Cheng, Singh, Chen, Chen, Liu, Hsieh 2020, Sign-OPT: A Query-Efficient Hard-label Adversarial Attack, "
        "arXiv:1909.10773",
        section="2.2",
        summary="Turns the direction of the nearest adversarial point by signs of directional derivatives, a query each.",
        access=Access.HARD_LABEL,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.MINIMAL_DISTORTION,
        norms=(Norm.L2, Norm.LINF),
        affine_ratio={Norm.L2: 1.1, Norm.LINF: 1.2},
        failure_modes=(
            "A start must be found: noise may be of the label's own class, and seldom is of a target's; give `starts`.",
            "It follows the boundary of the start's region to a local optimum.",
            "Under linf it gains little on a start in a corner of the ball; RayS comes nearer.",
            "In float32 with very many features, a turn of 0.001 may be lost in rounding; raise `smoothing`.",
        ),
        checked_by="the exact affine oracle; the signs of the true derivative; the authors' logs on their MNIST network",
    )

    @property
    @override
    def price(self) -> int:
        return 1

    @override
    def weigh(self, ask: HardLabelAsk, unit: Tensor, radius: Tensor, smoothing: Tensor) -> Tensor:
        return torch.where(ask.adversarial(way(ask.problem, unit, radius)), 1.0, -1.0).double()
