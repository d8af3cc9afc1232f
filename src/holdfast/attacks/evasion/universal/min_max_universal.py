"""A universal perturbation against weights that follow the samples it fools least (Wang et al. 2021, APGDA)."""

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
from holdfast.core.errors import UsageError
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.judge.asks import WhiteBoxAsk
from holdfast.numerics.losses import clipped, pick_loss
from holdfast.numerics.project import project_on_simplex

__all__ = ["MinMaxUniversal", "MinMaxUniversalState"]


@dataclass(frozen=True)
class MinMaxUniversalState(UniversalState):
    """Attributes:
    weight: (samples, models) float64, on the simplex.
    """

    weight: Tensor


@dataclass(frozen=True, kw_only=True)
class MinMaxUniversal(SharedAttack[WhiteBoxAsk, MinMaxUniversalState]):
    """``v <- project(v + step * steepest(sum_i w_i grad loss_i))``, then the weights of the simplex leave the samples
    that are fooled already. With several models each pair of sample and model is a domain.

    ``rate`` and ``gamma`` act on K w, the weight as a multiple of the mean one, so that they mean the same for any
    number K of domains: the paper's 1 / beta and gamma act on w.
    """

    steps: int = parameter(400, "steps, at least 1", "ours: as SGD-UAP; Wang et al. 2021 make 20")
    batch: int = parameter(128, "samples of a step, at least 1", "ours: as SGD-UAP")
    relative_step: float = parameter(0.1, "first step as a share of eps, above 0", "ours: as SGD-UAP")
    loss: str = parameter("margin", "ce, margin or dlr, of each sample", "Wang et al. 2021, section 4: C&W")
    kappa: float = parameter(5.0, "at which the loss of a sample stops, 0 or more", "ours: as SGD-UAP")
    rate: float = parameter(
        0.25, "step of K w, 0 or more; 0 leaves the weights equal", "ours: fools more whole groups than 1 / 40 or 0"
    )
    gamma: float = parameter(
        3.0, "pull of K w toward 1, 0 or more; the larger, the nearer to the mean over the samples", "Wang et al. 2021"
    )

    state = MinMaxUniversalState
    card: ClassVar[Card] = Card(
        title="Min-max universal perturbation (APGDA)",
        rows=("E15", "E16", "E18", "T03"),
        paper="Wang, Zhang, Liu, Chen, Xu, Fardad, Li 2021, Adversarial Attack Generation Empowered by Min-Max "
        "Optimization, arXiv:1906.03563, section 4",
        section="2.2",
        summary="One perturbation for a group of inputs, led by those that it fools least.",
        access=Access.WHITE_BOX,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.BUDGET,
        norms=(Norm.L1, Norm.L2, Norm.LINF),
        shared=True,
        failure_modes=(
            "Samples that no perturbation of this size fools get the weight, and the others lose it: on many samples, "
            "and on new ones, equal weights (SGD-UAP) often fool more. It is for groups that must all be fooled.",
            "Losses of unlike scale between models: the one with the large logits leads.",
        ),
        checked_by="rate = 0 gives SGD-UAP; weights on the simplex; groups that must all be fooled",
    )

    @property
    @override
    def samples_a_step(self) -> int:
        return self.batch

    @override
    def check(self, problem: Problem, models: int) -> None:
        super().check(problem, models)
        if min(self.steps, self.batch) < 1 or min(self.rate, self.gamma, self.kappa) < 0:
            raise UsageError("min-max needs steps and batch of at least 1, and rate, gamma and kappa of at least 0")

    @override
    def start(self, asks: Sequence[WhiteBoxAsk]) -> MinMaxUniversalState:
        problem = asks[0].problem
        domains = len(problem) * len(asks)
        even = problem.set.eps.new_full((len(problem), len(asks)), 1 / domains)
        return MinMaxUniversalState(torch.zeros_like(problem.x[0]), even)

    @override
    def step(self, asks: Sequence[WhiteBoxAsk], state: MinMaxUniversalState, step: int) -> MinMaxUniversalState:
        problem, total = asks[0].problem, torch.zeros_like(state.v)
        x = on_samples(problem, state.v)
        values: list[Tensor] = []
        domains = state.weight.numel()
        multiple = domains * state.weight[problem.rows]
        for k, ask in enumerate(asks):
            plain, _ = pick_loss(self.loss, problem.goal, ask.classes)
            g = ask.as_given.gradient(x, clipped(plain, self.kappa))
            total += (problem.flat(multiple[:, k].to(x.dtype)) * g.grad.nan_to_num(0.0)).mean(0)
            values.append(g.value.double().nan_to_num(0.0) * g.answered)
        moved = multiple - self.rate * (torch.stack(values, 1) + self.gamma * (multiple - 1))
        weight = state.weight.index_copy(0, problem.rows, moved / domains)
        weight = project_on_simplex(weight.view(1, -1)).view_as(weight)
        length = falling(self.relative_step, step, self.steps)
        return MinMaxUniversalState(ascend(problem.set, state.v, total, length), weight)

    @override
    def artefact(self, state: MinMaxUniversalState) -> Artefact:
        return Artefact("min_max_universal", {"v": state.v, "weight": state.weight})

    @override
    def apply(self, artefact: Artefact, x: Tensor, draws: SampleDraws, problem: Problem | None = None) -> Applied:
        v = artefact.tensors["v"].to(x)
        return Applied(x + v if problem is None else on_samples(problem, v))
