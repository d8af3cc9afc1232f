"""A universal perturbation by mini-batch gradient ascent (Shafahi et al. 2020; the batched form of UAP)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.common.universal import UniversalState, ascend, falling, on_samples
from holdfast.attacks.shared import Applied, Artefact, SharedAttack
from holdfast.core.cards import Card, parameter
from holdfast.core.draws import SampleDraws
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.judge.asks import WhiteBoxAsk
from holdfast.numerics.losses import Loss, margin, margin_targeted, pick_loss

__all__ = ["SgdUap"]


@dataclass(frozen=True, kw_only=True)
class SgdUap(SharedAttack[WhiteBoxAsk, UniversalState]):
    """``v <- project(v + step * steepest(mean gradient of the loss at x + v))`` on one batch after the other.

    With several models the gradients of all are summed: the perturbation fools the ensemble (Tramer et al. 2018). The
    loss of a sample stops at kappa, so that samples that are fooled already leave the direction to the others.
    """

    steps: int = parameter(400, "mini-batch steps, at least 1", "ours; Shafahi et al. 2020 make 10 passes of ImageNet")
    batch: int = parameter(128, "samples of a step, at least 1", "Shafahi et al. 2020, section 4")
    relative_step: float = parameter(0.1, "first step as a share of eps, above 0", "ours; it falls to 0 as a cosine")
    loss: str = parameter("margin", "ce or margin", "ours; Shafahi et al. 2020 clip the cross-entropy")
    kappa: float = parameter(
        5.0, "margin at which a sample counts as fooled, 0 or more", "ours; Shafahi et al. 2020 clip the loss at 9"
    )

    state = UniversalState
    card: ClassVar[Card] = Card(
        title="SGD-UAP",
        rows=("E15", "E16", "T03"),
        paper="Shafahi, Najibi, Xu, Dickerson, Davis, Goldstein 2020, Universal Adversarial Training, arXiv:1811.11304; "
        "Tramer et al. 2018, Ensemble Adversarial Training, arXiv:1705.07204",
        section="2.2",
        summary="One perturbation for all inputs, by mini-batch ascent on one model or on several at once.",
        access=Access.WHITE_BOX,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.BUDGET,
        norms=(Norm.L1, Norm.L2, Norm.LINF),
        shared=True,
        failure_modes=(
            "A perturbation fitted on few samples fits those: judge it on others, as `evaluate` does.",
            "Small eps: what fools each sample apart need not have a common direction.",
        ),
        checked_by="held-out fooling rate against random signs and against UAP; one model and one sample give PGD's loss",
    )

    @property
    @override
    def samples_a_step(self) -> int:
        return self.batch

    @override
    def start(self, asks: Sequence[WhiteBoxAsk]) -> UniversalState:
        return UniversalState(torch.zeros_like(asks[0].problem.x[0]))

    @override
    def step(self, asks: Sequence[WhiteBoxAsk], state: UniversalState, step: int) -> UniversalState:
        problem, total = asks[0].problem, torch.zeros_like(state.v)
        x = on_samples(problem, state.v)
        for ask in asks:
            grad = ask.as_given.gradient(x, self._loss(problem, ask.classes)).grad
            total += grad.nan_to_num(0.0).mean(0)
        return UniversalState(ascend(problem.set, state.v, total, falling(self.relative_step, step, self.steps)))

    def _loss(self, problem: Problem, classes: int) -> Loss:
        if self.loss == "margin":
            return margin_targeted(self.kappa) if problem.goal is Goal.TARGETED else margin(self.kappa)
        return pick_loss(self.loss, problem.goal, classes)[0]

    @override
    def artefact(self, state: UniversalState) -> Artefact:
        return Artefact("sgd_uap", {"v": state.v})

    @override
    def apply(self, artefact: Artefact, x: Tensor, draws: SampleDraws, problem: Problem | None = None) -> Applied:
        v = artefact.tensors["v"].to(x)
        return Applied(x + v if problem is None else on_samples(problem, v))
