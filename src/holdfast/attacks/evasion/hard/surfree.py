"""SurFree: slides down circles to the boundary, without estimating its normal (Maho, Furon, Le Merrer 2021, alg. 1)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod, radians
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.attack import Attack, State
from holdfast.attacks.common.frequencies import band, from_band, to_band
from holdfast.attacks.common.label_walk import adversarial_starts, halvings, host_rows, to_boundary
from holdfast.core.arrays import on_device
from holdfast.core.cards import Card, parameter
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.judge.asks import HardLabelAsk
from holdfast.numerics.distance import box, distance, per_sample

__all__ = ["SurFree", "SurFreeState"]

_NUMBERS = 1 << 20  # of the directions that a sample keeps: what bounds the memory of a state
_FLOOR = 0.1  # of the weights, so that what a clean input lacks can be added too
_PARALLEL = 1e-6  # a direction of which less is left beside the others counts as none


@dataclass(frozen=True, kw_only=True)
class SurFreeState(State):
    """``x`` is adversarial and next to the boundary; each step asks one point of the circle of each sample.

    Attributes:
        v: (n, \\*features) unit direction, orthogonal to the way from the clean input to x.
        past: (n, m, \\*features) the last directions, in a ring.
        drawn: (n,) int64 on the host: directions drawn.
        phase: (n,) int64: the next of the sign search's angles; from their number on, the halving of the bisection.
        inner: (n,) float64 the angle of the bisection that is adversarial.
        lowest: (n, \\*features) the point at that angle.
        outer: (n,) float64 its other angle.
        widest: (n,) float64 the largest angle that a sign search tries.
        over: (n,) bool: no start was found.
    """

    v: Tensor
    past: Tensor
    drawn: np.ndarray
    phase: Tensor
    inner: Tensor
    lowest: Tensor
    outer: Tensor
    widest: Tensor
    over: Tensor


@dataclass(frozen=True, kw_only=True)
class SurFree(Attack[HardLabelAsk, SurFreeState]):
    """Round after round: a random direction v; on the circle that has the clean input and x as ends of a diameter, in
    the plane of both and v, the point furthest from x that is still adversarial.
    """

    queries: int = parameter(10_000, "most queries of a sample, at least 1", "ours; the paper reports up to 5000")
    angle: float = parameter(30.0, "largest angle of the sign search at first, degrees", "Maho et al. 2021, theta_max")
    angles: int = parameter(3, "angles tried on each side, at least 1", "Maho et al. 2021, T")
    shrink: float = parameter(0.02, "what a failed search takes off the largest angle", "Maho et al. 2021, kappa")
    halvings: int = parameter(5, "halvings of the angle after a sign search", "ours; 10 in Maho et al. 2021")
    kept: int = parameter(
        100, "directions that a new one is orthogonal to; fewer where few are free", "Maho et al. 2021, L"
    )
    frequencies: float = parameter(
        0.5, "share of the lowest frequencies of an axis, in (0, 1]", "Maho et al. 2021, rho"
    )
    tries: int = parameter(100, "starts tried, at least 1", "as HopSkipJump")
    candidates: int = parameter(50, "starts compared, at least 1", "as HopSkipJump")
    starts: Tensor | None = parameter(None, "(K, *features) an input of each class to start from", "as HopSkipJump")

    card: ClassVar[Card] = Card(
        title="SurFree",
        rows=("E34", "T03"),
        paper="Maho, Furon, Le Merrer 2021, SurFree: a fast surrogate-free black-box attack, arXiv:2011.12807",
        section="2.2",
        summary="Slides along circles in random low-frequency planes toward the input; estimates no normal.",
        access=Access.HARD_LABEL,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.MINIMAL_DISTORTION,
        norms=(Norm.L2,),
        affine_ratio={Norm.L2: 1.1},
        failure_modes=(
            "A start must be found: noise may be of the label's own class, and seldom is of a target's; give `starts`.",
            "It follows the boundary of the start's region to a local optimum.",
            "Beyond a few thousand queries estimates of the normal (HopSkipJump, GeoDA) come nearer.",
        ),
        checked_by="the exact affine oracle; the foot of the perpendicular of a plane; the logs of Sign-OPT on its "
        "MNIST network",
    )

    @override
    def start(self, ask: HardLabelAsk) -> SurFreeState:
        problem = ask.problem
        x, started = adversarial_starts(ask, tries=self.tries, candidates=self.candidates, starts=self.starts)
        rows = host_rows(started)
        if len(rows):
            at = on_device(rows, x.device)
            x = x.index_copy(0, at, to_boundary(ask.at(rows), x[at], halvings(problem)))
        n, features = len(x), tuple(x.shape[1:])
        d = prod(features)
        # Directions that filled the space would leave none to draw.
        kept = max(1, min(self.kept, prod(band(features, self.frequencies)) // 4, _NUMBERS // d))
        zeros = torch.zeros_like(problem.set.eps)
        return SurFreeState.at(
            x,
            v=torch.zeros_like(x),
            past=x.new_zeros((n, kept, *features)),
            drawn=np.zeros(n, dtype=np.int64),
            phase=zeros.long() - 1,
            inner=zeros,
            lowest=x,
            outer=zeros,
            widest=zeros + radians(self.angle),
            over=~started,
        )

    @override
    def step(self, ask: HardLabelAsk, state: SurFreeState) -> SurFreeState:
        problem = ask.problem
        state = self._renewed(problem, state)
        phase, tries = state.phase, 2 * self.angles
        searches = phase < tries
        fraction = 1 - (phase.clamp(0, tries - 1) // 2).double() / self.angles
        side = 1.0 - 2.0 * (phase % 2)
        angle = torch.where(searches, side * fraction * state.widest, (state.inner + state.outer) / 2)
        point = self._on_circle(problem, state, angle)
        yes = ask.adversarial(point) & ~state.over

        # The next larger angle on this side has failed, but for the largest: beyond that one nothing is known.
        inner = torch.where(yes, angle, state.inner)
        outer = torch.where(yes & searches, angle + side * state.widest / self.angles, state.outer)
        outer = torch.where(searches | yes, outer, angle)
        phase = torch.where(yes & searches, tries, phase + 1)
        failed = searches & (phase == tries) & ~yes
        won = phase >= tries + self.halvings
        lowest = torch.where(problem.flat(yes), point, state.lowest)
        x = torch.where(problem.flat(won), lowest, state.x)
        widest = torch.where(failed, state.widest * (1 - self.shrink), state.widest)
        widest = torch.where(won, (widest / (1 - self.shrink)).clamp_max(radians(89.0)), widest)
        return replace(
            state,
            x=x,
            lowest=lowest,
            phase=torch.where(failed | won, -1, phase),
            inner=inner,
            outer=outer,
            widest=widest,
        )

    @override
    def finished(self, state: SurFreeState) -> Tensor:
        return state.over

    def _renewed(self, problem: Problem, state: SurFreeState) -> SurFreeState:
        """The state with a new direction where the last one is done with."""
        rows = host_rows((state.phase < 0) & ~state.over)
        if not len(rows):
            return state
        at, subset = on_device(rows, state.x.device), problem.select(rows)
        drawn, past, v = state.drawn.copy(), state.past.clone(), state.v.clone()
        fresh = self._direction(subset, state.x[at], past[at], drawn[rows])
        v[at] = fresh
        past[at, on_device(drawn[rows] % past.shape[1], v.device)] = fresh
        drawn[rows] += 1
        return replace(state, v=v, past=past, drawn=drawn, phase=state.phase.index_fill(0, at, 0))

    def _direction(self, problem: Problem, x: Tensor, past: Tensor, drawn: np.ndarray) -> Tensor:
        """Signs or zeros at the low frequencies, weighted by how strong these are in the clean input; the part that is
        orthogonal to the way to x and to the past directions.
        """
        shape = tuple(x.shape[1:])
        kept = band(shape, self.frequencies)
        signs = problem.keyed.integers("direction", 3, kept, step=drawn).to(x) - 1
        t = from_band(signs * self._weights(problem, kept), shape)
        low, high = box(problem.set, problem.x)
        t = _unit(t.masked_fill((low == high).expand_as(t), 0.0))
        u = _unit(x - problem.x)
        v = t
        for _ in range(2):  # once more for what rounding left
            flat = v.flatten(1)
            v = v - torch.einsum("nm,nm...->n...", torch.einsum("nmf,nf->nm", past.flatten(2), flat), past)
            v = v - per_sample((v * u).flatten(1).sum(1), v) * u
        left = distance(Norm.L2, v)
        return torch.where(problem.flat(left > _PARALLEL), _unit(v), torch.zeros_like(v))

    def _weights(self, problem: Problem, kept: tuple[int, ...]) -> Tensor:
        return to_band(problem.x, kept).abs().tanh().clamp_min(_FLOOR)

    def _on_circle(self, problem: Problem, state: SurFreeState, angle: Tensor) -> Tensor:
        """The point of the circle that is seen from the clean input at this angle to x."""
        way = state.x.double() - problem.x.double()
        cos, sin = problem.flat(angle.cos()), problem.flat(angle.sin())
        across = state.v.double() * problem.flat(distance(Norm.L2, way))
        point = problem.x.double() + cos * (cos * way + sin * across)
        return point.to(state.x.dtype).clamp(*box(problem.set, problem.x))


def _unit(v: Tensor) -> Tensor:
    return v / per_sample(distance(Norm.L2, v), v).to(v.dtype).clamp_min(torch.finfo(v.dtype).tiny)
