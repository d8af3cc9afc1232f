"""FMN: fast minimum-norm attack (Pintor et al. 2021, algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.attack import State
from holdfast.attacks.common.minimum_norm import cosine, reach_of_box
from holdfast.attacks.families.minimal_distortion import MinimalDistortion
from holdfast.core.cards import Card, parameter
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.judge.asks import WhiteBoxAsk
from holdfast.numerics.distance import between, distance, dual_norm
from holdfast.numerics.project import project
from holdfast.numerics.steps import steepest

__all__ = ["FMN", "FMNState"]

_TINY = 1e-12


@dataclass(frozen=True)
class FMNState(State):
    """Attributes:
    radius: (n,) float64 of the ball that the iterate is in.
    best_distance: (n,) float64 the distance of the nearest adversarial iterate; infinite if there is none.
    most: (n,) float64 the largest radius of any use.
    """

    radius: Tensor
    best_distance: Tensor
    most: Tensor


@dataclass(frozen=True, kw_only=True)
class FMN(MinimalDistortion[FMNState]):
    """Ascends the margin inside a ball whose radius is the linearised distance of the boundary until it is crossed, then
    shrinks by ``gamma`` after each adversarial iterate and grows by it after each other.

    The estimate lands exactly on the boundary of a locally affine model and would never cross it; it is overshot.
    """

    steps: int = parameter(
        300, "gradient steps, at least 1", "Pintor et al. 2021, section 3: 100 to 1000; 1000 in AttackBench"
    )
    first_step: float = parameter(
        1.0, "first step, as its l2 size in widths of the box", "Pintor et al. 2021, section 3"
    )
    last_step: float = parameter(0.01, "last step, reached along half a cosine", "Pintor et al. 2021: first / 100")
    gamma: float = parameter(0.05, "first share by which the radius changes, in (0, 1)", "Pintor et al. 2021")
    last_gamma: float = parameter(0.001, "its last value, reached along half a cosine", "Pintor et al. 2021")
    overshoot: float = parameter(
        1e-3, "share by which the estimated distance of the boundary is passed", "ours: without it nothing crosses"
    )
    patience: float = parameter(
        0.1, "share of the steps after which a sample that has not crossed goes on from an adversarial start", "ours"
    )
    search: int = parameter(10, "forwards of the walk back from the best witness", "ours")

    card: ClassVar[Card] = Card(
        title="FMN",
        rows=("E11", "T03"),
        paper="Pintor, Roli, Brendel, Biggio 2021, Fast Minimum-norm Adversarial Attacks through Adaptive Norm "
        "Constraints, arXiv:2102.12827",
        section="2.2",
        summary="Margin ascent inside a ball whose radius adapts to the boundary, in four norms.",
        access=Access.WHITE_BOX,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.MINIMAL_DISTORTION,
        norms=(Norm.L0, Norm.L1, Norm.L2, Norm.LINF),
        affine_ratio={Norm.L0: 1.01, Norm.L1: 1.01, Norm.L2: 1.01, Norm.LINF: 1.01},
        failure_modes=("Masked or vanishing gradients: the witness is a start found by chance.",),
        checked_by="the exact affine oracle in four norms; medians against FAB-T and DeepFool on zoo models",
    )

    @override
    def start(self, ask: WhiteBoxAsk) -> FMNState:
        problem = ask.problem
        most = reach_of_box(problem)
        return FMNState.at(
            problem.x, radius=torch.ones_like(most), best_distance=torch.full_like(most, float("inf")), most=most
        )

    @override
    def step(self, ask: WhiteBoxAsk, state: FMNState) -> FMNState:
        problem = ask.problem
        norm, g = problem.set.norm, ask.gradient(state.x)
        over, far = g.adversarial, between(norm, g.x, problem.x)
        best_distance = torch.where(over, torch.minimum(far, state.best_distance), state.best_distance)
        gamma = cosine(problem, state.step, self.steps, self.gamma, self.last_gamma)
        grad = g.grad.nan_to_num(0.0)
        if norm is Norm.L0:
            radius = _count(state.radius, gamma, over, best_distance)
        else:
            ahead = (g.value.abs() + g.unsure).double() / dual_norm(norm, grad).clamp_min(_TINY)
            estimate = (1 + self.overshoot) * (far + ahead)
            grown = torch.where(best_distance.isfinite(), state.radius * (1 + gamma), estimate)
            radius = torch.where(over, torch.minimum(state.radius * (1 - gamma), best_distance), grown)
        radius = torch.minimum(radius, state.most)
        alpha = cosine(problem, state.step, self.steps, self.first_step, self.last_step)
        moved = state.x + problem.flat(alpha).to(grad.dtype) * steepest(Norm.L2, grad)
        if norm in (Norm.L1, Norm.L2):
            # Where the gradient is small the estimate runs ahead of the steps; the first crossing is then looked for
            # on the sphere of that radius. A linf delta of gradients is no way to a far point; see `patience`.
            out = (radius / distance(norm, moved - problem.x).clamp_min(_TINY)).clamp_min(1)
            out = torch.where(best_distance.isfinite(), 1.0, out)
            moved = problem.x + problem.flat(out).to(grad.dtype) * (moved - problem.x)
        x = project(problem.ball.with_eps(radius), moved, problem.x)
        restart = self.restart(ask, state, best_distance.isfinite())
        if restart is not None:
            point, far = restart
            safe = far.isfinite()
            x = torch.where(problem.flat(safe), point, x)
            radius, best_distance = torch.where(safe, far, radius), torch.where(safe, far, best_distance)
        return replace(state, x=x, radius=radius, best_distance=best_distance)


def _count(radius: Tensor, gamma: Tensor, over: Tensor, best_distance: Tensor) -> Tensor:
    """The l0 radius: a whole number that changes by gamma, and by one at least."""
    less = torch.minimum(torch.minimum(radius - 1, (radius * (1 - gamma)).floor()), best_distance)
    more = torch.maximum(radius + 1, (radius * (1 + gamma)).floor())
    return torch.where(over, less, more).clamp_min(0)
