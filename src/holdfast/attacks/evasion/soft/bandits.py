"""Bandits: a running guess of the gradient, the prior, learnt from two queries a step (Ilyas, Engstrom, Madry 2019).

The time prior carries the guess from step to step; the data prior keeps it constant on tiles of the image. The walk stays
so far from the edge of the set that both queries of a step lie in it: either may be the witness, and no query goes to
the iterate itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod, sqrt
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.attack import Attack, State
from holdfast.attacks.common.space import Tiles
from holdfast.attacks.families.zeroth import askable, edges, inward, soft_loss
from holdfast.core.cards import Card, parameter
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.judge.asks import SoftLabelAsk
from holdfast.numerics import ascent
from holdfast.numerics.distance import per_sample

__all__ = ["Bandits", "BanditsState"]

_TILES, _OF = 50, 299  # the paper's tiles, and the side of its images
_STEP = {Norm.LINF: 0.2, Norm.L2: 0.1}  # of the image, shares of eps: 0.01 at eps 0.05, 0.5 at eps 5
_REACH = {Norm.LINF: 0.1, Norm.L2: 0.01}  # of a query, in l2
_LEARN = {Norm.LINF: 100.0, Norm.L2: 0.1}
_EXPLORE = {Norm.LINF: 1.0, Norm.L2: 0.01}
_WIDEST = 3.0  # standard deviations of an entry that the walk leaves room for


@dataclass(frozen=True)
class BanditsState(State):
    """The iterate and the prior.

    Attributes:
        dual: (n, \\*tiles) l2: the prior. linf: its inverse hyperbolic tangent, in which the exponentiated gradient
            step on [-1, 1] is a plain sum.
        low: (n, \\*features) least values that may be asked.
        high: largest values.
    """

    dual: Tensor
    low: Tensor
    high: Tensor


@dataclass(frozen=True, kw_only=True)
class Bandits(Attack[SoftLabelAsk, BanditsState]):
    """Bandit optimisation of the prior; the image follows its sign (linf) or its direction (l2)."""

    queries: int = parameter(10_000, "most queries of a sample, at least 1", "Ilyas et al. 2019, section 4")
    rate: float | None = parameter(
        None,
        "step of the image as a share of eps, above 0; None: 0.2 in linf, 0.1 in l2",
        "Ilyas et al. 2019, table 2: 0.01 at eps 0.05 and 0.5 at eps 5",
    )
    learning_rate: float | None = parameter(
        None, "step of the prior, above 0; None: 100 in linf, 0.1 in l2", "Ilyas et al. 2019, table 2"
    )
    reach: float | None = parameter(
        None,
        "l2 distance of the queries from the iterate; None: 0.1 in linf, 0.01 in l2; at most half of what eps allows",
        "Ilyas et al. 2019, table 2",
    )
    exploration: float | None = parameter(
        None, "size of the random part beside the prior; None: 1 in linf, 0.01 in l2", "Ilyas et al. 2019, table 2"
    )
    tiles: int | None = parameter(
        None,
        "tiles along each side; None: a sixth of the side, at least 14",
        "Ilyas et al. 2019: 50 for 299; ours below",
    )

    card: ClassVar[Card] = Card(
        title="Bandits",
        rows=("E23", "T03"),
        paper="Ilyas, Engstrom, Madry 2019, Prior Convictions: Black-Box Adversarial Attacks with Bandits and Priors, "
        "arXiv:1807.07978",
        section="2.2",
        summary="Learns a guess of the gradient from two queries a step, kept from step to step and constant on tiles.",
        access=Access.SOFT_LABEL,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.BUDGET,
        norms=(Norm.L2, Norm.LINF),
        failure_modes=(
            "Its published rates suit the scale of one loss and one size of image; elsewhere they want tuning.",
            "Two queries differ little: with rounded scores the slope is 0 and the walk stands still.",
        ),
        checked_by="the exponentiated gradient step in closed form; the prior turns to the gradient of a linear model",
    )

    @property
    @override
    def iterations(self) -> int:
        return -(-self.queries // 2)

    @override
    def start(self, ask: SoftLabelAsk) -> BanditsState:
        problem = ask.problem
        x = problem.x
        low, high = edges(problem)
        shape = self._space(problem).shape(tuple(x.shape[1:]))
        return BanditsState.at(x, dual=x.new_zeros(len(x), *shape), low=low, high=high)

    @override
    def step(self, ask: SoftLabelAsk, state: BanditsState) -> BanditsState:
        problem = ask.problem
        norm, features = problem.set.norm, tuple(problem.x.shape[1:])
        space, shape = self._space(problem), tuple(state.dual.shape[1:])
        explore = self.exploration or _EXPLORE[norm]
        noise = problem.keyed.normal("explore", shape, state.step).to(state.x) * (explore / sqrt(prod(shape)))
        prior = _primal(norm, state.dual)
        both = torch.stack([prior + noise, prior - noise], dim=1)
        lifted = space.lift(both.flatten(0, 1), features).view(len(both), 2, *features)
        size = lifted.flatten(2).square().sum(2).sqrt().clamp_min(torch.finfo(lifted.dtype).tiny)
        reach = self._reach(problem)
        move = per_sample(reach, lifted).to(lifted.dtype) * lifted / size.view(-1, 2, *[1] * len(features))
        room = float(self.reach or _REACH[norm]) * _WIDEST / sqrt(prod(features))
        centre = inward(problem, state.x, state.low, state.high, room) if norm is Norm.LINF else state.x
        points = askable(problem, state.low, state.high)(centre.unsqueeze(1) + move)
        value = ask.as_given.losses(points, soft_loss(problem.goal, "ce"))
        slope = (value[:, 0] - value[:, 1]) / (reach * explore)
        slope = slope.nan_to_num(0.0, 0.0, 0.0).to(noise.dtype)
        learn = self.learning_rate or _LEARN[norm]
        dual = state.dual + learn * per_sample(slope, noise) * noise
        direction = space.lift(_primal(norm, dual), features)
        length = problem.flat(problem.set.eps * (self.rate or _STEP[norm])).to(direction.dtype)
        inner = problem.ball
        if norm is Norm.L2:
            inner = inner.with_eps((inner.eps - reach).clamp_min(0))
        return replace(state, x=ascent.step(inner, state.x, direction, problem.x, length), dual=dual)

    def _space(self, problem: Problem) -> Tiles:
        sides = problem.x.shape[2:] if problem.x.ndim == 4 else (1,)
        return Tiles(self.tiles or max(14, -(-max(sides) * _TILES // _OF)))

    def _reach(self, problem: Problem) -> Tensor:
        """(n,) float64 how far the queries are from the iterate: two steps of the grid in most features, if any."""
        norm, d = problem.set.norm, max(1, prod(problem.x.shape[1:]))
        reach = float(self.reach or _REACH[norm])
        if problem.set.grid is not None:
            reach = max(reach, 2 * float(problem.set.grid) * sqrt(d))
        most = problem.set.eps / 2 * (sqrt(d) if norm is Norm.LINF else 1.0)
        return most.clamp_max(reach)


def _primal(norm: Norm, dual: Tensor) -> Tensor:
    """The prior; in linf it lies in [-1, 1]."""
    return dual.tanh() if norm is Norm.LINF else dual
