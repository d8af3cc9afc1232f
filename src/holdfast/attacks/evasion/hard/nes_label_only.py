"""NES, label-only mode: labels of noisy copies stand in for a score (Ilyas et al. 2018, section 2.4)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.attack import Attack, State
from holdfast.attacks.common.label_walk import adversarial_starts
from holdfast.attacks.common.line_search import FIRST_SHRINK, line_search
from holdfast.attacks.families.zeroth import askable, coarse
from holdfast.core.cards import Card, parameter
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.judge.asks import HardLabelAsk
from holdfast.numerics.distance import between, box
from holdfast.numerics.steps import steepest
from holdfast.numerics.zeroth import Antithetic

__all__ = ["NESLabelOnly"]


@dataclass(frozen=True, kw_only=True)
class NESLabelOnlyState(State):
    """``x`` is adversarial.

    Attributes:
        momentum: (n, \\*features) running mean of the estimates.
        radius: (n,) float64 radius of the ball that x is kept in.
        shrink: (n,) float64 by how much the next step tries to make it less.
        over: (n,) bool: no start was found.
    """

    momentum: Tensor
    radius: Tensor
    shrink: Tensor
    over: Tensor


@dataclass(frozen=True, kw_only=True)
class NESLabelOnly(Attack[HardLabelAsk, NESLabelOnlyState]):
    """Ascent on the share of noisy copies that are adversarial, in a ball that shrinks from an adversarial start."""

    queries: int = parameter(10_000, "most queries of a sample, at least 1", "ours; Ilyas et al. 2018: millions")
    q: int = parameter(10, "pairs of an estimate, at least 1", "ours: 25 in the paper, with a larger budget")
    copies: int = parameter(
        1, "noisy copies of a point, at least 1", "ours: a copy more is a direction less; 50 with the paper's budget"
    )
    sigma: float = parameter(0.1, "standard deviation of the search, above 0", "ours: labels change only so far away")
    mu: float = parameter(0.05, "noise of the copies, uniform in +- mu, above 0", "ours, like sigma")
    relative_step: float = parameter(0.2, "first step as a share of eps, in (0, 1]", "Ilyas et al. 2018: .01 of .05")
    momentum: float = parameter(0.7, "what the mean of the estimates keeps, in [0, 1)", "ours; .9 in the code")
    tries: int = parameter(100, "starts tried, at least 1", "ours: as HopSkipJump")
    candidates: int = parameter(30, "starts compared, at least 1", "ours")
    starts: Tensor | None = parameter(
        None, "(K, *features) an input of each class to start from", "Ilyas et al. 2018 start so"
    )

    card: ClassVar[Card] = Card(
        title="NES (label-only)",
        rows=("E22", "T03"),
        paper="Ilyas, Engstrom, Athalye, Lin 2018, Black-box Adversarial Attacks with Limited Queries and Information, "
        "ICML, arXiv:1804.08598",
        section="2.2",
        summary="NES on a score made of the labels of noisy copies.",
        access=Access.HARD_LABEL,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.BUDGET,
        norms=(Norm.L2, Norm.LINF),
        failure_modes=(
            "Most queries tell nothing: HopSkipJump and Sign-OPT get further with the same number.",
            "sigma and mu must suit how far the boundary is from the iterate; both are in widths of the box.",
        ),
        checked_by="the direction into the adversarial side of a plane; exact query counts",
    )

    @override
    def start(self, ask: HardLabelAsk) -> NESLabelOnlyState:
        problem = ask.problem
        x, started = adversarial_starts(ask, tries=self.tries, candidates=self.candidates, starts=self.starts)
        radius = torch.maximum(between(problem.set.norm, x, problem.x), problem.set.eps)
        return NESLabelOnlyState.at(
            x, momentum=torch.zeros_like(x), radius=radius, shrink=FIRST_SHRINK * radius, over=~started
        )

    @override
    def step(self, ask: HardLabelAsk, state: NESLabelOnlyState) -> NESLabelOnlyState:
        problem = ask.problem
        low, high = (edge.expand_as(problem.x) for edge in box(problem.set, problem.x))
        clip = askable(problem, low, high)
        noise = 2 * problem.keyed.uniform("copies", (self.copies, *state.x.shape[1:]), state.step).to(state.x) - 1

        def score(points: Tensor) -> Tensor:
            # The same noise for all points: what they share cancels in the differences.
            told = [ask.as_given.labels(clip(points + self.mu * e.unsqueeze(1))) for e in noise.unbind(1)]
            votes = [t.adversarial.double().masked_fill(~t.answered, torch.nan) for t in told]
            return torch.stack(votes).mean(0)

        grad = Antithetic(self.q, coarse(problem, self.sigma))(score, state.x, problem.keyed, state.step, clip).grad
        momentum = self.momentum * state.momentum + (1 - self.momentum) * grad
        move = steepest(problem.set.norm, momentum)

        rate = torch.full_like(state.radius, self.relative_step)
        x, radius, shrink = line_search(
            ask, state.x, move, rate, state.radius, state.shrink, lambda some, z: some.adversarial(z)
        )
        return replace(state, x=x, momentum=momentum, radius=radius, shrink=shrink)

    @override
    def finished(self, state: NESLabelOnlyState) -> Tensor:
        return state.over
