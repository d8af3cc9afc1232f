"""RayS: a discrete search for the sign vector along which the boundary is nearest (Chen and Gu 2020, algorithm 3).

A step asks one question for each sample: either whether a flip of one block of signs is still adversarial at the radius
of the best ray, or, for a flip that was, the next middle of its bisection. So nobody waits for anybody's bisection.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.attack import Attack, State
from holdfast.core.cards import Card, parameter
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.judge.asks import HardLabelAsk
from holdfast.numerics.distance import between, box

__all__ = ["RayS", "RaySState"]

_FIRST_RADII = 3  # radii at which a ray is tried while nothing adversarial is known


@dataclass(frozen=True, kw_only=True)
class RaySState(State):
    """``x`` is the adversarial end of the best ray, or the clean input while none is known.

    Attributes:
        sign: (n, \\*features) the best ray: 1 or -1.
        place: (n, d) int64: the how-manieth free feature each one is; -1 where the set pins it.
        radius: (n,) float64 the linf distance of x; inf while no ray is adversarial.
        low: (n,) float64 a radius where the flip under test is not adversarial.
        high: (n,) float64 one where it is; a bisection runs while the two are further apart than the tolerance.
        level: (n,) int64: the free features are halved so often into blocks.
        block: (n,) int64: the block that is flipped.
        turn: (n,) int64: questions asked while nothing adversarial was known.
        gained: (n,) bool: the best ray has changed since the hierarchy was last begun, or it was begun only once.
        over: (n,) bool: a whole hierarchy of flips changed nothing.
    """

    sign: Tensor
    place: Tensor
    radius: Tensor
    low: Tensor
    high: Tensor
    level: Tensor
    block: Tensor
    turn: Tensor
    gained: Tensor
    over: Tensor


@dataclass(frozen=True)
class RayS(Attack[HardLabelAsk, RaySState]):
    """Flips the signs of ever smaller blocks; one query rejects a flip that is no nearer, a bisection measures others."""

    queries: int = parameter(10_000, "most queries of a sample, at least 1", "Chen and Gu 2020, section 5.1")
    tolerance: float = parameter(
        1e-3, "width at which a bisection ends, in the unit of the features, above 0", "Chen and Gu 2020, authors' code"
    )

    card: ClassVar[Card] = Card(
        title="RayS",
        rows=("E34", "T03"),
        paper="Chen, Gu 2020, RayS: A Ray Searching Method for Hard-label Adversarial Attack, arXiv:2006.12792",
        section="2.2",
        summary="Searches the sign vector with the nearest boundary by flipping the signs of ever smaller blocks.",
        access=Access.HARD_LABEL,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.MINIMAL_DISTORTION,
        norms=(Norm.LINF,),
        affine_ratio={Norm.LINF: 1.05},
        failure_modes=(
            "Every feature moves by the same amount or as far as the box lets it: it cannot leave a feature as it is.",
            "Targeted, some sign vector must lead to the target before the box ends; as a rule few do.",
            "It ends where no single flip of a block helps, although flips of several might.",
            "No distance is told closer than the tolerance; lower it for sets that are much smaller than 0.03.",
        ),
        checked_by="the exact affine oracle, whose nearest point is along a sign vector; the authors' median queries",
    )

    @override
    def start(self, ask: HardLabelAsk) -> RaySState:
        problem = ask.problem
        low, high = box(problem.set, problem.x)
        free = (high > low).expand_as(problem.x).flatten(1)
        nothing, never = torch.zeros_like(problem.set.eps), torch.zeros_like(problem.rows, dtype=torch.bool)
        return RaySState.at(
            problem.x,
            sign=torch.ones_like(problem.x),
            place=(free.cumsum(1) - 1).masked_fill(~free, -1),
            radius=nothing + float("inf"),
            low=nothing,
            high=nothing,
            level=torch.zeros_like(problem.rows),
            block=torch.zeros_like(problem.rows),
            turn=torch.zeros_like(problem.rows),
            gained=~never,
            over=never,
        )

    @override
    def step(self, ask: HardLabelAsk, state: RaySState) -> RaySState:
        problem = ask.problem
        sign, last, next_level, next_block = _flip(state)
        has_ray, measuring = state.radius.isfinite(), state.high - state.low > self.tolerance
        first, endless = _first_radius(problem, state.turn)
        asked_radius = torch.where(measuring, (state.low + state.high) / 2, torch.where(has_ray, state.radius, first))
        z = _end(problem, sign, asked_radius)
        yes = ask.adversarial(z)

        low = torch.where(measuring & ~yes, asked_radius, torch.where(measuring, state.low, 0.0))
        high = torch.where(yes, asked_radius, torch.where(measuring, state.high, 0.0))
        more = high - low > self.tolerance
        better = (measuring | yes) & ~more & (high < state.radius)
        end = _end(problem, sign, high)
        # A flip is done with when it is measured, or rejected: on sight, or at the last of the first radii.
        rejected = ~measuring & ~yes & (has_ray | (state.turn % _FIRST_RADII == _FIRST_RADII - 1))
        done = (measuring | yes) & ~more | rejected
        again, gained = done & last, state.gained | better
        idle = torch.zeros_like(low)
        # While nothing is known, a flip stays: the next ray differs from every one before it by more than its own block.
        turned = better | (rejected & ~has_ray)
        return replace(
            state,
            x=torch.where(problem.flat(better), end, state.x),
            sign=torch.where(problem.flat(turned), sign, state.sign),
            radius=torch.where(better, between(Norm.LINF, end, problem.x), state.radius),
            low=torch.where(more, low, idle),
            high=torch.where(more, high, idle),
            level=torch.where(done, next_level, state.level),
            block=torch.where(done, next_block, state.block),
            turn=state.turn + (~has_ray & ~measuring),
            gained=gained & ~again,
            over=again & ~gained & (has_ray | ~endless),
        )

    @override
    def finished(self, state: RaySState) -> Tensor:
        return state.over


def _flip(state: RaySState) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The best ray with the block's signs turned; whether the hierarchy ends with it; the level and block after it."""
    count = state.place.amax(1) + 1
    size = -(-count // 2**state.level)  # rounded up
    begin = state.block * size
    inside = (state.place >= begin.view(-1, 1)) & (state.place < (begin + size).view(-1, 1))
    sign = torch.where(inside.view_as(state.sign), -state.sign, state.sign)
    row_ends = begin + size >= count
    last = row_ends & (size <= 1)
    level = torch.where(last, 0, torch.where(row_ends, state.level + 1, state.level))
    return sign, last, level, torch.where(row_ends, 0, state.block + 1)


def _first_radius(problem: Problem, turn: Tensor) -> tuple[Tensor, Tensor]:
    """(n,) the radius to look for a first adversarial point at, and whether the box has no edges to stop at.

    The width of the box, then its half and quarter; without edges ever further.
    """
    low, high = box(problem.set, problem.x)
    width = (high - low).expand_as(problem.x).flatten(1).amax(1).double()
    endless = width.isinf()
    exponent = torch.where(endless, turn % 64, -(turn % _FIRST_RADII)).double()
    return torch.where(endless, 1.0, width) * exponent.exp2(), endless


def _end(problem: Problem, sign: Tensor, radius: Tensor) -> Tensor:
    """The point at a radius of the ray, in the box."""
    move = problem.flat(radius) * sign
    return (problem.x.double() + move).to(problem.x.dtype).clamp(*box(problem.set, problem.x))
