"""ZO-SVRG: variance-reduced steps on estimated gradients, in the tanh variable (Liu et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.families.penalty import Boxed
from holdfast.attacks.families.soft_penalty import SoftPenalty, SoftPenaltyState
from holdfast.attacks.families.zeroth import askable, coarse, soft_losses
from holdfast.core.arrays import on_device
from holdfast.core.cards import Card, parameter
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.judge.asks import SoftLabelAsk
from holdfast.numerics.zeroth import OneSided, Values

__all__ = ["ZOSVRG"]

_EDGE = 0.99  # tanh at which the box ends: a feature on the edge can leave it


@dataclass(frozen=True, kw_only=True)
class ZOSVRGState(SoftPenaltyState):
    """Attributes:
    v: (n, \\*features) the tanh variable.
    anchor: where the last large estimate was made, likewise.
    slope: that estimate, likewise.
    value: (n,) float64 the loss at the anchor.
    """

    v: Tensor
    anchor: Tensor
    slope: Tensor
    value: Tensor


@dataclass(frozen=True, kw_only=True)
class ZOSVRG(SoftPenalty[ZOSVRGState]):
    """Every ``period`` steps a large estimate at an anchor; the steps between add to it the difference of two small
    estimates, at the iterate and at the anchor, along the same directions: near the anchor their noise cancels.
    """

    q: int = parameter(10, "directions of a small estimate, at least 1", "Liu et al. 2018, code")
    anchor_q: int = parameter(
        50, "directions of the estimate at an anchor, at least 1", "ours: a sample has no other samples to average over"
    )
    period: int = parameter(10, "steps between anchors, at least 1", "Liu et al. 2018, code: M")
    mu: float = parameter(0.01, "length of a difference in the tanh variable, above 0", "Liu et al. 2018, code")
    rate: float = parameter(
        0.1, "length of a step per gradient until the first success, above 0", "ours; 1 / d in Liu et al. 2018"
    )
    pull: float = parameter(0.1, "half of what a later step takes off the perturbation, in (0, 0.5]", "ours")

    card: ClassVar[Card] = Card(
        title="ZO-SVRG",
        rows=("E24", "T03"),
        paper="Liu, Kailkhura, Chen, Ting, Chang, Amini 2018, Zeroth-Order Stochastic Variance Reduction for Nonconvex "
        "Optimization, NeurIPS, arXiv:1805.10367",
        section="2.2",
        summary="Descent on a penalty with estimates that are corrected by an anchor's.",
        access=Access.SOFT_LABEL,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.PENALTY,
        norms=(Norm.L2,),
        failure_modes=(
            "A step asks twice: where the noise of an estimate is not what limits, plain estimates get further.",
            "The step is proportional to the gradient: the rate must suit the scale of the margin.",
        ),
        checked_by="no noise at the anchor; exact query counts",
    )

    @override
    def start(self, ask: SoftLabelAsk) -> ZOSVRGState:
        problem = ask.problem
        v = Boxed.of(problem, _EDGE).inverse(problem.x)
        zero = torch.zeros_like(v)
        return self.initial(ZOSVRGState, problem, v=v, anchor=v, slope=zero, value=torch.zeros_like(problem.set.eps))

    @override
    def move(self, ask: SoftLabelAsk, state: ZOSVRGState) -> ZOSVRGState:
        problem = ask.problem
        fresh = state.step % self.period == 0
        state = self._anchor(ask, state, np.flatnonzero(fresh))
        slope, margin = state.slope, state.value
        rows = np.flatnonzero(~fresh)
        if len(rows):
            at = on_device(rows, slope.device)
            some, here = ask.at(rows), state.select(rows)
            difference, value = self.correction(_objective(some, self.kappa), some.problem, here)
            slope = slope.index_add(0, at, difference)
            margin = margin.index_copy(0, at, value)
        boxed = Boxed.of(problem, _EDGE)
        x = boxed.value(state.v)
        # After the first success the weight is small: longer steps, a given share of the way toward x in each.
        half = torch.where((boxed.half > 0) & boxed.half.isfinite(), boxed.half, 1.0)
        scale = torch.where(problem.flat(state.best_distance.isinf()), self.rate, self.pull / half.square())
        grad = 2 * (x - problem.x) * boxed.slope(state.v) - problem.flat(state.c).to(slope.dtype) * slope
        cost = max(self.anchor_q + 1, 2 * self.q + 1)
        return replace(self.turn(ask, state, x, margin, cost), v=boxed.held(state.v - scale * grad))

    def correction(self, f: Values, problem: Problem, state: ZOSVRGState) -> tuple[Tensor, Tensor]:
        """The small estimate at the iterate less that at the anchor, along the same directions, and f at the iterate."""
        small = OneSided(self.q, coarse(problem, self.mu), "sphere", "small")
        here = small(f, state.v, problem.keyed, state.step)
        there = small(f, state.anchor, problem.keyed, state.step, base=state.value)
        return here.grad - there.grad, here.value

    def _anchor(self, ask: SoftLabelAsk, state: ZOSVRGState, rows: np.ndarray) -> ZOSVRGState:
        problem = ask.problem
        if not len(rows):
            return state
        at, some = on_device(rows, state.v.device), ask.at(rows)
        large = OneSided(self.anchor_q, coarse(problem, self.mu), "sphere", "large")
        estimate = large(_objective(some, self.kappa), state.v[at], some.problem.keyed, state.step[rows])
        return replace(
            state,
            anchor=state.anchor.index_copy(0, at, state.v[at]),
            slope=state.slope.index_copy(0, at, estimate.grad),
            value=state.value.index_copy(0, at, estimate.value),
        )


def _objective(ask: SoftLabelAsk, kappa: float) -> Values:
    """The loss as a function of the tanh variable (n, q, \\*features)."""
    problem = ask.problem
    loss = soft_losses(ask, kappa=kappa)
    boxed = Boxed.of(problem, _EDGE)
    x, low, high, middle, half = (t.expand_as(problem.x) for t in boxed[:5])
    wide = Boxed(*(t.unsqueeze(1) for t in (x, low, high, middle, half)), edge=boxed.edge)
    clip = askable(problem, low, high)
    return lambda v: loss(clip(wide.value(v)))
