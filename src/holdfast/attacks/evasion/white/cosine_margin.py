"""A short, strong margin attack: output-diversified start, momentum, cosine steps, one near target after the other.

Ours, from published parts: the start of Tashiro et al. 2020 (output diversified initialisation), the nearest targets of
Gao et al. 2022 (minimum margin), the cosine step and the order by cost of Liu et al. 2022 (A3).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from holdfast.attacks.attack import Attack, State
from holdfast.core.cards import Card, parameter
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.judge.oracles import WhiteBoxOracle
from holdfast.numerics.project import project
from holdfast.numerics.sampling import uniform_in_ball
from holdfast.numerics.steps import steepest

__all__ = ["CosineMargin"]


@dataclass(frozen=True)
class _State(State):
    velocity: Tensor
    target: Tensor
    direction: Tensor


@dataclass(frozen=True)
class CosineMargin(Attack[WhiteBoxOracle]):
    """Ascends ``z_t - z_y`` with the step ``eps (1 + cos(pi k / steps))``; round r takes the r-th nearest class as t."""

    steps: int = parameter(20, "gradient steps of a target, at least 1", "Gao et al. 2022 use 20")
    targets: int = parameter(3, "nearest classes that are tried, at least 1", "Gao et al. 2022 use 3")
    restarts: int = parameter(1, "starts of each target, at least 1", "ours: targets pay more than restarts")
    diversify: int = parameter(2, "steps of the output-diversified start", "Tashiro et al. 2020 use 2 for a white box")
    momentum: float = parameter(
        0.75, "share of the last move that is kept, in [0, 1)", "Croce & Hein 2020 (APGD) use 0.75"
    )

    card: ClassVar[Card] = Card(
        title="Cosine margin attack",
        rows=("E03", "T01", "T02", "T03"),
        paper="after Tashiro, Song, Ermon 2020, arXiv:2003.06878; Gao et al. 2022 (MM), ICML; Liu et al. 2022 (A3), CVPR, "
        "arXiv:2203.05154",
        section="2.2",
        summary="Margin ascent towards the nearest classes with cosine steps from a diversified start; first rung of `fast`.",
        access=Access.WHITE_BOX,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.BUDGET,
        norms=(Norm.L1, Norm.L2, Norm.LINF),
        affine_ratio={Norm.L1: 1.05, Norm.L2: 1.02, Norm.LINF: 1.02},
        failure_modes=("Masked gradients: a random search still finds what this does not.",),
        checked_by="robust counts of AutoAttack on real networks",
    )

    @property
    def rounds(self) -> int:  # noqa: D102
        return self.targets * self.restarts

    @property
    def iterations(self) -> int:  # noqa: D102
        return self.diversify + self.steps

    def start(self, oracle: WhiteBoxOracle, problem: Problem) -> _State:  # noqa: D102
        scores = oracle.clean(problem.rows)
        target = problem.target
        if problem.goal is Goal.UNTARGETED:
            others = scores.scatter(1, problem.y.unsqueeze(1), float("-inf")).argsort(dim=1, descending=True)
            rank = torch.from_numpy(problem.round % min(self.targets, scores.shape[1] - 1)).to(scores.device)
            target = others.gather(1, rank.unsqueeze(1)).squeeze(1)
        again = torch.from_numpy(problem.round >= self.targets).to(scores.device)
        random = uniform_in_ball(problem.set, problem.x, problem.keyed, "start")
        x = torch.where(problem.flat(again), random, problem.x)
        direction = 2 * problem.keyed.uniform("direction", (scores.shape[1],)).to(x.dtype) - 1
        direction = torch.where(again.unsqueeze(1), direction, _towards(scores, problem.y, target))
        return _State.at(x, velocity=torch.zeros_like(x), target=target, direction=direction)

    def step(self, oracle: WhiteBoxOracle, problem: Problem, state: State) -> State:  # noqa: D102
        assert isinstance(state, _State)  # noqa: S101
        warm = torch.from_numpy(state.step < self.diversify).to(problem.x.device)
        g = oracle.gradient(state.x, problem.rows, _diversified_margin, problem.y, state.target, warm, state.direction)
        progress = np.clip((state.step - self.diversify) / self.steps, 0, 1)
        share = torch.from_numpy(np.where(state.step < self.diversify, 1.0, 0.5 * (1 + np.cos(np.pi * progress))))
        size = problem.flat(share.to(problem.set.eps.device) * problem.set.eps).to(state.x.dtype)
        moved = project(problem.set, state.x + size * steepest(problem.set.norm, g.grad), problem.x)
        x = project(problem.set, moved + self.momentum * state.velocity, problem.x)
        velocity = torch.where(problem.flat(warm), torch.zeros_like(x), x - state.x)
        return replace(state, x=x, velocity=velocity)

    def conclude(self, oracle: WhiteBoxOracle, problem: Problem, state: State) -> None:  # noqa: D102
        oracle.logits(state.x, problem.rows)


def _diversified_margin(scores: Tensor, y: Tensor, target: Tensor, warm: Tensor, direction: Tensor) -> Tensor:
    """(m,) ``direction . z`` while warm, then the margin of the target over the label."""
    z_target = scores.gather(1, target.unsqueeze(1)).squeeze(1)
    return torch.where(warm, (direction * scores).sum(1), z_target - scores.gather(1, y.unsqueeze(1)).squeeze(1))


def _towards(scores: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """(m, K) the direction in logit space whose product with the logits is the margin of the target."""
    rows = torch.arange(len(y), device=y.device)
    direction = torch.zeros_like(scores)
    direction[rows, target] = 1
    direction[rows, y] = -1
    return direction
