"""DDN: decoupled direction and norm (Rony et al. 2019, algorithm 1)."""

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
from holdfast.core.criterion import Misclassified, Targeted
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.judge.asks import WhiteBoxAsk
from holdfast.numerics.distance import box, distance
from holdfast.numerics.losses import pick_loss
from holdfast.numerics.steps import steepest

__all__ = ["DDN", "DDNState"]


@dataclass(frozen=True)
class DDNState(State):
    """Attributes:
    radius: (n,) float64 the l2 size that the next iterate is given.
    most: (n,) float64 the largest of any use.
    crossed: (n,) bool: an iterate was adversarial.
    """

    radius: Tensor
    most: Tensor
    crossed: Tensor


@dataclass(frozen=True, kw_only=True)
class DDN(MinimalDistortion[DDNState]):
    """Follows the gradient of the cross-entropy on a sphere around x that shrinks by ``gamma`` after each adversarial
    iterate and grows by it after each other. Iterates are not rounded to 8 bits, which is the stronger form (DDN-NQ in
    AttackBench), unless the set has a grid.
    """

    steps: int = parameter(
        300, "gradient steps, at least 1", "Rony et al. 2019, section 4: 100, 300 or 1000; 1000 in AttackBench"
    )
    gamma: float = parameter(0.05, "share by which the radius changes, in (0, 1)", "Rony et al. 2019, section 4")
    radius: float = parameter(1.0, "first radius, in widths of the box, positive", "Rony et al. 2019, section 4")
    first_step: float = parameter(1.0, "first step, in widths of the box", "Rony et al. 2019, section 4")
    last_step: float = parameter(0.01, "last step, reached along half a cosine", "Rony et al. 2019, section 4")
    patience: float = parameter(
        0.1, "share of the steps after which a sample that has not crossed goes on from an adversarial start", "ours"
    )
    search: int = parameter(10, "forwards of the walk back from the best witness", "ours: gamma leaves it 5 % too far")

    card: ClassVar[Card] = Card(
        title="DDN",
        rows=("E11", "T03"),
        paper="Rony, Hafemann, Oliveira, Ben Ayed, Sabourin, Granger 2019, Decoupling Direction and Norm for Efficient "
        "Gradient-Based L2 Adversarial Attacks and Defenses, arXiv:1811.09600",
        section="2.2",
        summary="Gradient steps on a sphere whose radius shrinks while the iterate is adversarial and grows while not.",
        access=Access.WHITE_BOX,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.MINIMAL_DISTORTION,
        norms=(Norm.L2,),
        affine_ratio={Norm.L2: 1.01},
        failure_modes=(
            "Masked or vanishing gradients: the radius only grows, and the witness is a start found by chance.",
            "Distances far from the first radius take ln(ratio) / gamma steps to reach.",
        ),
        checked_by="the exact affine oracle; medians against FAB-T and DeepFool on zoo models",
    )

    @override
    def start(self, ask: WhiteBoxAsk) -> DDNState:
        problem = ask.problem
        most = reach_of_box(problem)
        return DDNState.at(problem.x, radius=most.clamp_max(self.radius), most=most, crossed=most < 0)

    @override
    def step(self, ask: WhiteBoxAsk, state: DDNState) -> DDNState:
        problem = ask.problem
        classes = isinstance(problem.criterion, Misclassified | Targeted)
        g = ask.gradient(state.x, pick_loss("ce", problem.goal, ask.classes)[0] if classes else None)
        over = g.adversarial
        alpha = cosine(problem, state.step, self.steps, self.first_step, self.last_step)
        delta = state.x - problem.x + problem.flat(alpha).to(state.x.dtype) * steepest(Norm.L2, g.grad)
        radius = torch.where(over, 1 - self.gamma, 1 + self.gamma) * state.radius
        radius = torch.minimum(radius, state.most)
        length = distance(Norm.L2, delta).clamp_min(torch.finfo(torch.float64).tiny)
        x = (problem.x + problem.flat(radius / length).to(delta.dtype) * delta).clamp(*box(problem.set, problem.x))
        crossed = state.crossed | over
        restart = self.restart(ask, state, crossed)
        if restart is not None:
            point, far = restart
            x = torch.where(problem.flat(far.isfinite()), point, x)
            radius = torch.where(far.isfinite(), far, radius)
        return replace(state, x=x, radius=radius, crossed=crossed)
