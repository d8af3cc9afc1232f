"""ZO-ADMM: the perturbation split in two, one for its size and the box, one for the model (Zhao et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.families.soft_penalty import SoftPenalty, SoftPenaltyState
from holdfast.attacks.families.zeroth import askable, coarse, inward, soft_loss, soft_losses
from holdfast.core.arrays import on_device
from holdfast.core.cards import Card, parameter
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.judge.asks import SoftLabelAsk
from holdfast.numerics.distance import box
from holdfast.numerics.zeroth import Estimator, OneSided

__all__ = ["ZOADMM"]


@dataclass(frozen=True)
class ZOADMMState(SoftPenaltyState):
    """Attributes:
    delta: (n, \\*features) the copy of the perturbation that the model sees.
    dual: the scaled multiplier of ``z = delta``, likewise; z, the copy that is small and in the box, is ``x`` less the
        clean input.
    """

    delta: Tensor
    dual: Tensor


@dataclass(frozen=True, kw_only=True)
class ZOADMM(SoftPenalty[ZOADMMState]):
    """``minimise gamma |z|^2 + c * hinge(x + delta)`` with z in the box and ``z = delta``: z has a closed form, delta
    takes one linearised step along the estimate, and the multiplier pulls the two together.
    """

    q: int = parameter(20, "directions of an estimate, at least 1", "Zhao et al. 2019, code")
    mu: float = parameter(0.05, "length of a difference, in widths of the box, above 0", "ours; 0.5 in the code")
    rho: float = parameter(20.0, "weight of the constraint z = delta, above 0", "Zhao et al. 2019, code")
    gamma: float = parameter(1.0, "weight of the perturbation's size, above 0", "Zhao et al. 2019, code")
    alpha: float = parameter(
        10.0, "weight of staying near the last delta, above 0; it grows with the root of the step", "Zhao et al. 2019"
    )

    card: ClassVar[Card] = Card(
        title="ZO-ADMM",
        rows=("E26", "T03"),
        paper="Zhao, Liu, Chen, Hoang, Xu, Kailkhura, Lin 2019, On the Design of Black-box Adversarial Examples by "
        "Leveraging Gradient-free Optimization and Operator Splitting Method, ICCV, arXiv:1907.11684",
        section="2.2",
        summary="Operator splitting: the size and the box in closed form, the model by estimated gradients.",
        access=Access.SOFT_LABEL,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.PENALTY,
        norms=(Norm.L2,),
        failure_modes=(
            "rho and alpha set the step: margins that change much faster or slower with the input need others.",
            "The copy in the box is adversarial only once the two copies nearly agree.",
        ),
        checked_by="the optimum of the penalty on an affine model, with exact gradients; exact query counts",
    )

    def estimator(self, problem: Problem) -> Estimator:
        """The estimator of the loss's gradient."""
        return OneSided(self.q, coarse(problem, self.mu), "sphere")

    @override
    def start(self, ask: SoftLabelAsk) -> ZOADMMState:
        problem = ask.problem
        zero = torch.zeros_like(problem.x)
        return self.initial(ZOADMMState, problem, delta=zero, dual=zero)

    @override
    def move(self, ask: SoftLabelAsk, state: ZOADMMState) -> ZOADMMState:
        problem = ask.problem
        low, high = (edge.expand_as(problem.x) for edge in box(problem.set, problem.x))
        loss = soft_losses(ask, kappa=self.kappa)
        estimator, clip = self.estimator(problem), askable(problem, low, high)
        shrunk = self.rho / (self.rho + 2 * self.gamma) * (state.delta - state.dual)
        x = torch.minimum(torch.maximum(problem.x + shrunk, low), high)
        z = x - problem.x
        margin = ask.losses(x, soft_loss(problem.goal, kappa=self.kappa))
        centre = inward(problem, problem.x + state.delta, low, high, estimator.reach(tuple(x.shape[1:])))
        slope = estimator(loss, centre, problem.keyed, state.step, clip).grad
        stay = problem.flat(self.alpha * on_device(state.step + 1, x.device).double().sqrt()).to(x.dtype)
        pull = problem.flat(state.c).to(x.dtype) * slope
        delta = (stay * state.delta + self.rho * (z + state.dual) + pull) / (stay + self.rho)
        cost = estimator.queries(tuple(x.shape[1:])) + 1
        after = self.turn(ask, state, x, margin, cost)
        return replace(after, delta=delta, dual=state.dual + z - delta)
