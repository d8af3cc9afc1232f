"""SPSA: Adam on gradients estimated from random signs (Uesato et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.common.adam import adam
from holdfast.attacks.families.zeroth import Ascent, AscentParameters, AscentState, coarse
from holdfast.core.arrays import on_device
from holdfast.core.cards import Card, parameter
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.judge.asks import SoftLabelAsk
from holdfast.numerics.steps import steepest
from holdfast.numerics.zeroth import Antithetic, Estimate

__all__ = ["SPSA"]

_STEPS = 100


@dataclass(frozen=True, kw_only=True)
class SPSA(Ascent):
    """Both sides of random sign vectors tell the slope; Adam follows its mean, projected on the set."""

    queries: int = parameter(
        25_700, "most queries of a sample, at least 1", "Uesato et al. 2018: 100 steps of 128 directions"
    )
    directions: int = parameter(
        128,
        "most directions of a step, two queries each, at least 1; fewer where the queries allow no 100 steps of them",
        "Uesato et al. 2018, authors' code (cleverhans)",
    )
    delta: float = parameter(0.01, "length of the step along each feature, above 0", "Uesato et al. 2018")
    rate: float = parameter(
        0.3, "Adam's step as a share of eps, above 0", "Uesato et al. 2018: 0.01, at eps 8/255 about a third"
    )

    card: ClassVar[Card] = Card(
        title="SPSA",
        rows=("E29", "T03"),
        paper="Uesato, O'Donoghue, van den Oord, Kohli 2018, Adversarial Risk and the Dangers of Evaluating Against Weak "
        "Attacks, arXiv:1802.05666",
        section="2.2",
        summary="Adam on a gradient estimated from simultaneous random perturbations; needs scores, no gradient.",
        access=Access.SOFT_LABEL,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.BUDGET,
        norms=(Norm.L2, Norm.LINF),
        failure_modes=(
            "Many queries: an estimate in d features from q directions has a cosine of about sqrt(q / d).",
            "A model whose scores are constant around x gives no slope.",
        ),
        checked_by="where gradients are masked it reaches what random search reaches; Adam in closed form",
    )

    @property
    @override
    def parameters(self) -> AscentParameters:
        return AscentParameters(queries=self.queries, rate=self.rate)

    @override
    def estimator(self, problem: Problem) -> Antithetic:
        directions = max(1, min(self.directions, self.queries // (2 * _STEPS)))
        return Antithetic(directions, coarse(problem, self.delta), "rademacher")

    @override
    def start(self, ask: SoftLabelAsk) -> AscentState:
        state = super().start(ask)
        return replace(state, momentum=torch.stack([state.momentum] * 2, dim=1))  # Adam's two moments

    @override
    def direction(self, problem: Problem, state: AscentState, estimate: Estimate) -> tuple[Tensor, Tensor]:
        first, second = state.momentum.unbind(1)
        move, first, second = adam(estimate.grad, first, second, on_device(state.step, state.x.device))
        # In linf Adam's step is about 1 in each feature and projected as it is; in l2 only its direction counts.
        return move if problem.set.norm is Norm.LINF else steepest(Norm.L2, move), torch.stack([first, second], dim=1)
