"""PDPGD: primal-dual proximal gradient descent (Matyasko & Chau 2021)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import log
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.attack import State
from holdfast.attacks.common.minimum_norm import geometric
from holdfast.attacks.families.minimal_distortion import MinimalDistortion
from holdfast.core.arrays import on_device
from holdfast.core.cards import Card, parameter
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.judge.asks import WhiteBoxAsk
from holdfast.numerics.distance import box
from holdfast.numerics.proximal import shrink

__all__ = ["PDPGD", "PDPGDState"]

_BETA_1, _BETA_2, _TINY = 0.9, 0.999, 1e-8


@dataclass(frozen=True, kw_only=True)
class PDPGDState(State):
    """Attributes:
    mean: (n, \\*features) Adam's running mean of the gradient.
    square: (n, \\*features) Adam's running mean of its square.
    dual: (n,) float64 the logarithm of the constraint's weight over the distance's.
    fraction: (n,) float64 the distance's smoothed share of both weights.
    crossed: (n,) bool: an iterate was adversarial.
    """

    mean: Tensor
    square: Tensor
    dual: Tensor
    fraction: Tensor
    crossed: Tensor


@dataclass(frozen=True, kw_only=True)
class PDPGD(MinimalDistortion[PDPGDState]):
    """Adam steps on ``softplus(margin)``, each followed by the proximal operator of the weighted norm in Adam's metric;
    the weight of the constraint rises while the iterate is not adversarial and falls while it is.

    In l0 the proximal operator is that of l2/3, which moves where that of l0 would stay at x.
    """

    steps: int = parameter(500, "gradient steps, at least 2", "Matyasko & Chau 2021, section 5: 500")
    rate: float = parameter(0.1, "first primal step, in widths of the box", "Matyasko & Chau 2021")
    rate_reduction: float = parameter(0.01, "share of it that is left at the end", "Matyasko & Chau 2021")
    ratio: float = parameter(0.01, "first weight of the distance over that of the constraint", "Matyasko & Chau 2021")
    dual_rate: float = parameter(0.1, "first dual step", "Matyasko & Chau 2021")
    dual_reduction: float = parameter(0.1, "share of it that is left at the end", "Matyasko & Chau 2021")
    smoothing: float = parameter(0.9, "of the dual weights, in [0, 1)", "Matyasko & Chau 2021")
    least_ratio: float = parameter(1e-6, "least ratio of one weight to the other", "Matyasko & Chau 2021")
    patience: float = parameter(
        0.1, "share of the steps after which a sample that has not crossed goes on from an adversarial start", "ours"
    )
    search: int = parameter(10, "forwards of the walk back from the best witness", "ours")

    card: ClassVar[Card] = Card(
        title="PDPGD",
        rows=("E11", "T03"),
        paper="Matyasko, Chau 2021, PDPGD: Primal-Dual Proximal Gradient Descent Adversarial Attack, arXiv:2106.01538",
        section="2.2",
        summary="Descent on the margin and ascent on its weight, with the norm's proximal operator, in four norms.",
        access=Access.WHITE_BOX,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.PENALTY,
        norms=(Norm.L0, Norm.L1, Norm.L2, Norm.LINF),
        affine_ratio={Norm.L0: 1.05, Norm.L1: 1.05, Norm.L2: 1.05, Norm.LINF: 1.05},
        failure_modes=(
            "Masked or vanishing gradients: the witness is a start found by chance.",
            "In l0 sigma-zero is stronger.",
        ),
        checked_by="the exact affine oracle in four norms; each proximal operator against brute force",
    )

    @override
    def start(self, ask: WhiteBoxAsk) -> PDPGDState:
        problem = ask.problem
        dual = torch.full_like(problem.set.eps, -log(self.ratio))
        still = torch.zeros_like(problem.x)
        return PDPGDState.at(
            problem.x, mean=still, square=still, dual=dual, fraction=(-dual).sigmoid(), crossed=dual.isnan()
        )

    @override
    def step(self, ask: WhiteBoxAsk, state: PDPGDState) -> PDPGDState:
        problem = ask.problem

        def loss(scores: Tensor, y: Tensor, target: Tensor) -> Tensor:
            return F.softplus(problem.criterion.margin(scores, y, target))

        g = ask.gradient(state.x, loss)
        over = g.adversarial
        grad, made = g.grad.nan_to_num(0.0), on_device(state.step, state.x.device).double() + 1
        mean = _BETA_1 * state.mean + (1 - _BETA_1) * grad
        square = _BETA_2 * state.square + (1 - _BETA_2) * grad**2
        rate = geometric(problem, state.step, self.steps, self.rate, self.rate * self.rate_reduction)
        # Adam's step is rate / scale times the unbiased mean; the metric of the proximal operator is scale / rate.
        unbiased = (square / problem.flat(1 - _BETA_2**made).to(grad.dtype)).sqrt() + _TINY
        pace = problem.flat(rate).to(grad.dtype) / unbiased
        x = state.x - pace * mean / problem.flat(1 - _BETA_1**made).to(grad.dtype)
        x = x.clamp(*box(problem.set, problem.x))
        weight = state.fraction / (1 - state.fraction)
        delta = shrink(problem.set.norm, x - problem.x, pace, weight)

        left = on_device((self.steps - 1 - state.step) / max(1, self.steps - 1), state.x.device).clamp_min(0)
        dual_rate = self.dual_rate * (left * (1 - self.dual_reduction) + self.dual_reduction)
        limit = -log(self.least_ratio)
        dual = (state.dual + torch.where(over, -dual_rate, dual_rate)).clamp(-limit, limit)
        fraction = self.smoothing * state.fraction + (1 - self.smoothing) * (-dual).sigmoid()
        x = (problem.x + delta).clamp(*box(problem.set, problem.x))
        crossed = state.crossed | over
        restart = self.restart(ask, state, crossed)
        if restart is not None:
            point, far = restart
            safe = problem.flat(far.isfinite())
            x, mean = torch.where(safe, point, x), torch.where(safe, 0.0, mean)
        return replace(state, x=x, mean=mean, square=square, dual=dual, fraction=fraction, crossed=crossed)
