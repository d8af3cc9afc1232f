"""ZO-NGD: natural gradient steps, gradient and Fisher information from the same values (Zhao et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.families.zeroth import Ascent, AscentParameters, AscentState, coarse, soft_loss
from holdfast.core.cards import Card, parameter
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.judge.asks import SoftLabelAsk
from holdfast.numerics.losses import complete
from holdfast.numerics.steps import steepest
from holdfast.numerics.zeroth import Antithetic, Estimate, Estimator, Values, natural

__all__ = ["ZONGD"]


@dataclass(frozen=True, kw_only=True)
class ZONGD(Ascent):
    """``x <- project(x + rate * eps * steepest((damping I + F)^-1 g))``: the values that estimate g, the loss's
    gradient, also give the gradients s_k of the log-probabilities, and ``F = sum_k f_k s_k s_k^T`` of low rank.
    """

    queries: int = parameter(10_000, "most queries of a sample, at least 1", "ours: the limit of Ilyas et al. 2018")
    q: int = parameter(20, "pairs of directions of an estimate, at least 1", "Zhao et al. 2020, code: 40 values")
    mu: float = parameter(0.01, "length of a difference, in widths of the box, above 0", "ours; 1 of 255 in the code")
    damping: float = parameter(1.0, "what is added to the Fisher information, above 0", "Zhao et al. 2020, code")
    classes: int = parameter(16, "most classes in the Fisher information, the likeliest first, at least 1", "ours")
    relative_step: float = parameter(0.2, "step as a share of eps, in (0, 1]", "ours: free of the loss's scale")
    momentum: float = parameter(0.9, "what the mean of the directions keeps, in [0, 1)", "ours; none in the paper")
    patience: int = parameter(
        5, "steps in which the loss must grow, else the step halves; 0: it never does", "Ilyas et al. 2018, code"
    )
    loss: str = parameter("log-margin", "log-margin or ce", "Zhao et al. 2020")

    card: ClassVar[Card] = Card(
        title="ZO-NGD",
        rows=("E27", "T03"),
        paper="Zhao, Chen, Wang, Lin 2020, Towards Query-Efficient Black-Box Adversary with Zeroth-Order Natural "
        "Gradient Descent, AAAI, arXiv:2002.07891",
        section="2.2",
        summary="Ascent along the natural gradient, both factors of which come from the same finite differences.",
        access=Access.SOFT_LABEL,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.BUDGET,
        norms=(Norm.L2, Norm.LINF),
        affine_ratio={Norm.LINF: 1.25, Norm.L2: 1.25},
        failure_modes=(
            "Where the model is sure, the Fisher information vanishes and it is plain random-direction ascent.",
            "Needs all log-probabilities: an answer of the top k leaves it the classes that are told.",
        ),
        checked_by="the exact Newton step on a quadratic; a dense solve; exact query counts",
    )

    @property
    @override
    def parameters(self) -> AscentParameters:
        return AscentParameters(
            queries=self.queries,
            rate=self.relative_step,
            momentum=self.momentum,
            patience=self.patience,
            loss=self.loss,
        )

    @override
    def estimator(self, problem: Problem) -> Estimator:
        return Antithetic(self.q, coarse(problem, self.mu))

    @override
    def values(self, ask: SoftLabelAsk) -> Values:
        loss = soft_loss(ask.problem.goal, self.loss)

        def loss_and_scores(points: Tensor) -> Tensor:
            answer = ask.as_given.scores(points)
            logs = complete(answer.scores.flatten(0, 1)).view_as(answer.scores).double()
            logs = logs.masked_fill(~answer.answered.unsqueeze(2), torch.nan)
            return torch.cat([answer.losses(loss).unsqueeze(2), logs], dim=2)

        return loss_and_scores

    @override
    def direction(self, problem: Problem, state: AscentState, estimate: Estimate) -> tuple[Tensor, Tensor]:
        p = estimate.value[:, 1:].softmax(1)
        first = p.topk(min(self.classes, p.shape[1]), dim=1)
        every = torch.arange(len(p), device=p.device).unsqueeze(1)
        way = natural(estimate.grad[:, 0], estimate.grad[every, 1 + first.indices], first.values, self.damping)
        momentum = self.momentum * state.momentum + (1 - self.momentum) * way
        return steepest(problem.set.norm, momentum), momentum
