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
from typing_extensions import override

from holdfast.attacks.attack import Attack, State
from holdfast.core.arrays import on_device
from holdfast.core.cards import Card, parameter
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.judge.asks import WhiteBoxAsk
from holdfast.numerics import ascent
from holdfast.numerics.project import project
from holdfast.numerics.sampling import uniform_in_ball
from holdfast.numerics.steps import pinned_by_box

__all__ = ["CosineMargin", "CosineMarginState"]


@dataclass(frozen=True)
class CosineMarginState(State):
    """Attributes:
    velocity: (n, \\*features) the last move.
    target: (n,) int64 the class that the sample heads for in its round.
    direction: (n, K) what the warm steps ascend, in the space of the logits.
    """

    velocity: Tensor
    target: Tensor
    direction: Tensor


@dataclass(frozen=True, kw_only=True)
class CosineMargin(Attack[WhiteBoxAsk, CosineMarginState]):
    """Ascends ``z_t - z_y`` with steps ``eps (1 + cos(pi k / n)) / 2``; round r takes the r-th nearest class as t.

    The first start of each target is the clean input, where certified networks and those trained on attacks still have
    gradients; further ones are random and go along a random direction of the logits at first.
    """

    steps: int = parameter(20, "gradient steps of a target, at least 1", "Gao et al. 2022 use 20")
    targets: int = parameter(3, "nearest classes that are tried, at least 1", "Gao et al. 2022 use 3")
    restarts: int = parameter(1, "starts of each target, at least 1", "ours: targets pay more than restarts")
    diversify: int = parameter(2, "steps of the output-diversified start", "Tashiro et al. 2020 use 2 for a white box")
    momentum: float = parameter(
        0.75, "share of the last move that is kept, in [0, 1)", "Croce & Hein 2020 (APGD) use 0.75"
    )
    sparsity: float = parameter(
        0.02, "l1: share of the features that a step moves, in (0, 1]", "ours; SLIDE (Tramer & Boneh 2019) moves 1 %"
    )

    card: ClassVar[Card] = Card(
        title="Cosine margin attack",
        rows=("E03", "T01", "T02", "T03"),
        paper="after Tashiro, Song, Ermon 2020, arXiv:2003.06878; Gao et al. 2022 (MM), ICML; Liu et al. 2022 (A3), CVPR, "
        "arXiv:2203.05154",
        section="2.2",
        summary="Margin ascent towards the nearest classes with cosine steps; restarts are output-diversified.",
        access=Access.WHITE_BOX,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.BUDGET,
        norms=(Norm.L1, Norm.L2, Norm.LINF),
        affine_ratio={Norm.L1: 1.05, Norm.L2: 1.02, Norm.LINF: 1.02},
        failure_modes=("Masked gradients: a random search still finds what this does not.",),
        checked_by="robust counts of AutoAttack on real networks",
    )

    @property
    @override
    def rounds(self) -> int:
        return self.targets * self.restarts

    @property
    @override
    def iterations(self) -> int:
        return self.diversify + self.steps

    @override
    def start(self, ask: WhiteBoxAsk) -> CosineMarginState:
        problem = ask.problem
        scores = ask.clean
        target = problem.target
        if problem.goal is Goal.UNTARGETED:
            others = scores.scatter(1, problem.y.unsqueeze(1), float("-inf")).argsort(dim=1, descending=True)
            rank = on_device(problem.round % min(self.targets, scores.shape[1] - 1), scores.device)
            target = others.gather(1, rank.unsqueeze(1)).squeeze(1)
        again = on_device(problem.round >= self.targets, scores.device)
        random = uniform_in_ball(problem.ball, problem.x, problem.keyed, "start")
        x = torch.where(problem.flat(again), random, problem.x)
        direction = 2 * problem.keyed.uniform("direction", (scores.shape[1],)).to(x.dtype) - 1
        direction = torch.where(again.unsqueeze(1), direction, _towards(scores, problem.y, target))
        return CosineMarginState.at(x, velocity=torch.zeros_like(x), target=target, direction=direction)

    @override
    def step(self, ask: WhiteBoxAsk, state: CosineMarginState) -> CosineMarginState:
        problem = ask.problem
        warm = on_device(state.step < self.diversify, problem.x.device)
        grad = ask.gradient(state.x, _diversified_margin, warm, state.direction, target=state.target).grad
        progress = np.clip((state.step - self.diversify) / self.steps, 0, 1)
        fraction = on_device(np.where(state.step < self.diversify, 1.0, 0.5 * (1 + np.cos(np.pi * progress))), "cpu")
        length = problem.flat(fraction.to(problem.set.eps.device) * problem.set.eps).to(state.x.dtype)
        ball = problem.ball
        pinned = pinned_by_box(ball, state.x, problem.x, grad) if ball.norm is Norm.L1 else None
        moved = ascent.step(ball, state.x, grad, problem.x, length, sparsity=self.sparsity, pinned=pinned)
        # l1 has no momentum: it would spread the budget over features that are no longer the steepest
        momentum = 0.0 if ball.norm is Norm.L1 else self.momentum
        x = project(ball, moved + momentum * state.velocity, problem.x)
        velocity = torch.where(problem.flat(warm), torch.zeros_like(x), x - state.x)
        return replace(state, x=x, velocity=velocity)


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
