"""NES: ascent on antithetic Gaussian estimates, with the partial-information mode (Ilyas et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.common.line_search import FIRST_SHRINK, line_search
from holdfast.attacks.families.zeroth import Ascent, AscentParameters, AscentState, coarse
from holdfast.core.cards import Card, parameter
from holdfast.core.errors import UnsupportedError
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.judge.asks import SoftLabelAsk
from holdfast.numerics.distance import between, box
from holdfast.numerics.zeroth import Antithetic, Estimator

__all__ = ["NES"]


@dataclass(frozen=True)
class NESState(AscentState):
    """Attributes:
    radius: (n,) float64 radius of the ball that the iterate is kept in; eps but in the partial-information mode.
    shrink: (n,) float64 by how much the next step tries to make it less.
    """

    radius: Tensor
    shrink: Tensor


@dataclass(frozen=True, kw_only=True)
class NES(Ascent):
    """``x <- project(x + rate * eps * steepest(m))``, m the mean of antithetic estimates.

    With ``starts`` it is the partial-information mode: it begins at an input of the target's class and shrinks the ball
    around the clean input to eps, step by step, such that the target stays among the classes that the answer shows.
    """

    queries: int = parameter(10_000, "most queries of a sample, at least 1", "Ilyas et al. 2018 allow up to a million")
    q: int = parameter(25, "pairs of an estimate, at least 1", "Ilyas et al. 2018: 50 values")
    sigma: float = parameter(0.001, "standard deviation of the search, above 0", "Ilyas et al. 2018")
    relative_step: float = parameter(0.2, "first step as a share of eps, in (0, 1]", "Ilyas et al. 2018: .01 of .05")
    momentum: float = parameter(0.9, "what the mean of the estimates keeps, in [0, 1)", "Ilyas et al. 2018, code")
    patience: int = parameter(
        5, "steps in which the loss must grow, else the step halves; 0: it never does", "Ilyas et al. 2018, code"
    )
    starts: Tensor | None = parameter(
        None,
        "(K, *features) an input of each class: the partial-information mode, for targets; None: start at x",
        "Ilyas et al. 2018, algorithm 2",
    )
    loss: str = parameter("log-margin", "log-margin or ce", "ours: ce, the paper's, is flat where the model is sure")

    card: ClassVar[Card] = Card(
        title="NES",
        rows=("E22", "T03"),
        paper="Ilyas, Engstrom, Athalye, Lin 2018, Black-box Adversarial Attacks with Limited Queries and Information, "
        "ICML, arXiv:1804.08598",
        section="2.2",
        summary="Ascent on gradients estimated by natural evolution strategies.",
        access=Access.SOFT_LABEL,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.BUDGET,
        norms=(Norm.L2, Norm.LINF),
        affine_ratio={Norm.LINF: 1.25, Norm.L2: 1.25},
        failure_modes=(
            "In d features q pairs leave a cosine of about sqrt(q / (q + d)) to the gradient.",
            "sigma must reach where the model's answers differ: a quantised score has no slope at a thousandth.",
            "Answers of the top class alone, untargeted, change only with that class's own score.",
        ),
        checked_by="the cosine to the gradient that theory gives; exact query counts",
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
        return Antithetic(self.q, coarse(problem, self.sigma))

    @override
    def check(self, problem: Problem) -> None:
        super().check(problem)
        if self.starts is not None and problem.goal is not Goal.TARGETED:
            raise UnsupportedError("starts are inputs of the targets' classes; give NES targets, or no starts")

    @override
    def start(self, ask: SoftLabelAsk) -> NESState:
        problem = ask.problem
        state, eps = super().start(ask), problem.set.eps
        if self.starts is None:
            return NESState(**vars(state), radius=eps, shrink=torch.zeros_like(eps))
        low, high = (edge.expand_as(problem.x) for edge in box(problem.set, problem.x))
        x = torch.minimum(torch.maximum(problem.counted(self.starts)[problem.target], low), high)
        ask.scores(x)
        radius = torch.maximum(between(problem.set.norm, x, problem.x), eps)
        wide = replace(state, x=x, low=low, high=high)
        return NESState(**vars(wide), radius=radius, shrink=FIRST_SHRINK * radius)

    @override
    def step(self, ask: SoftLabelAsk, state: AscentState) -> AscentState:
        if self.starts is None or not isinstance(state, NESState):
            return super().step(ask, state)
        return self._toward(ask, state)

    def _toward(self, ask: SoftLabelAsk, state: NESState) -> NESState:
        """A step of the partial-information mode: the largest move tried, into the smallest ball, that keeps the
        target in the answer.
        """
        problem = ask.problem
        estimate = self.estimate(ask, state)
        move, momentum = self.direction(problem, state, estimate)

        def shows_target(some: SoftLabelAsk, z: Tensor) -> Tensor:
            answer = some.scores(z)
            return answer.scores.gather(1, some.problem.target.unsqueeze(1)).squeeze(1).isfinite() & answer.answered

        x, radius, shrink = line_search(ask, state.x, move, state.rate, state.radius, state.shrink, shows_target)
        return replace(state, x=x, momentum=momentum, radius=radius, shrink=shrink)
