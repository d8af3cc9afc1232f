"""StrAttack: structured perturbations by ADMM with group sparsity (Xu et al. 2019, sections 3 and 4).

``minimise c f(x + delta) + |delta|_2^2 + tau sum_g |delta_g|_2`` in the box. The loss sees one copy of delta, size and box
another, and each family of disjoint groups one more, so that overlapping groups too have a closed-form step; scaled
multipliers pull the copies together. In the end the support of the nearest success is kept and refined without tau.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.common.image_view import image_view
from holdfast.attacks.families.penalty import Penalty, PenaltyState, falling_rate, hinge
from holdfast.core.cards import Card, parameter
from holdfast.core.errors import UsageError
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.judge.asks import WhiteBoxAsk
from holdfast.numerics.distance import box

__all__ = ["StrAttack", "group_shrink", "groups"]


@dataclass(frozen=True, kw_only=True)
class StrAttackState(PenaltyState):
    """Attributes:
    loss_copy: (n, d) the delta that the loss moves.
    copies: (n, 1 + families, d) its copies: of size and box, then of each family of groups.
    pulls: (n, 1 + families, d) the scaled multipliers that draw the copies and the loss's delta together.
    point: (n, d) the delta that is asked next: in the box, 0 in each group that is 0 in some family.
    support: (n, d) bool: what may change; everything until the refinement.
    """

    loss_copy: Tensor
    copies: Tensor
    pulls: Tensor
    point: Tensor
    support: Tensor


@dataclass(frozen=True, kw_only=True)
class StrAttack(Penalty[StrAttackState]):
    """ADMM on the group-sparse penalty; the last third of the searches refines on the support of the nearest success."""

    tau: float = parameter(0.2, "weight of the group norms, at least 0", "ours")
    group: int = parameter(
        2, "side of a group, at least 1; a length where inputs are no images", "Xu et al. 2019, MNIST"
    )
    stride: int = parameter(
        2, "how far groups are apart; a divisor of group, groups overlap where it is less", "Xu et al. 2019, MNIST"
    )
    rho: float = parameter(1.0, "weight that holds the copies together, above 0", "ours")
    rate: float = parameter(0.1, "the loss's step at the start of a search, above 0", "ours")
    last: float = parameter(0.01, "share of the rate that is left when a search ends, in (0, 1]", "ours")

    card: ClassVar[Card] = Card(
        title="StrAttack",
        rows=("E09", "T03", "T04"),
        paper="Xu, Liu, Zhao, Chen, Zhang, Fan, Erdogmus, Wang, Lin 2019, Structured Adversarial Attack: Towards General "
        "Implementation and Better Interpretability, arXiv:1808.01664",
        section="2.2",
        summary="Penalises the l2 size and the group norms of windows, so that whole windows stay unchanged.",
        access=Access.WHITE_BOX,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.PENALTY,
        norms=(Norm.L2, Norm.L1),
        affine_ratio={Norm.L2: 1.05},
        failure_modes=(
            "What is kept is the nearest success in the problem's norm: a large tau costs distance.",
            "The step and rho are in the units of the features: a box far from [0, 1] needs others.",
        ),
        checked_by="tau = 0 gives C&W's optimum; fewer groups change as tau grows; the exact affine oracle",
    )

    @override
    def check(self, problem: Problem) -> None:
        super().check(problem)
        if self.group < 1 or self.stride < 1 or self.group % self.stride:
            raise UsageError(f"StrAttack's stride must divide its group, got {self.stride} and {self.group}")
        if not (self.tau >= 0 and self.rho > 0 and self.rate > 0 and 0 < self.last <= 1):
            raise UsageError(f"StrAttack needs tau >= 0, rho > 0, rate > 0 and 0 < last <= 1, got {self}")

    @override
    def start(self, ask: WhiteBoxAsk) -> StrAttackState:
        problem = ask.problem
        zero = torch.zeros_like(problem.x).flatten(1)
        copies = zero.unsqueeze(1).repeat(1, 1 + (self.group // self.stride) ** 2, 1)
        return self.initial(
            StrAttackState,
            problem,
            loss_copy=zero,
            point=zero,
            support=torch.ones_like(zero, dtype=torch.bool),
            copies=copies,
            pulls=copies,
        )

    @override
    def advance(self, ask: WhiteBoxAsk, state: StrAttackState) -> StrAttackState:
        problem = ask.problem
        x, (low, high) = problem.x, box(problem.set, problem.x)
        here = (x + state.point.view_as(x)).clamp(low, high)
        f = hinge(ask, here, self.kappa)
        stiff = 1 / falling_rate(self.rate, self.last, state.inner, self.steps).to(x.dtype).unsqueeze(1)
        late = self._late(state.search)
        tau = torch.where(late, 0.0, self.tau).to(x.dtype)
        families = groups(image_view(problem), self.group, self.stride, x.device)
        # The loss, linearised where it was asked; then the proximal steps of size and box, and of each family.
        force = state.c.to(x.dtype).unsqueeze(1) * f.grad.flatten(1)
        rest = (state.copies - state.pulls).sum(1)
        moved = (stiff * state.loss_copy + self.rho * rest - force) / (stiff + self.rho * state.copies.shape[1])
        moved = moved * state.support
        seen = moved.unsqueeze(1) + state.pulls
        edges = ((edge - x).flatten(1) for edge in (low, high))
        sized = (self.rho / (self.rho + 2) * seen[:, 0]).clamp(*edges)
        grouped = torch.stack([group_shrink(seen[:, 1 + j], ids, tau / self.rho) for j, ids in enumerate(families)], 1)
        copies = torch.cat([sized.unsqueeze(1), grouped], dim=1) * state.support.unsqueeze(1)
        pulls = seen - copies
        # A feature is changed only if no family has zeroed its group.
        point = copies[:, 1:].mean(1) * (copies[:, 1:] != 0).all(1)
        noted, _ = self.note(replace(state, loss_copy=moved, copies=copies, pulls=pulls, point=point), f.answer)
        size = (here - x).flatten(1).double().square().sum(1)
        for ids in families:
            size = size + tau * _norms((here - x).flatten(1), ids).sum(1).double()
        turned, over = self.turn(noted, size + state.c * f.value.double())
        return self._anew(problem, turned, over, late)

    def _late(self, search: Tensor) -> Tensor:
        """(n,) bool: the search refines."""
        return search >= self.searches - self.searches // 3

    def _anew(self, problem: Problem, state: StrAttackState, over: Tensor, was_late: Tensor) -> StrAttackState:
        """A new search starts at 0; the first refinement fixes the support and forgets what it knew of c."""
        first = over & self._late(state.search) & ~was_late
        refines = first & state.best_distance.isfinite()
        changed = (state.x != problem.x).flatten(1)
        rows = over.unsqueeze(1)
        return replace(
            state,
            c=torch.where(refines & state.served.isfinite(), state.served, state.c),
            failed=torch.where(refines, 0.0, state.failed),
            served=torch.where(refines, torch.inf, state.served),
            support=torch.where(refines.unsqueeze(1), changed, state.support),
            loss_copy=state.loss_copy.masked_fill(rows, 0.0),
            point=state.point.masked_fill(rows, 0.0),
            copies=state.copies.masked_fill(rows.unsqueeze(1), 0.0),
            pulls=state.pulls.masked_fill(rows.unsqueeze(1), 0.0),
        )


def groups(shape: tuple[int, int, int], side: int, stride: int, device: torch.device) -> tuple[Tensor, ...]:
    """The families of disjoint groups that together are all windows of this side, ``stride`` apart; a window spans all
    channels. Inputs of height 1 have windows of width ``side``.

    Returns:
        For each family (d,) int64, the group of each feature.

    Example:
        >>> [g.tolist() for g in groups((1, 1, 5), 2, 1, torch.device("cpu"))][:2]
        [[0, 0, 1, 1, 2], [0, 1, 1, 2, 2]]
    """
    return _groups(shape, side, stride, device)


@lru_cache(maxsize=16)
def _groups(shape: tuple[int, int, int], side: int, stride: int, device: torch.device) -> tuple[Tensor, ...]:
    channels, height, width = shape
    families: list[Tensor] = []
    for down in range(0, side, stride):
        for right in range(0, side, stride):
            i = (torch.arange(height) + down) // side
            j = (torch.arange(width) + right) // side
            # No group is empty, so there are no more groups than features.
            ids = (i * (int(j[-1]) + 1)).view(-1, 1) + j
            families.append(ids.expand(channels, height, width).flatten().to(device))
    return tuple(families)


def _norms(delta: Tensor, ids: Tensor) -> Tensor:
    """(n, d) the l2 size of the group of each of the features, at the group's own number; 0 beyond the groups."""
    return torch.zeros_like(delta).index_add(1, ids, delta.square()).sqrt()


def group_shrink(delta: Tensor, ids: Tensor, by: Tensor) -> Tensor:
    """The point u that minimises ``|u - delta|^2 / 2 + by sum_g |u_g|_2``: each group is shortened by so much, or is 0.

    Args:
        delta: (n, d).
        ids: (d,) int64 the group of each feature.
        by: (n,) at least 0.

    Example:
        >>> delta, ids = torch.tensor([[3.0, 4.0, 0.5]]), torch.tensor([0, 0, 1])
        >>> group_shrink(delta, ids, torch.tensor([1.0])).tolist()
        [[2.4000000953674316, 3.200000047683716, 0.0]]
    """
    size = _norms(delta, ids)
    kept = (1 - by.unsqueeze(1) / size.clamp_min(torch.finfo(delta.dtype).tiny)).clamp_min(0)
    return delta * kept[:, ids]
