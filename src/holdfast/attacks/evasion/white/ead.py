"""EAD: elastic-net attacks by FISTA (Chen et al. 2018, algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.families.penalty import Penalty, PenaltyState, hinge
from holdfast.core.cards import Card, parameter
from holdfast.core.errors import UsageError
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.judge.asks import WhiteBoxAsk
from holdfast.numerics.distance import box

__all__ = ["EAD", "shrink"]


@dataclass(frozen=True)
class EADState(PenaltyState):
    """Attributes:
    here: (n, \\*features) the iterate x^k, which is what is judged.
    ahead: (n, \\*features) the extrapolated point y^k, where the gradient is taken.
    """

    here: Tensor
    ahead: Tensor


@dataclass(frozen=True)
class EAD(Penalty[EADState]):
    """``minimise c * max(margin + kappa, 0) + |delta|_2^2 + beta |delta|_1`` in the box, by accelerated proximal steps."""

    beta: float = parameter(
        5.0,
        "weight of the l1 term, at least 0",
        "ours; Chen et al. 2018 shrink by 1e-3 to 5e-2 a step of 0.01, which are weights 0.1 to 5",
    )
    rate: float = parameter(0.01, "step at the start of a search; falls with the root of what is left", "authors' code")

    card: ClassVar[Card] = Card(
        title="EAD",
        rows=("E06", "T03"),
        paper="Chen, Sharma, Zhang, Yi, Hsieh 2018, EAD: Elastic-Net Attacks to Deep Neural Networks via Adversarial "
        "Examples, arXiv:1709.04114",
        section="2.2",
        summary="Penalises the squared l2 and the l1 size together, so that few features change.",
        access=Access.WHITE_BOX,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.PENALTY,
        norms=(Norm.L1, Norm.L2),
        affine_ratio={Norm.L1: 1.05},
        failure_modes=(
            "The step is in the units of the features: a box far from [0, 1] needs another rate and beta.",
            "In l2 the l1 term costs distance; beta = 0 is the plain l2 problem.",
        ),
        checked_by="the exact affine oracle; l1 falls as beta grows",
    )

    @override
    def check(self, problem: Problem) -> None:
        super().check(problem)
        if not (self.beta >= 0 and self.rate > 0):
            raise UsageError(f"EAD needs beta >= 0 and rate > 0, got {self.beta} and {self.rate}")

    @property
    @override
    def passes(self) -> int:
        return 3 * self.iterations + self.ends

    @override
    def start(self, ask: WhiteBoxAsk) -> EADState:
        problem = ask.problem
        return self.initial(EADState, problem, here=problem.x, ahead=problem.x)

    @override
    def advance(self, ask: WhiteBoxAsk, state: EADState) -> EADState:
        problem = ask.problem
        low, high = box(problem.set, problem.x)
        f = hinge(ask, state.ahead, self.kappa)
        delta = state.ahead - problem.x
        rate = self.rate * (1 - state.inner.double() / self.steps).sqrt()
        rate = rate.masked_fill(self.finished(state), 0.0)
        force = problem.flat(state.c).to(delta.dtype) * f.grad + 2 * delta
        a = problem.flat(rate).to(delta.dtype)
        here = shrink(state.ahead - a * force, problem.x, a * self.beta).clamp(low, high)
        inertia = problem.flat((state.inner + 1).double() / (state.inner + 4)).to(delta.dtype)
        ahead = (here + inertia * (here - state.here)).clamp(low, high)
        answer = ask.scores(here)
        state, _ = self.note(replace(state, here=here, ahead=ahead), answer)
        moved = (here - problem.x).flatten(1).double()
        short = (answer.margin + self.kappa).clamp_min(0).double()
        size = moved.square().sum(1) + self.beta * moved.abs().sum(1)
        state, over = self.turn(state, size + state.c * short)
        anew = problem.flat(over)
        return replace(
            state, here=torch.where(anew, problem.x, state.here), ahead=torch.where(anew, problem.x, state.ahead)
        )


def shrink(z: Tensor, x: Tensor, by: Tensor) -> Tensor:
    """The point that minimises ``|u - z|^2 / 2 + by * |u - x|_1``: z drawn toward x by so much, feature by feature.

    Example:
        >>> shrink(torch.tensor([0.9, 0.45, 0.0]), torch.full((3,), 0.5), torch.tensor(0.25)).tolist()
        [0.6499999761581421, 0.5, 0.25]
    """
    delta = z - x
    return x + delta.sign() * (delta.abs() - by).clamp_min(0)
