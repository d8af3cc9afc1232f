"""Sigma-zero: gradient descent on a smooth l0 with a threshold that adapts (Cina et al. 2025, algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.attack import Attack, State
from holdfast.attacks.common.adam import adam
from holdfast.attacks.common.minimum_norm import cosine
from holdfast.attacks.common.sparse import finite_box, settle
from holdfast.core.arrays import on_device
from holdfast.core.cards import Card, parameter
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.judge.asks import WhiteBoxAsk
from holdfast.numerics.distance import between, box
from holdfast.numerics.losses import margin, margin_targeted

__all__ = ["SigmaZero", "SigmaZeroState"]

_LAST = 0.1  # the last step over the first


@dataclass(frozen=True, kw_only=True)
class SigmaZeroState(State):
    """``x`` is clean + delta.

    Attributes:
        mean: (n, \\*features) Adam's first moment.
        square: (n, \\*features) Adam's second moment.
        tau: (n,) float64 features that moved by less than this share of the box go back.
        best: (n, \\*features) the adversarial iterate with the fewest changed features, inside the ball or not.
        best_distance: (n,) float64 how many those are; infinite if there is none.
    """

    mean: Tensor
    square: Tensor
    tau: Tensor
    best: Tensor
    best_distance: Tensor


@dataclass(frozen=True, kw_only=True)
class SigmaZero(Attack[WhiteBoxAsk, SigmaZeroState]):
    """Descends ``hinge(margin) + sum_i u_i^2 / (u_i^2 + sigma) / d`` for u = delta over the width of the box, on the
    gradient over its largest entry, and sets |u_i| < tau to 0; tau grows while x is adversarial and falls otherwise.
    """

    steps: int = parameter(1000, "gradient steps, at least 1", "Cina et al. 2025, section 3.1")
    step_size: float = parameter(1.0, "first step, in widths of the box, above 0", "Cina et al. 2025: eta_0")
    sigma: float = parameter(1e-3, "how sharply the smooth l0 counts, above 0", "Cina et al. 2025, section 3.1")
    tau: float = parameter(0.3, "first threshold, a share of the box, 0 to 1", "Cina et al. 2025: tau_0")
    tau_step: float = parameter(0.01, "change of the threshold a step, times the step size", "Cina et al. 2025: t")
    search: int = parameter(
        10, "forwards of each of two final searches that drop features", "ours: takes out what the threshold left"
    )

    card: ClassVar[Card] = Card(
        title="sigma-zero",
        rows=("E10", "T03"),
        paper="Cina, Villani, Pintor, Schonherr, Biggio, Pelillo 2025, sigma-zero: Gradient-based Optimization of "
        "l0-norm Adversarial Examples, arXiv:2402.01879",
        section="2.2",
        summary="Gradient descent on a smooth count of the changed features, with an adaptive threshold.",
        access=Access.WHITE_BOX,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.MINIMAL_DISTORTION,
        norms=(Norm.L0,),
        affine_ratio={Norm.L0: 1.01},
        failure_modes=(
            "It counts features, not pixels: a colour pixel counts up to three times.",
            "Gradients that vanish or are masked; Sparse-RS needs none.",
        ),
        checked_by="the exact affine oracle; order among the l0 attacks on real networks",
    )

    @property
    @override
    def passes(self) -> int:
        return 2 * self.steps + 2 * self.search + 5

    @override
    def check(self, problem: Problem) -> None:
        super().check(problem)
        finite_box(self.card.title, problem)

    @override
    def start(self, ask: WhiteBoxAsk) -> SigmaZeroState:
        problem = ask.problem
        none = torch.zeros_like(problem.x)
        return SigmaZeroState.at(
            problem.x,
            mean=none,
            square=none,
            tau=torch.full_like(problem.set.eps, self.tau),
            best=problem.x,
            best_distance=torch.full_like(problem.set.eps, float("inf")),
        )

    @override
    def step(self, ask: WhiteBoxAsk, state: SigmaZeroState) -> SigmaZeroState:
        problem = ask.problem
        loss = margin_targeted(0.0) if problem.goal is Goal.TARGETED else margin(0.0)
        answer = ask.gradient(state.x, loss)
        over, changed = answer.adversarial, between(Norm.L0, answer.x, problem.x)
        better = over & (changed < state.best_distance)

        width = problem.set.upper - problem.set.lower
        u = (state.x - problem.x) / width
        smooth = 2 * self.sigma * u / (u.square() + self.sigma).square() / max(u[:1].numel(), 1)
        g = smooth - answer.grad.nan_to_num(0.0) * width
        tiny = torch.finfo(g.dtype).tiny
        g = g / problem.flat(g.flatten(1).abs().amax(1)).clamp_min(tiny)
        size_now = cosine(problem, state.step, self.steps, self.step_size, _LAST * self.step_size)
        move, mean, square = adam(g, state.mean, state.square, on_device(state.step, g.device))
        u = u - problem.flat(size_now).to(g.dtype) * move
        x = (problem.x + u * width).clamp(*box(problem.set, problem.x))
        tau = (state.tau + self.tau_step * size_now * torch.where(over, 1.0, -1.0)).clamp(0, 1)
        kept = ((x - problem.x) / width).abs() >= problem.flat(tau).to(g.dtype)
        return replace(
            state,
            x=torch.where(kept, x, problem.x),
            mean=mean,
            square=square,
            tau=tau,
            best=torch.where(problem.flat(better), answer.x, state.best),
            best_distance=torch.where(better, changed, state.best_distance),
        )

    @override
    def finalize(self, ask: WhiteBoxAsk, state: SigmaZeroState) -> None:
        settle(ask, state.best, state.best_distance.isfinite(), self.search)
