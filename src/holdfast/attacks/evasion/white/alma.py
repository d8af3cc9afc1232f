"""ALMA: augmented Lagrangian method for adversarial attacks (Rony et al. 2021, algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.attack import State
from holdfast.attacks.families.minimal_distortion import MinimalDistortion
from holdfast.core.arrays import on_device
from holdfast.core.cards import Card, parameter
from holdfast.core.criterion import Misclassified, Targeted
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.judge.asks import WhiteBoxAsk
from holdfast.numerics.capped import room, solve_capped
from holdfast.numerics.distance import box
from holdfast.numerics.steps import steepest

__all__ = ["ALMA", "ALMAState", "penalty", "penalty_slope"]

_LEAST, _MOST = 1e-6, 1e12  # of the multiplier
_TINY = 1e-8


@dataclass(frozen=True, kw_only=True)
class ALMAState(State):
    """Attributes:
    square: (n, \\*features) running mean of the squared gradient.
    momentum: (n, \\*features) running sum of normalised gradients.
    rate: (n,) float64 the first learning rate.
    mu: (n,) float64 the multiplier.
    rho: (n,) float64 the penalty parameter.
    before: (n,) float64 the constraint at the last check.
    scale: (n,) float64 what the constraint is divided by where the logit ratio has too few classes.
    crossed: (n,) float64 step of the first adversarial iterate; infinite if there is none.
    """

    square: Tensor
    momentum: Tensor
    rate: Tensor
    mu: Tensor
    rho: Tensor
    before: Tensor
    scale: Tensor
    crossed: Tensor


def penalty(y: Tensor, rho: Tensor, mu: Tensor) -> Tensor:
    """P2 of Birgin et al. 2005: ``mu y + mu rho y^2 + rho^2 y^3 / 6`` for y >= 0, ``mu y / (1 - rho y)`` below.

    Example:
        >>> one = torch.ones(2)
        >>> [round(v, 4) for v in penalty(torch.tensor([1.0, -1.0]), one, one).tolist()]
        [2.1667, -0.5]
    """
    above, below = y.clamp_min(0), y.clamp_max(0)
    return mu * above + mu * rho * above**2 + rho**2 * above**3 / 6 + mu * below / (1 - rho * below)


def penalty_slope(y: Tensor, rho: Tensor, mu: Tensor) -> Tensor:
    """The derivative of `penalty` in y; it is the next multiplier.

    Example:
        >>> one = torch.ones(2)
        >>> penalty_slope(torch.tensor([0.0, -1.0]), one, one).tolist()
        [1.0, 0.25]
    """
    above, below = y.clamp_min(0), y.clamp_max(0)
    return mu / (1 - rho * below) ** 2 + 2 * mu * rho * above + rho**2 * above**2 / 2


@dataclass(frozen=True, kw_only=True)
class ALMA(MinimalDistortion[ALMAState]):
    """Descends distance + P2(constraint, rho, mu) with RMSProp and momentum, where the constraint is the logit difference
    ratio, the multiplier mu follows the penalty's slope smoothly, and rho grows while the constraint does not improve.
    """

    steps: int = parameter(300, "gradient steps, at least 1", "Rony et al. 2021, section 5: 100 or 1000")
    first_move: float | None = parameter(
        None, "distance of the first step from x; None: 0.1 in l2 and 0.5 in l1", "Rony et al. 2021, section 4.3"
    )
    rate_reduction: float = parameter(
        0.01, "share of the learning rate that is left at the end", "Rony et al. 2021, section 4.3"
    )
    alpha: float = parameter(0.9, "smoothing of multiplier, squares and momentum, in [0, 1)", "Rony et al. 2021")
    tau: float = parameter(0.95, "share that the constraint must fall to between checks", "Rony et al. 2021")
    growth: float = parameter(1.2, "factor of rho where it does not, above 1", "Rony et al. 2021")
    every: int = parameter(10, "steps between checks, at least 1", "Rony et al. 2021")
    tolerance: float = parameter(1e-4, "added to the logit difference, at least 0", "the authors' code")
    patience: float = parameter(
        0.1, "share of the steps after which a sample that has not crossed goes on from an adversarial start", "ours"
    )
    search: int = parameter(10, "forwards of the walk back from the best witness", "ours")

    card: ClassVar[Card] = Card(
        title="ALMA",
        rows=("E11", "T03"),
        paper="Rony, Granger, Pedersoli, Ben Ayed 2021, Augmented Lagrangian Adversarial Attacks, arXiv:2011.11857",
        section="2.2",
        summary="An augmented Lagrangian of the distance and the logit difference ratio, solved step by step.",
        access=Access.WHITE_BOX,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.PENALTY,
        norms=(Norm.L1, Norm.L2),
        affine_ratio={Norm.L1: 1.01, Norm.L2: 1.01},
        failure_modes=(
            "Masked or vanishing gradients: the witness is a start found by chance.",
            "With few steps the multiplier has no time to settle; give it 100 at least.",
        ),
        checked_by="the exact affine oracle; the penalty against autograd; medians against FAB-T on zoo models",
    )

    @override
    def start(self, ask: WhiteBoxAsk) -> ALMAState:
        problem = ask.problem
        one = torch.ones_like(problem.set.eps)
        margin = problem.criterion.margin(ask.clean, problem.y, problem.target).double()
        return ALMAState.at(
            problem.x,
            square=torch.ones_like(problem.x),
            momentum=torch.zeros_like(problem.x),
            rate=one,
            mu=one,
            rho=one,
            before=torch.zeros_like(one),
            scale=margin.abs().nan_to_num(1.0).clamp_min(_TINY),
            crossed=one * float("inf"),
        )

    @override
    def step(self, ask: WhiteBoxAsk, state: ALMAState) -> ALMAState:
        problem = ask.problem
        step = on_device(state.step, state.x.device)
        check, open_ = (step + 1) % self.every == 0, state.crossed.isinf()
        duals = state.mu, state.rho, torch.where(check & open_, state.before, float("inf")), step == 0

        def lagrangian(scores: Tensor, y: Tensor, target: Tensor, scale: Tensor, *duals: Tensor) -> Tensor:
            value = self._constraint(problem, scores, y, target, scale)
            mu, rho = self._ascend(value.detach(), *duals)
            return penalty(value, rho, mu)

        g = ask.gradient(state.x, lagrangian, state.scale, *duals)
        value = self._constraint(problem, g.scores, problem.y, problem.target, state.scale)
        mu, rho = self._ascend(value, *duals)
        crossed = torch.where(g.adversarial & open_, step.double(), state.crossed)

        delta, grad = state.x - problem.x, g.grad.nan_to_num(0.0)
        rate = torch.where(step == 0, self._first_rate(problem, grad), state.rate)
        pull = delta.sign() if problem.set.norm is Norm.L1 else steepest(Norm.L2, delta)  # of the distance; 0 at x
        grad = grad + pull
        square = self.alpha * state.square + (1 - self.alpha) * grad**2
        momentum = self.alpha * state.momentum + grad / (square.sqrt() + _TINY)
        since = torch.where(crossed.isinf(), 0.0, (step - crossed) / (self.steps - crossed))
        now = problem.flat(rate * self.rate_reduction**since).to(grad.dtype)
        x = (state.x - now * momentum).clamp(*box(problem.set, problem.x))
        restart = self.restart(ask, state, crossed.isfinite())
        if restart is not None:
            point, far = restart
            safe = problem.flat(far.isfinite())
            x, momentum = torch.where(safe, point, x), torch.where(safe, 0.0, momentum)
            crossed = torch.where(far.isfinite(), step.double(), crossed)
        return replace(
            state,
            x=x,
            square=square,
            momentum=momentum,
            rate=rate,
            mu=mu,
            rho=rho,
            before=torch.where(check | (step == 0), value, state.before),
            crossed=crossed,
        )

    def _constraint(self, problem: Problem, scores: Tensor, y: Tensor, target: Tensor, scale: Tensor) -> Tensor:
        """(m,) float64, negative where adversarial: the logit difference over the spread of the best logits, or, with
        too few classes for that or another criterion, over the clean margin.
        """
        margin = problem.criterion.margin(scores, y, target).double() + self.tolerance
        aimed = isinstance(problem.criterion, Targeted)
        if scores.shape[-1] < (4 if aimed else 3) or not isinstance(problem.criterion, Misclassified | Targeted):
            return (margin / scale).nan_to_num(0.0)
        best = scores.double().topk(4 if aimed else 3, dim=-1).values
        spread = best[:, 0] - (best[:, 2] + best[:, 3]) / 2 if aimed else best[:, 0] - best[:, 2]
        return (margin / (spread + _TINY)).nan_to_num(0.0)

    def _ascend(self, value: Tensor, mu: Tensor, rho: Tensor, before: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        """The duals for a value of the constraint: rho grows if it has not fallen enough, mu goes toward the slope."""
        rho = torch.where(value < self.tau * before, rho, self.growth * rho)
        following = mu.lerp(penalty_slope(value, rho, mu), 1 - self.alpha).clamp(_LEAST, _MOST)
        return torch.where(first, mu, following), rho

    def _first_rate(self, problem: Problem, grad: Tensor) -> Tensor:
        """(n,) float64 the learning rate with which a plain step along the gradient moves by ``first_move`` in the box."""
        l1 = problem.set.norm is Norm.L1
        move = self.first_move if self.first_move is not None else (0.5 if l1 else 0.1)
        space = room(-grad, problem.x, *box(problem.set, problem.x)).flatten(1)
        size = grad.double().abs().flatten(1)
        space = torch.where(size > 0, space, 0.0)
        if l1:
            return _solve(size, space, move)
        return _solve(size.square(), space.square(), move**2).sqrt()


def _solve(size: Tensor, space: Tensor, move: float) -> Tensor:
    """u with ``sum_i min(u size_i, space_i) = move``, or half of what the box allows; ``move`` where nothing does."""
    u = solve_capped(size, space, (space.sum(1) / 2).clamp_max(move))
    return torch.where(u > 0, u, move)
