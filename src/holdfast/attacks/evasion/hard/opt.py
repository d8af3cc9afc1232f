"""OPT: descends on the distance to the boundary as a function of the direction, with labels alone (Cheng et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from holdfast.attacks.families.direction_search import DirectionSearch, bracket, exact, narrow
from holdfast.core.cards import Card
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.judge.asks import HardLabelAsk

__all__ = ["OPT"]


@dataclass(frozen=True)
class OPT(DirectionSearch):
    """The gradient of g from differences of measured distances, along random turns of the direction (random
    gradient-free method).
    """

    card: ClassVar[Card] = Card(
        title="OPT",
        rows=("E31", "T03"),
        paper="Cheng, Le, Chen, Yi, Zhang, Hsieh 2019, Query-Efficient Hard-label Black-box Attack: An "
        "Optimization-based Approach, arXiv:1807.04457",
        section="2.2",
        summary="Turns the direction of the nearest adversarial point by a gradient estimated from measured distances.",
        access=Access.HARD_LABEL,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.MINIMAL_DISTORTION,
        norms=(Norm.L2, Norm.LINF),
        affine_ratio={Norm.L2: 1.2, Norm.LINF: 1.25},
        failure_modes=(
            "A start must be found: noise may be of the label's own class, and seldom is of a target's; give `starts`.",
            "It follows the boundary of the start's region to a local optimum.",
            "Under linf it gains little on a start in a corner of the ball; RayS comes nearer.",
            "Each direction costs a bisection: Sign-OPT comes as near with several times fewer queries.",
        ),
        checked_by="the exact affine oracle; g's gradient in closed form; the authors' logs on their MNIST network",
    )

    @property
    @override
    def price(self) -> int:
        return 12

    @override
    def weigh(self, ask: HardLabelAsk, unit: Tensor, radius: Tensor, smoothing: Tensor) -> Tensor:
        features = max(1, ask.problem.x[0].numel()) if len(ask.problem) else 1
        turn = radius * smoothing
        # A turn moves g by about a feature's share of it.
        low, high = bracket(ask, unit, radius, turn / features**0.5, outward=True)
        _, end = narrow(ask, unit, low, high, exact(turn))
        return (radius - end.clamp_max(2 * radius)) / turn
