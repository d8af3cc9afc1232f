"""Brendel & Bethge: a walk along the boundary, each step the nearest point to x in a trust region (2019, equation 3)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.attack import Attack, State
from holdfast.attacks.common.minimum_norm import START_PASSES, adversarial_start, finish, geometric, walk_back
from holdfast.core.cards import Card, parameter
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.judge.asks import WhiteBoxAsk
from holdfast.numerics.distance import between, box, distance
from holdfast.numerics.losses import pick_loss
from holdfast.numerics.search import bisect
from holdfast.numerics.trust_region import nearest_in_trust_region

__all__ = ["BrendelBethge", "BrendelBethgeState"]

_HALVINGS = 10  # of the way from x to the adversarial start
_BISECTIONS = 8  # of the trade-off in a step; the next step mends what they leave


@dataclass(frozen=True, kw_only=True)
class BrendelBethgeState(State):
    """``x`` is near the boundary.

    Attributes:
        normal: (n, \\*features) the gradient of the margin, smoothed over the steps.
        first: (n,) float64 l2 distance of the start: the unit of the trust region.
        best: (n, \\*features) the nearest adversarial iterate, inside the ball or not.
        best_distance: (n,) float64 its distance; infinite if there is none.
    """

    normal: Tensor
    first: Tensor
    best: Tensor
    best_distance: Tensor


@dataclass(frozen=True, kw_only=True)
class BrendelBethge(Attack[WhiteBoxAsk, BrendelBethgeState]):
    """``x <- argmin ||z - clean||_p`` over z in the box, on the linearised boundary, within a radius of x that shrinks."""

    steps: int = parameter(
        200, "steps, at least 1", "ours: the paper takes up to 1000; the radius falls over as many as there are"
    )
    first_radius: float = parameter(
        0.3,
        "first radius of the trust region, over the l2 distance of the start",
        "ours: Foolbox scales by the features",
    )
    last_radius: float = parameter(3e-4, "last radius, likewise; it falls by the same factor each step", "ours")
    momentum: float = parameter(
        0.8, "share of the smoothed normal that a step keeps, 0 to below 1", "Foolbox's port by the authors"
    )
    overshoot: float = parameter(0.02, "how far past the boundary to head, in radii", "ours")
    search: int = parameter(10, "forwards of the final walk back toward x", "ours: takes out the overshoot")

    card: ClassVar[Card] = Card(
        title="Brendel & Bethge",
        rows=("E11", "T03"),
        paper="Brendel, Rauber, Kummerer, Ustyuzhaninov, Bethge 2019, Accurate, reliable and fast robustness evaluation, "
        "arXiv:1907.01003",
        section="2.2",
        summary="Follows the decision boundary from an adversarial start, each step exact in a trust region.",
        access=Access.WHITE_BOX,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.MINIMAL_DISTORTION,
        norms=(Norm.L0, Norm.L1, Norm.L2, Norm.LINF),
        affine_ratio={Norm.L0: 1.01, Norm.L1: 1.01, Norm.L2: 1.01, Norm.LINF: 1.01},
        failure_modes=(
            "It stays on the piece of the boundary where it starts; starts from other classes may end nearer.",
            "In l0 the step is not convex; sigma-zero needs fewer features.",
        ),
        checked_by="the step against SciPy's solver; the exact affine oracle; order among attacks on real networks",
    )

    @property
    @override
    def passes(self) -> int:
        return 2 * self.steps + START_PASSES + 2 * self.search + 5

    @override
    def start(self, ask: WhiteBoxAsk) -> BrendelBethgeState:
        problem = ask.problem
        far, started = adversarial_start(ask)
        wide, edges = problem.x.double(), box(problem.set, problem.x)

        def path(fraction: Tensor) -> Tensor:
            return (wide + problem.flat(fraction) * (far.double() - wide)).to(far.dtype).clamp(*edges)

        none = torch.zeros_like(problem.set.eps)
        _, fraction = bisect(lambda s: ask.scores(path(s)).adversarial, none, none + 1, _HALVINGS)
        x = torch.where(problem.flat(started), path(fraction), problem.x)
        return BrendelBethgeState.at(
            x,
            normal=torch.zeros_like(x),
            first=distance(Norm.L2, x.double() - wide),
            best=problem.x,
            best_distance=none + float("inf"),
        )

    @override
    def step(self, ask: WhiteBoxAsk, state: BrendelBethgeState) -> BrendelBethgeState:
        problem = ask.problem
        norm, (low, high) = problem.set.norm, box(problem.set, problem.x)
        loss, _ = pick_loss("margin", problem.goal, ask.classes)
        g = ask.gradient(state.x, loss)
        asked, far = g.x, between(norm, g.x, problem.x)
        better = g.adversarial & (far < state.best_distance)

        normal = self.momentum * state.normal + (1 - self.momentum) * g.grad.nan_to_num(0.0)
        radius = state.first * geometric(problem, state.step, self.steps, self.first_radius, self.last_radius)
        inner = (normal.double() * asked.double()).flatten(1).sum(1)
        level = inner - g.value.nan_to_num(0.0).double() + self.overshoot * radius * distance(Norm.L2, normal)
        x = nearest_in_trust_region(norm, problem.x, asked, normal, level, radius, low, high, _BISECTIONS)
        x = x.to(asked.dtype)
        flat = (normal == 0).flatten(1).all(1)
        return replace(
            state,
            x=torch.where(problem.flat(flat), asked, x.clamp(low, high)),
            normal=normal,
            best=torch.where(problem.flat(better), asked, state.best),
            best_distance=torch.where(better, far, state.best_distance),
        )

    @override
    def finalize(self, ask: WhiteBoxAsk, state: BrendelBethgeState) -> None:
        super().finalize(ask, state)
        walk_back(ask, state.best, state.best_distance.isfinite(), self.search)
        finish(ask, self.search)
