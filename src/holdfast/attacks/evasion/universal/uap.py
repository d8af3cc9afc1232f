"""UAP: DeepFool's perturbations of sample after sample, added up in the ball (Moosavi-Dezfooli et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.common.boundary import deepfool_step, leave_a_class, rivals
from holdfast.attacks.common.universal import UniversalState, on_samples, project_shared
from holdfast.attacks.shared import Applied, Artefact, SharedAttack
from holdfast.core.cards import Card, parameter
from holdfast.core.draws import SampleDraws
from holdfast.core.errors import UsageError
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Formulation, Norm
from holdfast.judge.asks import ScoreAnswer, WhiteBoxAsk
from holdfast.numerics.distance import box, distance

__all__ = ["UAP", "UAPState"]


@dataclass(frozen=True)
class UAPState(UniversalState):
    """Attributes:
    best: (\\*features) the v of the best pass.
    rate: () float64 the share of the samples that it fools; -1 before the first.
    """

    best: Tensor
    rate: Tensor


@dataclass(frozen=True, kw_only=True)
class UAP(SharedAttack[WhiteBoxAsk, UAPState]):
    """For each sample that x + v does not fool: ``v <- project(v + r)``, r the least l2 move of x + v to a boundary.

    ``batch`` samples move v at once: along the sum of their r, as far as the mean of their lengths. One sample at a time
    is the paper's loop. The sum itself would overshoot where the r agree, and their mean would shorten the move where they
    do not. With several models each pair of sample and model has its r, and the rate is that of the worst model. A step
    of the fit is a pass over the data; the v of the best pass is kept.
    """

    passes: int = parameter(20, "passes over the data, at least 1", "ours; Moosavi-Dezfooli et al. 2017 set no limit")
    fooling: float = parameter(
        0.8, "share of the fitting samples at which it stops, 1 - delta", "Moosavi-Dezfooli et al. 2017: delta .2"
    )
    batch: int = parameter(
        16,
        "samples that move v at once, at least 1; 1 is the paper's loop",
        "ours: a pass takes less than half the time of 1",
    )
    inner: int = parameter(
        10, "most DeepFool steps for a sample, at least 1", "Moosavi-Dezfooli et al. 2017, authors' code"
    )
    candidates: int = parameter(
        10, "classes of largest logit that DeepFool looks at, at least 2", "Moosavi-Dezfooli et al. 2017, authors' code"
    )
    overshoot: float = parameter(
        0.02, "share by which r passes the boundary", "Moosavi-Dezfooli et al. 2017, authors' code"
    )

    state = UAPState
    card: ClassVar[Card] = Card(
        title="UAP",
        rows=("E15", "E16"),
        paper="Moosavi-Dezfooli, Fawzi, Fawzi, Frossard 2017, Universal Adversarial Perturbations, arXiv:1610.08401",
        section="2.2",
        summary="One perturbation for all inputs, from the DeepFool perturbations of those that it does not fool yet.",
        access=Access.WHITE_BOX,
        formulation=Formulation.BUDGET,
        norms=(Norm.L2, Norm.LINF),
        shared=True,
        failure_modes=(
            "It stops at the wanted rate on the fitting samples; on others the rate is lower: judge it on those.",
            "It follows one boundary after the other and never a common loss: SGD-UAP fools more, by far at small eps.",
            "Masked gradients stop DeepFool, and with it UAP.",
        ),
        checked_by="batch = 1 against the paper's loop written out; held-out fooling rate against SGD-UAP",
    )

    @property
    @override
    def iterations(self) -> int:
        return self.passes

    @override
    def check(self, problem: Problem, models: int) -> None:
        super().check(problem, models)
        leave_a_class(self.card.title, problem)
        if min(self.passes, self.batch, self.inner) < 1 or not 0 < self.fooling <= 1:
            raise UsageError("UAP needs passes, batch and inner of at least 1 and a fooling rate in (0, 1]")

    @override
    def start(self, asks: Sequence[WhiteBoxAsk]) -> UAPState:
        problem = asks[0].problem
        v = torch.zeros_like(problem.x[0])
        return UAPState(v, v, problem.set.eps.new_full((), -1.0))

    @override
    def step(self, asks: Sequence[WhiteBoxAsk], state: UAPState, step: int) -> UAPState:
        problem, v = asks[0].problem, state.v
        order = problem.keyed.uniform("order", (), step).argsort(stable=True).cpu().numpy()
        for k in range(0, len(order), self.batch):
            some = [ask.at(order[k : k + self.batch]) for ask in asks]
            v = project_shared(problem.set, v + self._move(some, v))
        rate = torch.stack([_fooled(ask, v)[0].double().mean() for ask in asks]).amin()  # of the model fooled least
        better = rate > state.rate
        return UAPState(v, torch.where(better, v, state.best), torch.where(better, rate, state.rate))

    @override
    def finished(self, state: UAPState) -> bool:
        return bool(state.rate >= self.fooling)

    def _move(self, asks: Sequence[WhiteBoxAsk], v: Tensor) -> Tensor:
        """(\\*features) what the samples that v does not fool ask of it, together."""
        moves = [torch.zeros_like(asks[0].problem.x[:0])]
        for ask in asks:
            fooled, answer = _fooled(ask, v)
            rows = (~fooled & answer.answered).nonzero().squeeze(-1)
            if len(rows):
                some = ask.at(rows.cpu().numpy())
                classes = rivals(answer.scores[rows], some.problem.y, self.candidates)
                moves.append(self._deepfool(some, answer.x[rows], classes))
        each = torch.cat(moves)
        total = each.sum(0)
        if len(each) < 2:
            return total
        length = distance(Norm.L2, total.unsqueeze(0)).clamp_min(torch.finfo(torch.float64).tiny)
        return total * (distance(Norm.L2, each).mean() / length).to(total.dtype)

    def _deepfool(self, ask: WhiteBoxAsk, x: Tensor, classes: Tensor) -> Tensor:
        """(n, \\*features) r, overshoot included; samples leave as they cross."""
        low, high = (edge.expand_as(x) for edge in box(ask.problem.set, ask.problem.x))
        delta, left = torch.zeros_like(x), torch.arange(len(x), device=x.device)
        for _ in range(self.inner):
            edges = low[left], high[left]
            at = (x[left] + (1 + self.overshoot) * delta[left]).clamp(*edges)
            answer = ask.at(left.cpu().numpy()).as_given.jacobian(at, classes[left])
            going = answer.answered & ~answer.adversarial
            near = deepfool_step(Norm.L2, at, answer.scores, answer.grad, classes[left], *edges, answer.unsure)
            delta = delta.index_add(0, left, (near - at) * ask.problem.flat(going).to(near.dtype))
            left = left[going]
            if not len(left):
                break
        return ((x + (1 + self.overshoot) * delta).clamp(low, high) - x).nan_to_num(0.0)

    @override
    def artefact(self, state: UAPState) -> Artefact:
        return Artefact("uap", {"v": state.best}, {"fooling_rate_on_fitting_samples": float(state.rate)})

    @override
    def apply(self, artefact: Artefact, x: Tensor, draws: SampleDraws, problem: Problem | None = None) -> Applied:
        v = artefact.tensors["v"].to(x)
        return Applied(x + v if problem is None else on_samples(problem, v))


def _fooled(ask: WhiteBoxAsk, v: Tensor) -> tuple[Tensor, ScoreAnswer]:
    """(n,) bool which samples v fools, and the answer; a tie that rounding decides counts, for no witness is claimed."""
    problem = ask.problem
    answer = ask.as_given.scores(on_samples(problem, v))
    return problem.criterion.holds(answer.scores, problem.y, problem.target) & answer.answered, answer
