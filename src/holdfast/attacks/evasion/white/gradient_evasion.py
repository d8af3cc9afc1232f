"""Gradient-descent evasion with a mimicry term (Biggio et al. 2013, algorithm 1), for any differentiable classifier."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.attack import Attack, State
from holdfast.core.cards import Card, parameter
from holdfast.core.errors import UsageError
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.judge.asks import WhiteBoxAsk
from holdfast.numerics import ascent
from holdfast.numerics.losses import pick_loss
from holdfast.numerics.steps import pinned_by_box

__all__ = ["GradientEvasion", "GradientEvasionState", "density"]

_PAIRS = 256  # references that the width is measured on


@dataclass(frozen=True)
class GradientEvasionState(State):
    """Attributes:
    width: (n,) float64 the kernel's width; the same for all samples, 0 without a reference.
    """

    width: Tensor


@dataclass(frozen=True, kw_only=True)
class GradientEvasion(Attack[WhiteBoxAsk, GradientEvasionState]):
    """Descends ``g(x) - mimicry * p(x)`` inside the budget: g is the margin of the class to leave, p the density of
    samples of the class to look like. ``run(..., keep=Keep.NEAREST)`` goes on past the first crossing, into the dense region.
    """

    steps: int = parameter(100, "gradient steps, at least 1", "Biggio et al. 2013, section 3.1, at most 500")
    relative_step: float | None = parameter(None, "step as a share of eps; None: 2.5 / steps", "ours: as in PGD")
    mimicry: float = parameter(
        10.0, "lambda, the weight of the density, at least 0; only with a reference", "Biggio et al. 2013, MNIST"
    )
    reference: Tensor | None = parameter(
        None, "(m, *features) samples of the class to look like; None: plain gradient descent", "the user's data"
    )
    width: float | None = parameter(
        None,
        "h of the Gaussian kernel, in units of x, above 0; None: half the median distance of two references",
        "ours",
    )
    sparsity: float = parameter(0.02, "l1: share of the features that a step moves, in (0, 1]", "ours: as in PGD")

    card: ClassVar[Card] = Card(
        title="Gradient-descent evasion",
        rows=("E44", "T03"),
        paper="Biggio, Corona, Maiorca, Nelson, Srndic, Laskov, Giacinto, Roli 2013, Evasion Attacks against Machine "
        "Learning at Test Time, arXiv:1708.06131",
        section="2.2",
        summary="Gradient descent on the discriminant, drawn toward where samples of the target class are dense.",
        access=Access.WHITE_BOX,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.BUDGET,
        norms=(Norm.L1, Norm.L2, Norm.LINF),
        affine_ratio={Norm.L1: 1.05, Norm.L2: 1.02, Norm.LINF: 1.02},
        failure_modes=(
            "Far from all references the kernel underflows and the mimicry term has no gradient: widen it.",
            "A large mimicry can hold the search inside a dense region that is not adversarial.",
            "One start, a fixed step: PGD with restarts and APGD are stronger where density does not matter.",
        ),
        checked_by="mimicry 0 against plain descent; the density at what it finds; SVMs on real digits",
    )

    @override
    def check(self, problem: Problem) -> None:
        super().check(problem)
        if self.mimicry < 0 or (self.width is not None and self.width <= 0):
            raise UsageError(f"mimicry must be at least 0 and width above 0, got {self.mimicry} and {self.width}")
        if self.reference is None:
            return
        if not len(self.reference) or self.reference[0].shape != problem.x.shape[1:]:
            raise UsageError(
                f"the reference must be samples of shape {tuple(problem.x.shape[1:])}, got {tuple(self.reference.shape)}"
            )

    @override
    def start(self, ask: WhiteBoxAsk) -> GradientEvasionState:
        problem = ask.problem
        width = torch.zeros_like(problem.set.eps)
        if self.reference is not None:
            width = width + (self.width or _usual_width(self.reference).to(width)) / problem.unit
        return GradientEvasionState.at(problem.x, width=width)

    @override
    def step(self, ask: WhiteBoxAsk, state: GradientEvasionState) -> GradientEvasionState:
        problem = ask.problem
        loss, _ = pick_loss("margin", problem.goal, ask.classes)
        grad = ask.gradient(state.x, loss).grad
        if self.reference is not None and self.mimicry:
            grad = grad + self.mimicry * density(state.x, problem.counted(self.reference), state.width)[1]
        ball, fraction = problem.ball, self.relative_step or 2.5 / self.steps
        pinned = pinned_by_box(ball, state.x, problem.x, grad) if ball.norm is Norm.L1 else None
        length = fraction * problem.flat(ball.eps).to(grad.dtype)
        x = ascent.step(ball, state.x, grad, problem.x, length, sparsity=self.sparsity, pinned=pinned)
        return replace(state, x=x)


def density(x: Tensor, reference: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """The kernel density ``mean_i exp(-||x - r_i||^2 / (2 h^2))`` up to its constant, and its gradient.

    Args:
        x: (n, \\*features).
        reference: (m, \\*features), the dtype of x.
        width: (n,) h.

    Returns:
        (n,), and (n, \\*features), both in the dtype of x.

    Example:
        >>> p, g = density(torch.tensor([[1.0]]), torch.tensor([[0.0]]), torch.tensor([1.0]))
        >>> round(p.item(), 4), round(g.item(), 4)
        (0.6065, -0.6065)
    """
    flat, near = x.flatten(1), reference.flatten(1)
    h2 = width.to(flat.dtype).square().unsqueeze(1)
    square = flat.square().sum(1, keepdim=True) + near.square().sum(1) - 2 * flat @ near.T
    kernel = (-square.clamp_min(0) / (2 * h2)).exp() / len(near)
    total = kernel.sum(1, keepdim=True)
    return total.squeeze(1), ((kernel @ near - total * flat) / h2).view_as(x)


def _usual_width(reference: Tensor) -> Tensor:
    """Half the median distance of two of the first references; 1 where there is one, or all are equal."""
    some = reference[:_PAIRS].flatten(1).double()
    apart = torch.pdist(some) / 2
    half = apart.median() if len(apart) else apart.sum()
    return torch.where(half > 0, half, 1.0)
