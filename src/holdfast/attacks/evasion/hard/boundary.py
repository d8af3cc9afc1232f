"""Boundary attack: a random walk along the decision boundary toward the input (Brendel, Rauber, Bethge 2018)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.attack import Attack, State
from holdfast.attacks.common.label_walk import adversarial_starts, halvings, host_rows, to_boundary
from holdfast.core.arrays import on_device
from holdfast.core.cards import Card, parameter
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.judge.asks import HardLabelAsk
from holdfast.numerics.distance import box, distance

__all__ = ["BoundaryAttack", "BoundaryState"]

_LEAST, _MOST = 1e-7, 0.5  # of both step sizes


@dataclass(frozen=True, kw_only=True)
class BoundaryState(State):
    """``x`` is adversarial.

    Attributes:
        sideways: (n,) float64 size of the step on the sphere, relative to its radius.
        inward: (n,) float64 size of the step toward the clean input, likewise.
        asked: (n, 2) int64 points of the sphere, and whole steps, since the sizes were last looked at.
        held: (n, 2) int64 how many of them were adversarial.
        over: (n,) bool: no start was found.
    """

    sideways: Tensor
    inward: Tensor
    asked: Tensor
    held: Tensor
    over: Tensor


@dataclass(frozen=True, kw_only=True)
class BoundaryAttack(Attack[HardLabelAsk, BoundaryState]):
    """Each step: a random move on the sphere around the clean input, then one toward it; kept if adversarial. Half of
    the moves on the sphere are to be adversarial, as of a boundary that is flat at their scale, and a quarter of the
    whole steps: both sizes follow these rates.
    """

    queries: int = parameter(25_000, "most queries of a sample, at least 1", "Brendel et al. 2018, 25 000 steps")
    sideways: float = parameter(
        0.2, "first step on the sphere, relative to the distance", "ours; 0.01 in the paper takes long to grow"
    )
    inward: float = parameter(0.05, "first step toward the input, relative to the distance", "ours; 0.01 in the paper")
    adaption: float = parameter(1.5, "factor on a step size, above 1", "Brendel et al. 2018, authors' code")
    every: int = parameter(5, "steps from one look at the point of the sphere to the next", "ours; 10 in the code")
    window: int = parameter(10, "points on which a step size is judged", "ours; 100 and 30 in the code adapt slowly")
    tries: int = parameter(100, "starts tried, at least 1", "as HopSkipJump")
    candidates: int = parameter(10, "starts compared, at least 1", "ours; the walk leaves its start behind")
    starts: Tensor | None = parameter(None, "(K, *features) an input of each class to start from", "as HopSkipJump")

    card: ClassVar[Card] = Card(
        title="Boundary attack",
        rows=("E30", "T03"),
        paper="Brendel, Rauber, Bethge 2018, Decision-Based Adversarial Attacks: Reliable Attacks Against Black-Box "
        "Machine Learning Models, arXiv:1712.04248",
        section="2.2",
        summary="Walks at random along the boundary and toward the input; asks one or two labels a step.",
        access=Access.HARD_LABEL,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.MINIMAL_DISTORTION,
        norms=(Norm.L2,),
        affine_ratio={Norm.L2: 1.1},
        failure_modes=(
            "A start must be found: noise may be of the label's own class, and seldom is of a target's; give `starts`.",
            "It follows the boundary of the start's region to a local optimum.",
            "It needs several times the queries of methods that estimate the boundary's normal.",
        ),
        checked_by="the exact affine oracle; candidates on their sphere; the logs of Sign-OPT on its MNIST network",
    )

    @override
    def start(self, ask: HardLabelAsk) -> BoundaryState:
        problem = ask.problem
        x, started = adversarial_starts(ask, tries=self.tries, candidates=self.candidates, starts=self.starts)
        rows = host_rows(started)
        if len(rows):
            at = on_device(rows, x.device)
            x = x.index_copy(0, at, to_boundary(ask.at(rows), x[at], halvings(problem)))
        none = started.new_zeros((len(x), 2), dtype=torch.int64)
        size = torch.zeros_like(problem.set.eps)
        return BoundaryState.at(
            x, sideways=size + self.sideways, inward=size + self.inward, asked=none, held=none, over=~started
        )

    @override
    def step(self, ask: HardLabelAsk, state: BoundaryState) -> BoundaryState:
        problem = ask.problem
        sphere, candidate = self._candidates(problem, state)
        asked, held = state.asked, state.held
        due = state.step % self.every == 0
        if due.any():
            rows = on_device(due.nonzero()[0], state.x.device)
            some = ask.at(due.nonzero()[0])
            asked, held = asked.clone(), held.clone()
            asked[rows, 0] += 1
            held[rows, 0] += some.adversarial(sphere[rows]).long()
        yes = ask.adversarial(candidate) & ~state.over
        one = torch.zeros_like(asked)
        one[:, 1] = 1
        asked, held = asked + one, held + one * yes.long().unsqueeze(1)

        up = torch.ones_like(state.sideways) * self.adaption
        rate = held.double() / asked.clamp_min(1)
        full = asked >= self.window
        grow = torch.where(full & (rate > rate.new_tensor([0.5, 0.25])), 1, 0)
        grow = grow - torch.where(full & (rate < rate.new_tensor([0.2, 0.1])), 1, 0)
        sideways = state.sideways * up ** grow[:, 0]
        inward = state.inward * up ** (grow[:, 0] + grow[:, 1])
        return replace(
            state,
            x=torch.where(problem.flat(yes), candidate, state.x),
            sideways=sideways.clamp(_LEAST, _MOST),
            inward=inward.clamp(_LEAST, _MOST),
            asked=asked.masked_fill(full, 0),
            held=held.masked_fill(full, 0),
        )

    @override
    def finished(self, state: BoundaryState) -> Tensor:
        return state.over

    def _candidates(self, problem: Problem, state: BoundaryState) -> tuple[Tensor, Tensor]:
        """A point of the sphere around the clean input through x, and the one that lies further inward on its ray."""
        x, (low, high) = problem.x, box(problem.set, problem.x)
        way = state.x.double() - x.double()
        radius = distance(Norm.L2, way)
        move = problem.keyed.normal("move", tuple(x.shape[1:]), step=state.step).double()
        move = move.masked_fill((low == high).expand_as(move), 0.0)
        tiny = torch.finfo(torch.float64).tiny
        move = move - way * problem.flat((move * way).flatten(1).sum(1) / radius.square().clamp_min(tiny))
        move = move * problem.flat(state.sideways * radius / distance(Norm.L2, move).clamp_min(tiny))
        # Orthogonal to the way, so that the sum is longer than the radius by a known factor.
        side = (way + move) / problem.flat((1 + state.sideways.square()).sqrt())
        inner = side * problem.flat(1 - state.inward)
        return (x + side).to(x.dtype).clamp(low, high), (x + inner).to(x.dtype).clamp(low, high)
