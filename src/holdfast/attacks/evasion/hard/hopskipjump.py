"""HopSkipJump: walks along the decision boundary with labels alone (Chen, Jordan, Wainwright 2020, algorithm 2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil, log2
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from holdfast.attacks.attack import Attack, State
from holdfast.attacks.common.grid import valid
from holdfast.core.arrays import on_device
from holdfast.core.cards import Card, parameter
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.judge.ledger import Budget
from holdfast.judge.oracles import HardLabelOracle
from holdfast.numerics.distance import between, box, distance
from holdfast.numerics.search import bisect

__all__ = ["HopSkipJump", "HopSkipJumpState"]

_NUMBERS = 1 << 15  # of a block of directions of one sample: what bounds the memory of an estimate
_HALVINGS = 20
_COARSE = 6  # halvings of a start that is compared with others
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


@dataclass(frozen=True)
class HopSkipJump(Attack[HardLabelOracle, HopSkipJumpState]):
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
        rows=("E33",),
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

    @property
    def iterations(self) -> int:  # noqa: D102
        return self.steps

    @property
    def budget(self) -> Budget:  # noqa: D102
        return Budget(queries=self.queries)

    def start(self, oracle: HardLabelOracle, problem: Problem) -> HopSkipJumpState:  # noqa: D102
        x, found = self._begin(oracle, problem)
        rows = _where(found)
        if len(rows):
            part, at = problem.select(rows), on_device(rows, x.device)
            x = x.index_copy(0, at, self._to_boundary(oracle, part, x[at], self._halvings(part)))
        return HopSkipJumpState.at(x, over=~found, blocks=np.zeros(len(x), dtype=np.int64))

    def step(self, oracle: HardLabelOracle, problem: Problem, state: HopSkipJumpState) -> HopSkipJumpState:  # noqa: D102
        norm, (low, high) = problem.set.norm, box(problem.set, problem.x)
        reach = between(norm, state.x, problem.x)
        made = on_device(state.step, state.x.device)
        root = (made + 1).double().sqrt()
        back = self._halvings(problem)
        count = (root * self.first_directions).long().clamp_max(self.most_directions)
        count = torch.minimum(count, oracle.left(problem.rows) - back - _TO_JUMP)
        over = count < _FEWEST
        count = count.masked_fill(over, 0)

        free = (high > low).expand_as(problem.x).flatten(1).sum(1).clamp_min(1).double()
        width = (high - low).expand_as(problem.x).flatten(1).amax(1).double()
        first = torch.where(width.isfinite(), 0.1 * width, reach)
        radius = torch.where(made == 0, first, self.gamma * reach / free)
        normal, blocks = self._normal(oracle, problem, state, count.cpu().numpy(), radius)
        moved = self._jump(oracle, problem, state.x, normal, reach / root, count > 0)
        x = state.x.clone()
        rows = _where((moved != state.x).flatten(1).any(1))
        if len(rows):
            at = on_device(rows, x.device)
            x[at] = self._to_boundary(oracle, problem.select(rows), moved[at], back)
        return replace(state, x=x, over=over, blocks=blocks)

    def finished(self, state: HopSkipJumpState) -> Tensor:  # noqa: D102
        return state.over

    def _begin(self, oracle: HardLabelOracle, problem: Problem) -> tuple[Tensor, Tensor]:
        """An adversarial point of each sample and whether there is one: of several starts, the one that is nearest once
        it is drawn toward x. A later start first has to be adversarial where it is as near as the best so far.
        """
        x, norm = problem.x.clone(), problem.set.norm
        nearest, compared = torch.full_like(problem.set.eps, float("inf")), np.zeros(len(x), dtype=np.int64)
        for k in range(self.tries):
            rows = np.flatnonzero(compared < self.candidates)
            if not len(rows):
                break
            part, at = problem.select(rows), on_device(rows, x.device)
            path, far = _ray(part, self._try(part, k))
            reach = between(norm, path(far), part.x)
            limit = torch.where(nearest[at] < reach, far * nearest[at] / reach, far)
            yes = _holds(oracle, part, path(limit))
            better = _where(yes)
            if len(better):
                x[at[yes]] = self._to_boundary(oracle, part.select(better), path(limit)[yes], _COARSE)
                nearest[at[yes]] = between(norm, x[at[yes]], part.x[yes])
            compared[rows] += _host(nearest[at].isfinite())
        return x, nearest.isfinite()

    def _try(self, problem: Problem, k: int) -> Tensor:
        """The k-th start: a given input; else in turn noise, corners of the box, a grey, noise blended with x."""
        x, (low, high), draws = problem.x, box(problem.set, problem.x), problem.keyed
        if self.starts is not None and (k == 0 if problem.goal is Goal.TARGETED else k < len(self.starts) - 1):
            label = problem.target if problem.goal is Goal.TARGETED else (problem.y + 1 + k) % len(self.starts)
            return self.starts.to(x)[label].clamp(low, high)
        kind, wider = k % 4, 2.0 ** min(k // 4, 60)
        # Where the box has no edges, the noise reaches further with every turn.
        span = torch.where((high - low).isfinite(), high - low, wider)
        least = torch.maximum(low, x - span)
        shape = () if kind == 2 else tuple(x.shape[1:])
        u = draws.uniform("start", shape, step=k).to(x)
        u = problem.flat(u) if kind == 2 else (u > 0.5).to(x) if kind == 1 else u
        noise = least + u * (torch.minimum(high, x + span) - least)
        return (torch.lerp(x, noise, 0.5) if kind == 3 else noise).clamp(low, high)

    def _halvings(self, problem: Problem) -> int:
        """Questions of a bisection: until the interval is gamma / d^1.5 (l2), gamma / d^2 (linf) of its length."""
        d = problem.x[0].numel()
        return max(1, ceil(log2(d ** (1.5 if problem.set.norm is Norm.L2 else 2.0) / self.gamma)))

    def _to_boundary(self, oracle: HardLabelOracle, problem: Problem, x: Tensor, halvings: int) -> Tensor:
        """The adversarial end of a bisection between the clean input and x."""
        path, far = _ray(problem, x)
        _, end = bisect(lambda s: _holds(oracle, problem, path(s)), torch.zeros_like(far), far, halvings)
        return torch.where(problem.flat(end < far), path(end), x)

    def _normal(
        self, oracle: HardLabelOracle, problem: Problem, state: HopSkipJumpState, count: np.ndarray, radius: Tensor
    ) -> tuple[Tensor, np.ndarray]:
        """The direction into the adversarial side, of unit l2 size or signs, and the blocks drawn: the mean of random
        directions, each signed by whether it leads there, less what the mean sign explains. Asked block by block.
        """
        x, shape = state.x, tuple(state.x.shape[1:])
        length = max(1, min(self.most_directions, 64, _NUMBERS // max(1, x[0].numel())))
        moments, seen = x.new_zeros((2, *x.shape), dtype=torch.float64), x.new_zeros((2, len(x)), dtype=torch.float64)
        for j in range(-(-int(count.max(initial=0)) // length)):
            rows = np.flatnonzero(count > j * length)
            part, at = problem.select(rows), on_device(rows, x.device)
            u, z = self._directions(part, x[at], radius[at], length, state.blocks[rows] + j)
            keep = on_device(np.arange(length) < (count[rows] - j * length)[:, None], x.device)
            sample, which = keep.nonzero().unbind(1)
            labels, answered = oracle.labels(z[sample, which], part.rows[sample])
            yes = problem.criterion.holds_label(labels, part.y[sample], part.target[sample])
            weight = torch.zeros((2, len(rows), length), dtype=torch.float64, device=x.device)
            weight[0, sample, which] = answered.double()
            weight[1, sample, which] = torch.where(yes, 1.0, -1.0).double() * answered
            moments[:, at] += torch.einsum("man,anf->maf", weight, u.flatten(2).double()).view(2, -1, *shape)
            seen[:, at] += weight.sum(2)
        mean = seen[1] / seen[0].clamp_min(1)
        one_sided = problem.flat(mean.abs() == 1)
        estimate = torch.where(one_sided, problem.flat(mean) * moments[0], moments[1] - problem.flat(mean) * moments[0])
        if problem.set.norm is Norm.LINF:
            normal = estimate.sign()
        else:
            normal = estimate / problem.flat(distance(Norm.L2, estimate).clamp_min(torch.finfo(torch.float64).tiny))
        return normal.to(x.dtype), state.blocks + -(-count // length)

    def _directions(
        self, problem: Problem, x: Tensor, radius: Tensor, length: int, block: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        """A block of ``length`` directions of each sample, as the box lets them be, and the points they lead to."""
        draws, shape = problem.keyed, (length, *x.shape[1:])
        low, high = (edge.expand_as(x).unsqueeze(1) for edge in box(problem.set, problem.x))
        if problem.set.norm is Norm.LINF:
            u = 2 * draws.uniform("direction", shape, step=block).to(x) - 1
        else:
            u = draws.normal("direction", shape, step=block).to(x)
        u = u.masked_fill(low == high, 0.0)
        size = u.flatten(2).square().sum(2).sqrt().clamp_min(torch.finfo(x.dtype).tiny)
        each = (*size.shape, *[1] * (x.ndim - 1))
        step = problem.flat(radius).to(x.dtype).unsqueeze(1)
        z = torch.minimum(torch.maximum(x.unsqueeze(1) + step * u / size.view(each), low), high)
        return (z - x.unsqueeze(1)) / step.clamp_min(torch.finfo(x.dtype).tiny), z

    def _jump(
        self, oracle: HardLabelOracle, problem: Problem, x: Tensor, normal: Tensor, size: Tensor, active: Tensor
    ) -> Tensor:
        """x + size * normal for the first of the sizes, halved again and again, that stays adversarial; else x."""
        low, high = (edge.expand_as(x) for edge in box(problem.set, problem.x))
        moved, waiting = x.clone(), active.clone()
        for k in range(_HALVINGS):
            rows = _where(waiting)
            if not len(rows):
                break
            at = on_device(rows, x.device)
            part = problem.select(rows)
            z = x[at] + part.flat(size[at] / 2**k).to(x.dtype) * normal[at]
            z = torch.minimum(torch.maximum(z, low[at]), high[at])
            yes = _holds(oracle, part, z)
            moved[at] = torch.where(part.flat(yes), z, moved[at])
            waiting[at] = ~yes & (oracle.left(part.rows) > 0)
        return moved


def _ray(problem: Problem, x: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The way from the clean input, at 0, to x, at the second value: straight (l2), or by growing a box (linf)."""
    wide, edges = problem.x.double(), box(problem.set, problem.x)
    delta = x.double() - wide

    def path(share: Tensor) -> Tensor:
        s = problem.flat(share)
        move = s * delta if problem.set.norm is Norm.L2 else torch.minimum(torch.maximum(delta, -s), s)
        return (wide + move).to(x.dtype).clamp(*edges)

    return path, torch.ones_like(problem.set.eps) if problem.set.norm is Norm.L2 else distance(Norm.LINF, delta)


def _where(flags: Tensor) -> np.ndarray:
    """Host rows of the true entries."""
    return np.flatnonzero(_host(flags))


def _host(values: Tensor) -> np.ndarray:
    return values.cpu().numpy()


def _holds(oracle: HardLabelOracle, problem: Problem, x: Tensor) -> Tensor:
    labels, answered = oracle.labels(valid(problem, x), problem.rows)
    return problem.criterion.holds_label(labels, problem.y, problem.target) & answered
