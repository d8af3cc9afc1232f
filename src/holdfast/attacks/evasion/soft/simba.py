"""SimBA: steps along random directions of an orthonormal basis (Guo et al. 2019), pixels or cosines.

Each query steps along one direction; if the loss does not grow, the next query steps the other way; a direction that
helps neither way is left. No direction comes again before all others have had their turn.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import pi, sqrt
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.attack import Attack, State
from holdfast.attacks.common.image_view import image_view
from holdfast.attacks.families.zeroth import soft_loss
from holdfast.core.cards import Card, parameter
from holdfast.core.errors import UsageError
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.judge.asks import SoftLabelAsk
from holdfast.numerics.project import project

__all__ = ["SimBA", "SimBAState"]

_BASES = ("dct", "pixels")
_FIRST = 8  # the lowest eighth of the frequencies comes first, then ring by ring of a 32nd
_RINGS = 32


@dataclass(frozen=True, kw_only=True)
class SimBAState(State):
    """The incumbent x.

    Attributes:
        value: (n,) float64 the loss of x, which grows.
        order: (n, d) int32 the directions in the sample's order.
        turn: (n,) int64 how many directions are done.
        back: (n,) bool: the direction is to be tried the other way.
    """

    value: Tensor
    order: Tensor
    turn: Tensor
    back: Tensor


@dataclass(frozen=True)
class SimBA(Attack[SoftLabelAsk, SimBAState]):
    """Coordinate search in an orthonormal basis, one query a step."""

    queries: int = parameter(
        10_000, "queries for a sample, the clean one included if it is asked, at least 1", "Guo et al. 2019, section 4"
    )
    basis: str | None = parameter(
        None,
        "directions: dct (cosines, low frequencies first) or pixels; None: dct in l2, pixels in linf",
        "Guo et al. 2019 in l2; ours in linf, where a sum of cosines leaves most of the ball unused",
    )
    size: float | None = parameter(
        None,
        "length of a step, above 0; None: 0.2, but no more than a third of eps, in l2; in linf what moves the features "
        "by eps where the direction is largest",
        "Guo et al. 2019 in l2; in linf ours: a direction has one turn, so a shorter step would not reach the edge",
    )

    card: ClassVar[Card] = Card(
        title="SimBA",
        rows=("E29", "T03"),
        paper="Guo, Gardner, You, Wilson, Weinberger 2019, Simple Black-box Adversarial Attacks, arXiv:1905.07121",
        section="2.2",
        summary="Tries directions of an orthonormal basis one by one and keeps the steps that help; needs scores.",
        access=Access.SOFT_LABEL,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.BUDGET,
        norms=(Norm.L2, Norm.LINF),
        failure_modes=(
            "A step along one direction must show in the scores: with rounded or clipped scores it stands still.",
            "At the edge of an l2 ball each step shrinks all earlier ones.",
            "Cosines suit images; on other inputs they are arbitrary groups, and `pixels` is as good.",
        ),
        checked_by="the basis is orthonormal; all coordinates of a linear model end at their best edge",
    )

    @override
    def check(self, problem: Problem) -> None:
        super().check(problem)
        if self.basis is not None and self.basis not in _BASES:
            raise UsageError(f"no basis '{self.basis}'; use one of {', '.join(_BASES)}")
        if self.size is not None and self.size <= 0:
            raise UsageError(f"the size of a step must be above 0, got {self.size}")

    @override
    def start(self, ask: SoftLabelAsk) -> SimBAState:
        problem = ask.problem
        x = problem.x
        shape = image_view(problem)
        value = soft_loss(problem.goal)(ask.clean, problem.y, problem.target).double()
        key = problem.keyed.uniform("order", shape).to(x.device)
        if self._cosine(problem):
            key = key + _ring(shape[1]).to(x.device).view(-1, 1).maximum(_ring(shape[2]).to(x.device))
        return SimBAState.at(
            x,
            value=value,
            order=key.flatten(1).argsort(dim=1).int(),
            turn=torch.zeros_like(problem.rows),
            back=torch.zeros_like(problem.rows, dtype=torch.bool),
        )

    @override
    def step(self, ask: SoftLabelAsk, state: SimBAState) -> SimBAState:
        # A second round takes the same order.
        problem = ask.problem
        which = state.order.gather(1, (state.turn % max(1, state.order.shape[1])).unsqueeze(1)).squeeze(1).long()
        direction = self._direction(problem, which)
        length = self._length(problem, direction) * torch.where(state.back, -1.0, 1.0)
        moved = state.x + problem.flat(length).to(state.x.dtype) * direction
        x = project(problem.ball, moved, problem.x)
        value = ask.losses(x, soft_loss(problem.goal))
        better = value > state.value  # not a number, an unanswered row, is not
        return replace(
            state,
            x=torch.where(problem.flat(better), x, state.x),
            value=torch.where(better, value, state.value),
            turn=state.turn + (better | state.back),
            back=~better & ~state.back,
        )

    def _cosine(self, problem: Problem) -> bool:
        return self.basis == "dct" if self.basis else problem.set.norm is Norm.L2

    def _direction(self, problem: Problem, which: Tensor) -> Tensor:
        """(n, \\*features) the unit direction of each sample."""
        c, h, w = image_view(problem)
        x = problem.x
        channel = (torch.arange(c, device=x.device) == (which // (h * w)).unsqueeze(1)).to(x.dtype)
        tables = (_cosines(k) if self._cosine(problem) else torch.eye(k, dtype=torch.float64) for k in (h, w))
        down, across = (t.to(x.device, x.dtype) for t in tables)
        rows, columns = down[which // w % h], across[which % w]
        return torch.einsum("nc,nh,nw->nchw", channel, rows, columns).view_as(x)

    def _length(self, problem: Problem, direction: Tensor) -> Tensor:
        """(n,) float64 length of a step."""
        eps = problem.set.eps
        if self.size is not None:
            return torch.full_like(eps, self.size)
        if problem.set.norm is Norm.L2:
            return (eps / 3).clamp_max(0.2)
        return eps / direction.flatten(1).abs().amax(1).double()


def _ring(length: int) -> Tensor:
    """(length,) the turn of each frequency of an axis: 0 for the lowest eighth, then one more for every 32nd."""
    first, width = -(-length // _FIRST), -(-length // _RINGS)
    return (torch.arange(length) - first).div(width, rounding_mode="floor").add(1).clamp_min(0)


def _cosines(length: int) -> Tensor:
    """(length, length) float64 the orthonormal cosine basis (DCT-II), a row for each frequency.

    Example:
        >>> bool(torch.allclose(_cosines(6) @ _cosines(6).T, torch.eye(6, dtype=torch.float64)))
        True
    """
    k = torch.arange(length, dtype=torch.float64)
    table = torch.cos(pi * (k + 0.5) * k.unsqueeze(1) / length) * sqrt(2 / length)
    table[0] /= sqrt(2)
    return table
