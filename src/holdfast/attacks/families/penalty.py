"""What the attacks of the penalty formulation share: ``minimise size(delta) + c * loss(x + delta)``.

The hinge of the margin, the search for the weight c, an Adam whose moments start anew with every search, the tanh
variable that keeps a point in the box, and the walk back to the clean input in the end. All of it is per sample: a
sample goes on to its next search when its own objective no longer falls, whoever shares its batch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from math import atanh
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.attack import Attack, State
from holdfast.attacks.common.minimum_norm import START_PASSES, adversarial_restart, finish
from holdfast.core.cards import parameter
from holdfast.core.errors import UsageError
from holdfast.core.problem import Problem
from holdfast.judge.asks import ScoreAnswer, WhiteBoxAsk
from holdfast.numerics.capped import settled
from holdfast.numerics.distance import between, box

__all__ = ["Boxed", "Hinge", "Penalty", "PenaltyState", "falling_rate", "hinge", "next_weight"]

_LOOKS = 10  # how often a search looks whether its objective still falls
_LEAST_LOOK = 10  # steps between two looks: the first steps of a search may not lower it yet
_FALLS = 0.9999  # what counts as falling
_TENFOLD = 10.0
_FEW_STEPS = 50
_FEWEST_SEARCHES, _LEAST_STEPS = 1, 60  # of an attack that is fitted to fewer passes


@dataclass(frozen=True, kw_only=True)
class PenaltyState(State):
    """``x`` is the nearest success of this round, the clean input until there is one.

    Attributes:
        best_distance: (n,) float64 distance of x; infinite until there is a success.
        c: (n,) float64 weight of the loss in this search.
        failed: (n,) float64 the largest weight that failed; 0 if none has.
        served: (n,) float64 the least weight that worked; infinite if none has.
        search: (n,) int64 searches done.
        inner: (n,) int64 steps made in this search.
        worked: (n,) bool: this search has had a success.
        least: (n,) float64 the least objective of this search.
        looked: (n,) float64 what ``least`` was at the last look.
    """

    best_distance: Tensor
    c: Tensor
    failed: Tensor
    served: Tensor
    search: Tensor
    inner: Tensor
    worked: Tensor
    least: Tensor
    looked: Tensor


P = TypeVar("P", bound=PenaltyState)


@dataclass(frozen=True, kw_only=True)
class Penalty(Attack[WhiteBoxAsk, P]):
    """The frame of a penalty attack: ``searches`` searches of at most ``steps`` steps, each with its own weight c."""

    reads_margin: ClassVar[bool] = True

    searches: int = parameter(9, "searches, each with its own c, at least 1", "Carlini & Wagner 2017, authors' code")
    steps: int = parameter(200, "most steps of a search, at least 1", "ours")
    c: float = parameter(1.0, "weight of the loss in the first search, above 0", "ours")
    kappa: float = parameter(
        0.0, "margin that a success must have, at least 0; above 0 for transfer", "Carlini & Wagner 2017, section V"
    )
    walk: int = parameter(
        4, "forwards that bring the result back toward x along delta; none if kappa > 0", "ours: takes the excess out"
    )

    @property
    @override
    def iterations(self) -> int:
        return self.searches * self.steps

    @property
    @override
    def passes(self) -> int:
        return 2 * self.iterations + self.ends

    @property
    def ends(self) -> int:
        """Passes beside the steps: the clean one, a start where no success comes, and two walks back."""
        return 1 + START_PASSES + 2 * self.walk

    @override
    def check(self, problem: Problem) -> None:
        super().check(problem)
        if self.searches < 1:
            raise UsageError(f"searches of {self.card.title} must be a whole number of at least 1, got {self.searches}")
        if not self.c > 0 or not self.kappa >= 0:
            raise UsageError(f"{self.card.title} needs c > 0 and kappa >= 0, got {self.c} and {self.kappa}")

    @abstractmethod
    def advance(self, ask: WhiteBoxAsk, state: P) -> P:
        """One step. Where a round is over it must ask a point that was asked before, as the start of a search is."""

    @override
    def within(self, passes: int) -> Self:
        """Fewer searches rather than searches that are too short to converge."""
        searches = min(self.searches, max(_FEWEST_SEARCHES, passes // (2 * _LEAST_STEPS)))
        return super(Penalty, replace(self, searches=searches)).within(passes)

    @override
    def step(self, ask: WhiteBoxAsk, state: P) -> P:
        if self.kappa == 0:
            state = self._restarted(ask, state)
        after = self.advance(ask, state)
        over = self.finished(state)
        if settled(over):
            return after
        # A sample whose round is over, if it is not taken out at once, stays as it is.
        held = {f.name: (getattr(state, f.name), getattr(after, f.name)) for f in fields(state)}
        kept = {
            name: torch.where(over.view(-1, *[1] * (new.ndim - 1)), old, new)
            for name, (old, new) in held.items()
            if isinstance(new, Tensor)
        }
        return replace(after, **kept)

    def _restarted(self, ask: WhiteBoxAsk, state: P) -> P:
        """Where a third of the steps brought no success, the later searches know one from an adversarial start."""
        problem = ask.problem
        crossed = state.best_distance.isfinite()
        restart = adversarial_restart(ask, state.step == max(1, self.iterations // 3), crossed, self.walk)
        if restart is None:
            return state
        point, far = restart
        use = ~crossed & far.isfinite() & (state.search < self.searches)
        return replace(
            state,
            x=torch.where(problem.flat(use), point, state.x),
            best_distance=torch.where(use, far, state.best_distance),
        )

    @override
    def finished(self, state: P) -> Tensor:
        return state.search >= self.searches

    @override
    def finalize(self, ask: WhiteBoxAsk, state: P) -> None:
        if self.kappa == 0:
            finish(ask, self.walk)

    def initial(self, kind: Callable[..., P], problem: Problem, **more: Any) -> P:
        """The state of a round at its start; ``more`` are the fields of the method's own."""
        none = torch.zeros_like(problem.set.eps)
        zero = torch.zeros_like(problem.y, dtype=torch.int64)
        shared = {
            "best_distance": none + torch.inf,
            "c": none + self.c,
            "failed": none,
            "served": none + torch.inf,
            "search": zero,
            "inner": zero,
            "worked": zero.bool(),
            "least": none + torch.inf,
            "looked": none + torch.inf,
        }
        return kind(x=problem.x, step=np.zeros(len(problem), dtype=np.int64), **{**shared, **more})

    def note(self, state: P, answer: ScoreAnswer) -> tuple[P, Tensor]:
        """The state with the point kept where it is the nearest success so far, and (n,) which points are a success."""
        problem, good = answer.problem, answer.adversarial
        if self.kappa:
            good = good & (answer.margin <= -self.kappa)
        distance = between(problem.set.norm, answer.x, problem.x)
        nearer = good & (distance < state.best_distance)
        noted = replace(
            state,
            x=torch.where(problem.flat(nearer), answer.x, state.x),
            best_distance=torch.where(nearer, distance, state.best_distance),
            worked=state.worked | good,
        )
        return noted, good

    def turn(self, state: P, objective: Tensor) -> tuple[P, Tensor]:
        """Counts a step; a search that is up, or whose objective has not fallen since the last look, is closed and the
        next one is opened with another c.

        Returns:
            The state, and (n,) which samples begin a search: there the method starts its own variables anew.
        """
        inner = state.inner + 1
        least = torch.minimum(state.least, objective.double().nan_to_num(torch.inf))
        look = inner % max(_LEAST_LOOK, self.steps // _LOOKS) == 0
        over = (inner >= self.steps) | (look & (least > _FALLS * state.looked))
        c, failed, served = next_weight(state.c, state.failed, state.served, state.worked)
        return replace(
            state,
            c=torch.where(over, c, state.c),
            failed=torch.where(over, failed, state.failed),
            served=torch.where(over, served, state.served),
            search=state.search + over,
            inner=torch.where(over, 0, inner),
            worked=state.worked & ~over,
            least=torch.where(over, torch.inf, least),
            looked=torch.where(over, torch.inf, torch.where(look, least, state.looked)),
        ), over


def next_weight(c: Tensor, failed: Tensor, served: Tensor, worked: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The weight of the next search, and the bracket: tenfold up or down until both ends are known, then their
    geometric mean, since c is sought over many decades.

    Args:
        c: (n,) the weight that was tried.
        failed: (n,) the largest weight that had failed; 0 if none.
        served: (n,) the least weight that had worked; infinite if none.
        worked: (n,) bool: c worked.

    Returns:
        (c, failed, served).

    Example:
        >>> one, none, all = torch.ones(3), torch.tensor([0.0, 0.0, 0.01]), torch.full((3,), torch.inf)
        >>> next_weight(one, none, all, torch.tensor([False, True, True]))[0].tolist()
        [10.0, 0.10000000149011612, 0.10000000149011612]
    """
    failed = torch.where(worked, failed, torch.maximum(failed, c))
    served = torch.where(worked, torch.minimum(served, c), served)
    mean = (failed * served).sqrt()
    up, down = failed * _TENFOLD, served / _TENFOLD
    return torch.where(served.isinf(), up, torch.where(failed == 0, down, mean)), failed, served


class Hinge(NamedTuple):
    """``f = max(margin + kappa, 0)`` at a point, f of Carlini & Wagner 2017 (their f_6) with the criterion's own margin:
    targeted and untargeted alike, and no class is masked by a number that could win.

    Attributes:
        value: (n,) f.
        grad: (n, \\*features) gradient of f; 0 where f is.
        slope: (n, \\*features) gradient of the margin, also where f is 0.
        answer: that of the model.
    """

    value: Tensor
    grad: Tensor
    slope: Tensor
    answer: ScoreAnswer


def hinge(ask: WhiteBoxAsk, x: Tensor, kappa: float = 0.0) -> Hinge:
    """Asks for the hinge of the margin and its gradient, one forward and one backward a sample.

    Example:
        >>> from holdfast.core.sets import LpBall
        >>> from holdfast.core.threat import Access, Norm
        >>> from holdfast.judge.archive import Keep
        >>> from holdfast.judge.inquiry import Inquiry
        >>> p = Problem.of(torch.tensor([[-3.0, -4.0]]), torch.tensor([0]), LpBall.uniform(Norm.L2, 1.0, 1, -9.0))
        >>> f = hinge(Inquiry.of(lambda scores: scores, p).oracle(Access.WHITE_BOX).on(p), p.x, 0.5)
        >>> f.value.item(), f.grad.tolist()
        (1.5, [[1.0, -1.0]])
    """
    g = ask.gradient(x, ask.problem.criterion.margin)
    slope, value = g.grad.nan_to_num(0.0), g.value.nan_to_num(0.0) + kappa
    return Hinge(value.clamp_min(0), slope * ask.problem.flat(value >= 0), slope, g)


def falling_rate(first: float, last: float, inner: Tensor, steps: int) -> Tensor:
    """(n,) float64 rate of each sample's step: it falls geometrically from ``first`` to its share ``last``.

    Searches of few steps take longer ones, so that they still cross the box.

    Example:
        >>> falling_rate(0.1, 0.01, torch.tensor([0, 50, 100]), 100).tolist()
        [0.1, 0.010000000000000002, 0.001]
    """
    return max(first, first * _FEW_STEPS / steps) * last ** (inner.double() / steps)


class Boxed(NamedTuple):
    """A variable v without bounds and the point of the box that it stands for: ``middle + half * tanh(v) / edge``.

    With ``edge`` below 1 the edges of the box lie at finite v, where the slope is not 0: a feature that starts on an
    edge can leave it, and one that must end there reaches it exactly. Where the box is infinite, v is the change of
    the feature itself.

    Attributes:
        x: (n, \\*features) the clean inputs.
        low: least values, broadcastable to x.
        high: largest values, likewise.
        middle: of the box; 0 where it is infinite.
        half: half its width; 0 where the feature may not change, infinite where the box is.
        edge: in (0, 1).
    """

    x: Tensor
    low: Tensor
    high: Tensor
    middle: Tensor
    half: Tensor
    edge: float

    @classmethod
    def of(cls, problem: Problem, edge: float) -> Boxed:
        """The variable of a problem's box.

        Example:
            >>> from holdfast.core.sets import LpBall
            >>> from holdfast.core.threat import Norm
            >>> x = torch.tensor([[0.0, 0.25, 1.0]])
            >>> boxed = Boxed.of(Problem.of(x, torch.tensor([0]), LpBall.uniform(Norm.L2, 1.0, 1)), 0.99)
            >>> boxed.value(boxed.inverse(x)).tolist()
            [[0.0, 0.25, 1.0]]
            >>> boxed.value(torch.tensor([[-9.0, 0.0, 9.0]])).tolist()
            [[0.0, 0.5, 1.0]]
        """
        low, high = box(problem.set, problem.x)
        half = (high - low) / 2
        return cls(problem.x, low, high, torch.where(half.isfinite(), low + half, 0.0), half, edge)

    def value(self, v: Tensor) -> Tensor:
        """The point, in the box."""
        point = self.middle + self.half * (v.tanh() / self.edge)
        return torch.where(self.half.isfinite(), point, self.x + v).clamp(self.low, self.high)

    def inverse(self, x: Tensor) -> Tensor:
        """The v of a point of the box."""
        inside = ((x - self.middle) / self.half).nan_to_num(0.0).clamp(-1, 1)
        return torch.where(self.half.isfinite(), (inside * self.edge).atanh(), x - self.x)

    def slope(self, v: Tensor) -> Tensor:
        """How fast the point moves with v; that of the tanh even where the edge holds the point."""
        return torch.where(self.half.isfinite(), self.half * ((1 - v.tanh().square()) / self.edge), 1.0)

    def held(self, v: Tensor) -> Tensor:
        """v no further out than the edges, so that it comes back at once."""
        limit, finite = atanh(self.edge), self.half.isfinite()
        least = torch.where(finite, -limit, self.low - self.x)
        return v.clamp(least, torch.where(finite, limit, self.high - self.x))
