"""C&W: least perturbations in l0, l2 and linf by a change of variable, Adam and a search for the weight of the loss
(Carlini & Wagner 2017, section VI).

One step is one gradient for all three norms; they differ in the size that is penalised and in what a search does next:

- l2: ``|delta|^2 + c f``; the next search has another c.
- linf: ``sum max(|delta_i| - tau, 0) + c f``; tau is 0.9 of the least reach, and half-way back where that fails.
- l0: the l2 problem on a support, which loses the features of least ``|g_i delta_i|``, g the gradient of the margin, as
  soon as it suffices.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.common.adam import adam
from holdfast.attacks.families.penalty import Boxed, Penalty, PenaltyState, falling_rate, hinge
from holdfast.core.cards import Card, parameter
from holdfast.core.errors import UsageError
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.judge.asks import WhiteBoxAsk
from holdfast.numerics.capped import settled

__all__ = ["CarliniWagner"]

_SHRINK = 0.9  # tau after a success, as a share of the reach
_CLOSE = 0.01  # linf ends where the bracket of tau is this share of the reach
_DROP = 0.25  # l0: share of the support that is dropped at first
_TENFOLD = 10.0
_SPARSE = 100.0  # l0: c of the first search in units of that of l2, so that features fill up before others move
_FINE = 0.1  # linf: the rate once there is a success, as a share of the rate


@dataclass(frozen=True, kw_only=True)
class CarliniWagnerState(PenaltyState):
    """Attributes:
    v: (n, \\*features) the free variable.
    mean: (n, \\*features) Adam's first moments.
    square: (n, \\*features) its second moments.
    merit: l0: (n, \\*features) ``|g delta|`` at the nearest success, 0 where nothing was changed; else (n, 0).
    support: l0: (n, \\*features) bool: what may change; else (n, 0).
    bound: (n,) float64 linf: tau. l0: the share of the support that is dropped next.
    floor: (n,) float64 linf: the largest tau that failed.
    """

    v: Tensor
    mean: Tensor
    square: Tensor
    merit: Tensor
    support: Tensor
    bound: Tensor
    floor: Tensor


@dataclass(frozen=True)
class CarliniWagner(Penalty[CarliniWagnerState]):
    """``minimise size(delta) + c * max(margin + kappa, 0)`` over the v of ``x + delta = box(tanh v)``, by Adam."""

    rate: float = parameter(
        0.1,
        "Adam's step in v at the start of a search; linf takes a tenth once it has a success",
        "ours; 0.01 throughout in the paper",
    )
    last: float = parameter(
        0.01, "share of the rate that is left when a search ends, in (0, 1]", "ours: 200 steps then do the work of 1000"
    )
    edge: float = parameter(
        0.9, "tanh v at the edges of the box, in (0, 1)", "ours; 0.999999 in the paper's code holds 0/1 pixels fast"
    )

    card: ClassVar[Card] = Card(
        title="C&W",
        rows=("E05", "T02", "T03"),
        paper="Carlini, Wagner 2017, Towards Evaluating the Robustness of Neural Networks, arXiv:1608.04644",
        section="2.2",
        summary="Penalises the perturbation's size plus a weighted hinge of the margin and searches for the weight.",
        access=Access.WHITE_BOX,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.PENALTY,
        norms=(Norm.L0, Norm.L2, Norm.LINF),
        affine_ratio={Norm.L0: 1.2, Norm.L2: 1.01, Norm.LINF: 1.05},
        failure_modes=(
            "Where the margin has no gradient near x (masked or saturated models) no weight helps; attacks that start "
            "from an adversarial point, as FAB with restarts, then come nearer.",
            "Without a box (infinite bounds) v is the feature itself and the rate is in its units: scale the features.",
            "kappa above 0 seeks confident examples: its distances are no least distances, and l0, l2 and linf are not "
            "walked back.",
        ),
        checked_by="the exact affine oracle; medians of FAB and DeepFool on the MNIST networks",
    )

    @override
    def check(self, problem: Problem) -> None:
        super().check(problem)
        if not (0 < self.edge < 1 and 0 < self.last <= 1 and self.rate > 0):
            raise UsageError(f"C&W needs 0 < edge < 1, 0 < last <= 1 and rate > 0, got {self}")

    @override
    def start(self, ask: WhiteBoxAsk) -> CarliniWagnerState:
        problem = ask.problem
        v = Boxed.of(problem, self.edge).inverse(problem.x)
        sparse = problem.set.norm is Norm.L0
        none = torch.zeros_like(problem.set.eps)
        return self.initial(
            CarliniWagnerState,
            problem,
            v=v,
            mean=torch.zeros_like(v),
            square=torch.zeros_like(v),
            merit=torch.zeros_like(v) if sparse else v.new_empty(len(v), 0),
            support=torch.ones_like(v, dtype=torch.bool) if sparse else v.new_empty(len(v), 0).bool(),
            bound=none + (_DROP if sparse else torch.inf),
            floor=none,
            c=none + self.c * (_SPARSE if sparse else 1.0),
        )

    @override
    def advance(self, ask: WhiteBoxAsk, state: CarliniWagnerState) -> CarliniWagnerState:
        problem = ask.problem
        norm, boxed = problem.set.norm, Boxed.of(problem, self.edge)
        x = boxed.value(state.v)
        f = hinge(ask, torch.where(state.support, x, problem.x) if norm is Norm.L0 else x, self.kappa)
        x = f.answer.x
        delta, c = x - problem.x, problem.flat(state.c).to(x.dtype)
        if norm is Norm.LINF:
            over_tau = (delta.abs() - problem.flat(state.bound).to(x.dtype)).clamp_min(0)
            delta_norm, pull = over_tau.flatten(1).sum(1), delta.sign() * (over_tau > 0)
        else:
            delta_norm, pull = delta.square().flatten(1).sum(1), 2 * delta
        force = (pull + c * f.grad) * boxed.slope(state.v)
        if norm is Norm.L0:
            force = force * state.support
        move, mean, square = adam(force, state.mean, state.square, state.inner)
        rate = falling_rate(self.rate, self.last, state.inner, self.steps)
        if norm is not Norm.L0:
            near = state.best_distance.isfinite() if norm is Norm.LINF else self._late(state.search)
            rate = torch.where(near, _FINE * rate, rate)
        v = boxed.held(state.v - problem.flat(rate).to(x.dtype) * move)
        noted, good = self.note(replace(state, v=v, mean=mean, square=square), f.answer)
        if norm is Norm.L0:
            nearer = problem.flat(noted.best_distance < state.best_distance)
            # A feature that was changed comes before one that was not, even if the margin does not feel it.
            merit = (f.slope * delta).abs() + torch.finfo(x.dtype).tiny * (delta != 0)
            noted = replace(noted, merit=torch.where(nearer, merit, state.merit))
        turned, up = self.turn(noted, delta_norm.double() + state.c * f.value.double())
        if norm is Norm.L0:
            after, up = self._drop(noted, turned, good, up)
        elif norm is Norm.LINF:
            after, up = self._tighten(noted, turned, up)
        else:
            after = turned
            late = self._late(after.search)
            # From a success every weight works, so the last searches tell nothing of c: they keep the least that did.
            after = replace(after, c=torch.where(late & after.served.isfinite(), after.served, after.c))
        return replace(after, v=torch.where(problem.flat(up), boxed.inverse(self._begin(problem, after)), after.v))

    def _late(self, search: Tensor) -> Tensor:
        """l2: the last third of the searches starts at the nearest success."""
        return search >= self.searches - self.searches // 3

    def _begin(self, problem: Problem, state: CarliniWagnerState) -> Tensor:
        """Where a search starts: linf and l0 at the nearest success; l2 at the clean input, the last ones excepted."""
        if problem.set.norm is not Norm.L2:
            return state.x
        return torch.where(problem.flat(self._late(state.search)), state.x, problem.x)

    def _tighten(
        self, noted: CarliniWagnerState, turned: CarliniWagnerState, up: Tensor
    ) -> tuple[CarliniWagnerState, Tensor]:
        """linf: a search ends as soon as it is within tau."""
        won = noted.worked & (noted.best_distance <= noted.bound)
        has_success = noted.best_distance.isfinite()
        lost = up & ~won
        floor = torch.where(lost & has_success, noted.bound, noted.floor)
        middle = (floor + noted.best_distance) / 2
        bound = torch.where(floor > 0, middle, _SHRINK * noted.best_distance)
        close = has_success & (noted.best_distance - floor <= _CLOSE * noted.best_distance)
        return self._next(noted, turned, won, lost, close, torch.where(won | lost, bound, noted.bound), floor)

    def _drop(
        self, noted: CarliniWagnerState, turned: CarliniWagnerState, good: Tensor, up: Tensor
    ) -> tuple[CarliniWagnerState, Tensor]:
        """l0: a search ends as soon as it has a success, and the support loses its least useful features."""
        lost = up & ~good
        if settled(good | lost):
            return turned, up
        has_success = noted.best_distance.isfinite()
        tried = (noted.bound * noted.best_distance).nan_to_num(0.0, 0.0, 0.0).floor().clamp_min(1)
        fraction = torch.where(lost & has_success, noted.bound / 2, noted.bound)
        close = (noted.best_distance <= 1) | (lost & has_success & (tried <= 1))
        left = noted.best_distance - (fraction * noted.best_distance).floor().clamp_min(1)
        order = noted.merit.flatten(1).argsort(dim=1, descending=True, stable=True)
        first = torch.arange(order.shape[1], device=order.device) < left.unsqueeze(1)
        kept = torch.zeros_like(first).scatter(1, order, first).view_as(noted.support)
        shape = (-1, *[1] * (kept.ndim - 1))
        changes = ((good | lost) & has_success & ~close).view(shape)
        after, ended = self._next(noted, turned, good, lost, close, fraction, noted.floor)
        return replace(after, support=torch.where(changes, kept, noted.support)), ended

    def _next(
        self,
        noted: CarliniWagnerState,
        turned: CarliniWagnerState,
        won: Tensor,
        lost: Tensor,
        close: Tensor,
        bound: Tensor,
        floor: Tensor,
    ) -> tuple[CarliniWagnerState, Tensor]:
        """l0 and linf: only failures count as searches and raise c; a round ends where nothing is left to gain."""
        over = won | lost
        search = torch.where(lost, noted.search + 1, noted.search)
        fresh = torch.full_like(noted.least, torch.inf)
        return replace(
            turned,
            c=torch.where(lost, noted.c * _TENFOLD, noted.c),
            search=torch.where(over & close, self.searches, search),
            inner=torch.where(over, 0, turned.inner),
            worked=turned.worked & ~over,
            least=torch.where(over, fresh, turned.least),
            looked=torch.where(over, fresh, turned.looked),
            bound=bound,
            floor=floor,
        ), over
