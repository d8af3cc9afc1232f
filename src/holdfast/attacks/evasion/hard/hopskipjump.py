"""HopSkipJump: walks along the decision boundary with labels alone (Chen, Jordan, Wainwright 2020, algorithm 2)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.attack import Attack, State
from holdfast.attacks.common.label_normal import mean_direction
from holdfast.attacks.common.label_walk import adversarial_starts, halvings, host_rows, to_boundary
from holdfast.core.arrays import on_device
from holdfast.core.cards import Card, parameter
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.judge.asks import HardLabelAsk
from holdfast.numerics.distance import between, box, distance

__all__ = ["HopSkipJump", "HopSkipJumpState"]

_HALVINGS = 20
_TO_JUMP = 4  # queries kept for a step
_FEWEST = 8  # directions that an estimate is worth making from


@dataclass(frozen=True)
class HopSkipJumpState(State):
    """``x`` is adversarial and next to the boundary.

    Attributes:
        over: (n,) bool: no start was found, or too few queries are left for another step.
        blocks: (n,) int64 on the host: blocks of directions that each sample has drawn.
    """

    over: Tensor
    blocks: np.ndarray


@dataclass(frozen=True, kw_only=True)
class HopSkipJump(Attack[HardLabelAsk, HopSkipJumpState]):
    """Each step: the boundary's normal from the labels around x, a move along it, a bisection back to the boundary."""

    queries: int = parameter(10_000, "most queries of a sample, at least 1", "ours; the paper reports up to 25 000")
    steps: int = parameter(64, "most steps, at least 1", "Chen et al. 2020, authors' code")
    first_directions: int = parameter(
        100, "directions of the first estimate; they grow with the root of the step", "Chen et al. 2020, B_0"
    )
    most_directions: int = parameter(10_000, "most directions of an estimate", "Chen et al. 2020, authors' code")
    gamma: float = parameter(1.0, "scale of the bisection's tolerance", "Chen et al. 2020, authors' code")
    tries: int = parameter(100, "starts tried, at least 1", "ours: where uniform noise fails, other kinds follow")
    candidates: int = parameter(50, "starts compared, at least 1", "ours: the start decides which class is reached")
    starts: Tensor | None = parameter(
        None, "(K, *features) an input of each class to start from", "Chen et al. 2020 start targeted runs so"
    )

    card: ClassVar[Card] = Card(
        title="HopSkipJump",
        rows=("E33", "T03"),
        paper="Chen, Jordan, Wainwright 2020, HopSkipJumpAttack: A Query-Efficient Decision-Based Attack, "
        "arXiv:1904.02144",
        section="2.2",
        summary="Estimates the boundary's normal from labels around it and slides along it toward the input.",
        access=Access.HARD_LABEL,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.MINIMAL_DISTORTION,
        norms=(Norm.L2, Norm.LINF),
        affine_ratio={Norm.L2: 1.1, Norm.LINF: 1.1},
        failure_modes=(
            "A start must be found: noise may be of the label's own class, and seldom is of a target's; give `starts`.",
            "It follows the boundary of the start's region to a local optimum.",
            "Under about 1000 queries SurFree and Tangent are stronger.",
        ),
        checked_by="the exact affine oracle; the angle to the true normal; the logs of Sign-OPT on its MNIST network",
    )

    @override
    def start(self, ask: HardLabelAsk) -> HopSkipJumpState:
        x, started = adversarial_starts(ask, tries=self.tries, candidates=self.candidates, starts=self.starts)
        rows = host_rows(started)
        if len(rows):
            at = on_device(rows, x.device)
            x = x.index_copy(0, at, to_boundary(ask.at(rows), x[at], halvings(ask.problem, self.gamma)))
        return HopSkipJumpState.at(x, over=~started, blocks=np.zeros(len(x), dtype=np.int64))

    @override
    def step(self, ask: HardLabelAsk, state: HopSkipJumpState) -> HopSkipJumpState:
        problem = ask.problem
        norm, (low, high) = problem.set.norm, box(problem.set, problem.x)
        x_distance = between(norm, state.x, problem.x)
        made = on_device(state.step, state.x.device)
        root = (made + 1).double().sqrt()
        back = halvings(problem, self.gamma)
        count = (root * self.first_directions).long().clamp_max(self.most_directions)
        count = torch.minimum(count, ask.left - back - _TO_JUMP)
        over = count < _FEWEST
        count = count.masked_fill(over, 0)

        free = (high > low).expand_as(problem.x).flatten(1).sum(1).clamp_min(1).double()
        width = (high - low).expand_as(problem.x).flatten(1).amax(1).double()
        first = torch.where(width.isfinite(), 0.1 * width, x_distance)
        radius = torch.where(made == 0, first, self.gamma * x_distance / free)
        normal, blocks = self._normal(ask, state, count.cpu().numpy(), radius)
        moved = self._jump(ask, state.x, normal, x_distance / root, count > 0)
        x = state.x.clone()
        rows = host_rows((moved != state.x).flatten(1).any(1))
        if len(rows):
            at = on_device(rows, x.device)
            x[at] = to_boundary(ask.at(rows), moved[at], back)
        return replace(state, x=x, over=over, blocks=blocks)

    @override
    def finished(self, state: HopSkipJumpState) -> Tensor:
        return state.over

    def _normal(
        self, ask: HardLabelAsk, state: HopSkipJumpState, count: np.ndarray, radius: Tensor
    ) -> tuple[Tensor, np.ndarray]:
        """The direction into the adversarial side, of unit l2 size or signs, and the blocks drawn: the mean of random
        directions, each signed by whether it leads there, less what the mean sign explains. Asked block by block.
        """
        problem = ask.problem
        estimate, blocks = mean_direction(ask, state.x, count, radius, self._directions, state.blocks)
        if problem.set.norm is Norm.LINF:
            normal = estimate.sign()
        else:
            normal = estimate / problem.flat(distance(Norm.L2, estimate).clamp_min(torch.finfo(torch.float64).tiny))
        return normal.to(state.x.dtype), blocks

    def _directions(self, problem: Problem, count: int, block: np.ndarray) -> Tensor:
        shape = (count, *problem.x.shape[1:])
        if problem.set.norm is Norm.LINF:
            return 2 * problem.keyed.uniform("direction", shape, step=block).to(problem.x) - 1
        return problem.keyed.normal("direction", shape, step=block).to(problem.x)

    def _jump(self, ask: HardLabelAsk, x: Tensor, normal: Tensor, size: Tensor, active: Tensor) -> Tensor:
        """x + size * normal for the first of the sizes, halved again and again, that stays adversarial; else x."""
        problem = ask.problem
        low, high = (edge.expand_as(x) for edge in box(problem.set, problem.x))
        moved, waiting = x.clone(), active.clone()
        for k in range(_HALVINGS):
            rows = host_rows(waiting)
            if not len(rows):
                break
            at = on_device(rows, x.device)
            some = ask.at(rows)
            z = x[at] + problem.flat(size[at] / 2**k).to(x.dtype) * normal[at]
            z = torch.minimum(torch.maximum(z, low[at]), high[at])
            yes = some.adversarial(z)
            moved[at] = torch.where(problem.flat(yes), z, moved[at])
            waiting[at] = ~yes & (some.left > 0)
        return moved
