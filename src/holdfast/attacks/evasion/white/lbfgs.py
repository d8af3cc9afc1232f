"""L-BFGS: the box-constrained attack of Szegedy et al. 2014, section 4.1, for a batch of samples at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.families.penalty import Penalty, PenaltyState
from holdfast.core.cards import Card, parameter
from holdfast.core.criterion import Misclassified
from holdfast.core.errors import UsageError
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.judge.asks import WhiteBoxAsk
from holdfast.numerics.distance import box
from holdfast.numerics.losses import cross_entropy_targeted

__all__ = ["LBFGS", "quasi_newton"]

_ENOUGH = 1e-4  # share of the predicted decrease that a step must bring (Armijo)
_HALVINGS = 20  # a search ends where no step this short helps
_CURVED = 1e-10  # least <s, y> / |y|^2 of a pair that is used


@dataclass(frozen=True, kw_only=True)
class LBFGSState(PenaltyState):
    """Attributes:
    here: (n, \\*features) the last point that was accepted.
    value: (n,) float64 the objective there; infinite before the first.
    grad: (n, \\*features) its gradient.
    way: (n, \\*features) the direction from there.
    fraction: (n,) float64 the share of ``way`` that is tried next.
    moves: (n, memory, d) the last moves, the newest first; 0 where there is none.
    turns: (n, memory, d) the changes of the gradient that went with them.
    """

    here: Tensor
    value: Tensor
    grad: Tensor
    way: Tensor
    fraction: Tensor
    moves: Tensor
    turns: Tensor


@dataclass(frozen=True)
class LBFGS(Penalty[LBFGSState]):
    """``minimise |delta|_2^2 + c * cross-entropy`` in the box by projected L-BFGS, and search for the least c that works.

    A step asks one point of the line search; a point that does not lower the objective enough halves the stride.
    """

    steps: int = parameter(100, "most points asked in a search, at least 1", "ours")
    memory: int = parameter(
        5, "pairs from which the curvature is told, at least 1", "ours; 10 is usual in small problems"
    )

    card: ClassVar[Card] = Card(
        title="L-BFGS",
        rows=("E02", "T03"),
        paper="Szegedy, Zaremba, Sutskever, Bruna, Erhan, Goodfellow, Fergus 2014, Intriguing properties of neural "
        "networks, arXiv:1312.6199",
        section="2.2",
        summary="Penalises the l2 size plus a weighted cross-entropy, by box-constrained L-BFGS, with a search for c.",
        access=Access.WHITE_BOX,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.PENALTY,
        norms=(Norm.L2,),
        affine_ratio={Norm.L2: 1.05},
        failure_modes=(
            "Kinks of a network's loss (ReLU) break the curvature model: the line search stalls, C&W comes nearer.",
            "Cross-entropy saturates in models with large logits, which look robust to it.",
        ),
        checked_by="parity with SciPy's L-BFGS-B on a convex problem; the exact affine oracle",
    )

    @override
    def check(self, problem: Problem) -> None:
        super().check(problem)
        if self.memory < 1:
            raise UsageError(f"L-BFGS needs a memory of at least 1, got {self.memory}")

    @override
    def start(self, ask: WhiteBoxAsk) -> LBFGSState:
        problem = ask.problem
        x, none = problem.x, torch.zeros_like(problem.set.eps)
        pairs = x.new_zeros(len(x), self.memory, x[0].numel() if len(x) else 0)
        zero = torch.zeros_like(x)
        return self.initial(
            LBFGSState,
            problem,
            here=x,
            value=none + torch.inf,
            grad=zero,
            way=zero,
            fraction=none + 1,
            moves=pairs,
            turns=pairs,
        )

    @override
    def advance(self, ask: WhiteBoxAsk, state: LBFGSState) -> LBFGSState:
        problem = ask.problem
        low, high = (edge.expand_as(state.here) for edge in box(problem.set, problem.x))
        x = (state.here + problem.flat(state.fraction).to(state.here.dtype) * state.way).clamp(low, high)
        g = ask.gradient(x, _loss(problem))
        delta = x - problem.x
        value = delta.flatten(1).double().square().sum(1) + state.c * g.value.double()
        grad = 2 * delta + problem.flat(state.c).to(x.dtype) * g.grad.nan_to_num(0.0)
        step = x - state.here
        promised = (state.grad * step).flatten(1).double().sum(1)
        taken = state.value.isinf() | (value <= state.value + _ENOUGH * promised)
        moves, turns = _remember(state, step, grad - state.grad, taken)
        free = ~(((x <= low) & (grad > 0)) | ((x >= high) & (grad < 0)))
        way = quasi_newton(grad, free, moves, turns)
        accepted = problem.flat(taken)
        state = replace(
            state,
            here=torch.where(accepted, x, state.here),
            value=torch.where(taken, value, state.value),
            grad=torch.where(accepted, grad, state.grad),
            way=torch.where(accepted, way, state.way),
            fraction=torch.where(taken, 1.0, state.fraction / 2),
            moves=moves,
            turns=turns,
        )
        state, _ = self.note(state, g)
        # Where no step helps, the objective is told to fall no more and the search ends at its next look.
        state, over = self.turn(state, state.value)
        return self._anew(problem, state, over)

    def _anew(self, problem: Problem, state: LBFGSState, over: Tensor) -> LBFGSState:
        rows, pairs = problem.flat(over), over.view(-1, 1, 1)
        stuck = problem.flat(state.fraction < 2.0**-_HALVINGS)
        return replace(
            state,
            here=torch.where(rows, problem.x, state.here),
            value=torch.where(over, torch.inf, state.value),
            way=torch.where(rows | stuck, torch.zeros_like(state.way), state.way),
            fraction=torch.where(over, 1.0, state.fraction),
            moves=state.moves.masked_fill(pairs, 0.0),
            turns=state.turns.masked_fill(pairs, 0.0),
        )


def _loss(problem: Problem) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """``-log f_t``; untargeted ``-log(1 - f_y)``, which unlike ``log f_y`` is bounded below; softplus of the margin for
    a criterion of another kind."""
    if problem.goal is Goal.TARGETED:
        return lambda scores, y, target: -cross_entropy_targeted(scores, y, target)
    if isinstance(problem.criterion, Misclassified):
        return _stays
    return lambda scores, y, target: F.softplus(problem.criterion.margin(scores, y, target))


def _stays(scores: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """``-log(1 - f_y)``."""
    own = scores.gather(1, y.unsqueeze(1)).squeeze(1)
    return F.softplus(own - scores.scatter(1, y.unsqueeze(1), -torch.inf).logsumexp(1))


def _remember(state: LBFGSState, move: Tensor, turn: Tensor, taken: Tensor) -> tuple[Tensor, Tensor]:
    """The pairs with the new one in front, where it was taken and has a positive curvature."""
    s, y = move.flatten(1), turn.flatten(1)
    curved = (s * y).sum(1) > _CURVED * y.square().sum(1)
    new = (taken & curved & state.value.isfinite()).view(-1, 1, 1)
    return (
        torch.where(new, torch.cat([s.unsqueeze(1), state.moves[:, :-1]], dim=1), state.moves),
        torch.where(new, torch.cat([y.unsqueeze(1), state.turns[:, :-1]], dim=1), state.turns),
    )


def quasi_newton(grad: Tensor, free: Tensor, moves: Tensor, turns: Tensor) -> Tensor:
    """The L-BFGS direction on the free features (Nocedal's two-loop recursion), 0 on the others.

    Args:
        grad: (n, \\*features).
        free: (n, \\*features) bool: not held by the box.
        moves: (n, memory, d), the newest first; pairs whose curvature on the free features is not positive are left out.
        turns: (n, memory, d).

    Returns:
        (n, \\*features), a direction of descent.

    Example:
        >>> g, every = torch.tensor([[4.0, 1.0]]), torch.ones(1, 2, dtype=torch.bool)
        >>> pair = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[2.0, 0.0]]])  # curvature 2
        >>> quasi_newton(g, every, *pair).tolist()
        [[-2.0, -0.5]]
    """
    mask = free.flatten(1).to(grad.dtype)
    q = grad.flatten(1) * mask
    s, y = moves * mask.unsqueeze(1), turns * mask.unsqueeze(1)
    sy, yy = (s * y).sum(2), y.square().sum(2)
    usable = sy > _CURVED * yy
    inverse = torch.where(usable, 1 / sy, 0.0)
    size = q.square().sum(1).sqrt()
    # Without a pair: the Newton step of the size alone, but no longer than 1.
    scale = torch.minimum(torch.full_like(size, 0.5), 1 / size.clamp_min(torch.finfo(size.dtype).tiny))
    alphas: list[Tensor] = []
    for j in range(moves.shape[1]):
        alpha = inverse[:, j] * (s[:, j] * q).sum(1)
        q = q - alpha.unsqueeze(1) * y[:, j]
        alphas.append(alpha)
    for j in reversed(range(moves.shape[1])):
        scale = torch.where(usable[:, j], sy[:, j] / yy[:, j], scale)
    q = q * scale.unsqueeze(1)
    for j in reversed(range(moves.shape[1])):
        q = q + (alphas[j] - inverse[:, j] * (y[:, j] * q).sum(1)).unsqueeze(1) * s[:, j]
    return -(q * mask).view_as(grad)
