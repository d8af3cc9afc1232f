"""AutoZOOM: Adam on random full gradient estimates in a small attack space (Tu et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.common.adam import adam
from holdfast.attacks.common.label_walk import host_rows
from holdfast.attacks.common.space import Bilinear, Pixels, Space
from holdfast.attacks.families.soft_penalty import SoftPenalty, SoftPenaltyState, rooted
from holdfast.attacks.families.zeroth import askable, coarse, soft_losses
from holdfast.core.arrays import on_device
from holdfast.core.cards import Card, parameter
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.judge.asks import SoftLabelAsk
from holdfast.numerics.distance import box
from holdfast.numerics.zeroth import Estimate, OneSided

__all__ = ["AutoZOOM"]


@dataclass(frozen=True)
class AutoZOOMState(SoftPenaltyState):
    """Attributes:
    u: (n, \\*shape) the coordinates.
    mean: first moments of Adam, likewise.
    square: second moments, likewise.
    """

    u: Tensor
    mean: Tensor
    square: Tensor


@dataclass(frozen=True, kw_only=True)
class AutoZOOM(SoftPenalty[AutoZOOMState]):
    """``minimise |delta|^2 + c * hinge`` over the coordinates of a space that lifts to delta: ``first_q`` random
    directions an estimate until the first success, ``q`` from then on.
    """

    q: int = parameter(
        4, "directions of an estimate after the first success, at least 1", "ours; Tu et al. 2019 tune it"
    )
    first_q: int = parameter(4, "directions of an estimate before it, at least 1", "ours; 1 in Tu et al. 2019")
    beta: float = parameter(0.01, "length of a difference in the space, above 0", "ours; 0.001 drowns in float32")
    rate: float = parameter(
        0.05, "first step of Adam in the space, above 0; it falls with the root of the step", "ours; 0.01 in the code"
    )
    space: Space | None = parameter(
        None,
        "the attack space; None: images resized bilinearly from half their size, but 8 to 32 a side, else features",
        "Tu et al. 2019: AutoZOOM-BiLIN; give `Decoder` for AutoZOOM-AE",
    )

    card: ClassVar[Card] = Card(
        title="AutoZOOM",
        rows=("E20", "T03"),
        paper="Tu, Ting, Chen, Liu, Zhang, Yi, Hsieh, Cheng 2019, AutoZOOM: Autoencoder-based Zeroth Order Optimization "
        "Method for Attacking Black-box Neural Networks, AAAI, arXiv:1805.11770",
        section="2.2",
        summary="Zeroth-order Adam on a penalty, in a space with few coordinates that a decoder lifts to the input.",
        access=Access.SOFT_LABEL,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.PENALTY,
        norms=(Norm.L2,),
        failure_modes=(
            "The least perturbation seldom lies in a small space: its distance stays above that of a pixel search.",
            "An estimate of few directions is mostly noise; the first success is quick but far.",
        ),
        checked_by="the mean of the estimate; exact query counts",
    )

    @override
    def start(self, ask: SoftLabelAsk) -> AutoZOOMState:
        problem = ask.problem
        shape = self._space(problem).shape(tuple(problem.x.shape[1:]))
        zero = problem.x.new_zeros((len(problem), *shape))
        return self.initial(AutoZOOMState, problem, u=zero, mean=zero, square=zero)

    @override
    def move(self, ask: SoftLabelAsk, state: AutoZOOMState) -> AutoZOOMState:
        problem = ask.problem
        margin, slope = state.c.new_zeros(len(problem)), torch.zeros_like(state.u)
        before = host_rows(state.best_distance.isinf())
        for rows, q in ((before, self.first_q), (host_rows(state.best_distance.isfinite()), self.q)):
            if len(rows):
                at = on_device(rows, slope.device)
                estimate = self._estimate(ask.at(rows), state.select(rows), q)
                slope, margin = slope.index_copy(0, at, estimate.grad), margin.index_copy(0, at, estimate.value)
        grad = self._pull(problem, state.u) - state.c.to(slope.dtype).view(-1, *[1] * (slope.ndim - 1)) * slope
        direction, mean, square = adam(grad, state.mean, state.square, state.inner)
        rate = rooted(self.rate, state.inner, direction)
        cost = (self.q if len(before) < len(problem) else self.first_q) + 1
        x = problem.x + self._lifted(problem, state.u)
        after = self.turn(ask, state, x.clamp(*box(problem.set, problem.x)), margin, cost)
        return replace(after, u=state.u - rate * direction, mean=mean, square=square)

    def _estimate(self, ask: SoftLabelAsk, state: AutoZOOMState, q: int) -> Estimate:
        """The gradient of the loss in the space; the value is the loss at the iterate."""
        problem = ask.problem
        loss = soft_losses(ask, kappa=self.kappa)
        features = tuple(problem.x.shape[1:])
        low, high = (edge.expand_as(problem.x) for edge in box(problem.set, problem.x))
        clip = askable(problem, low, high)

        def values(u: Tensor) -> Tensor:
            delta = self._lifted(problem, u.flatten(0, 1)).view(*u.shape[:2], *features)
            return loss(clip(problem.x.unsqueeze(1) + delta))

        return OneSided(q, coarse(problem, self.beta), "sphere")(values, state.u, problem.keyed, state.step)

    def _pull(self, problem: Problem, u: Tensor) -> Tensor:
        """The gradient of the squared size of the perturbation, which needs no query."""
        with torch.enable_grad():
            v = u.detach().requires_grad_()
            size = self._lifted(problem, v).square().sum()
            return torch.autograd.grad(size, v)[0]

    def _lifted(self, problem: Problem, u: Tensor) -> Tensor:
        """(m, \\*features) the perturbation at u, counted as x is."""
        space = self._space(problem)
        delta = space.lift(u, tuple(problem.x.shape[1:]))
        return problem.counted(delta) if space.of_data else delta

    def _space(self, problem: Problem) -> Space:
        if self.space is not None:
            return self.space
        features = tuple(problem.x.shape[1:])
        if len(features) != 3:
            return Pixels()
        height, width = (min(32, max(8, -(-side // 2))) for side in features[1:])
        return Bilinear((height, width))
