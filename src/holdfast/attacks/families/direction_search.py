"""What OPT and Sign-OPT share: descent on g, the distance to the boundary as a function of the direction from x."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.attack import Attack, State
from holdfast.attacks.common.label_walk import adversarial_starts, host_rows
from holdfast.core.arrays import on_device
from holdfast.core.cards import parameter
from holdfast.core.problem import Problem
from holdfast.core.threat import Norm
from holdfast.judge.asks import HardLabelAsk
from holdfast.numerics.distance import between, box, difference, distance

__all__ = ["DirectionSearch", "DirectionState", "bracket", "exact", "narrow", "turned", "way"]

_NUMBERS = 1 << 15  # of a block of directions of one sample: what bounds the memory of an estimate
_SHARE = 500  # Cheng et al. 2019, authors' code
_COARSE = 0.1  # share of a gain to which a trial of the line search is measured
_NEAR = 1e-3  # share of the radius that the line search first looks inward
_LEAST, _LARGEST = 1e-4, 64.0  # sizes of a step beyond which the line search does not go
_FINEST = 1e-8  # smoothing after which a stall begins anew with the first one
_TINY = torch.finfo(torch.float64).tiny
_TO_SEARCH = 40  # queries kept for a line search


@dataclass(frozen=True)
class DirectionState(State):
    """``x`` is adversarial and next to the boundary: its direction from the clean input is what the search turns.

    Attributes:
        size: (n,) float64: how far the line search turned the direction last, as a share of its length.
        smoothing: (n,) float64: how far the estimate turns it.
        over: (n,) bool: no start was found, or too few queries are left.
    """

    size: Tensor
    smoothing: Tensor
    over: Tensor


@dataclass(frozen=True, kw_only=True)
class DirectionSearch(Attack[HardLabelAsk, DirectionState]):
    """Each step: an estimate of how g falls, and a line search for how far to turn the direction that way."""

    queries: int = parameter(10_000, "most queries of a sample, at least 1", "ours; the papers' curves go to 40 000")
    directions: int = parameter(20, "random directions of an estimate, at least 2", "Cheng et al. 2019, authors' code")
    size: float = parameter(
        0.2, "first turn that the line search tries, as a share of the direction, above 0", "Cheng et al. 2019, alpha"
    )
    smoothing: float = parameter(
        0.001,
        "turn of an estimate, as a share of the direction, above 0; a tenth after each stall",
        "Cheng et al. 2019, beta",
    )
    tries: int = parameter(100, "starts tried, at least 1", "Cheng et al. 2019, authors' code: 100 directions")
    candidates: int = parameter(100, "starts compared, at least 1", "Cheng et al. 2019, authors' code")
    starts: Tensor | None = parameter(
        None, "(K, *features) an input of each class to start from", "Cheng et al. 2019 start targeted runs so"
    )

    @property
    @abstractmethod
    def price(self) -> int:
        """Queries that one direction of an estimate costs at most, nearly."""

    @abstractmethod
    def weigh(self, ask: HardLabelAsk, unit: Tensor, radius: Tensor, smoothing: Tensor) -> Tensor:
        """How much better than the current direction each of some others is.

        Args:
            ask: one row for each direction; samples repeat, and are charged for every point.
            unit: (m, \\*features) the directions.
            radius: (m,) g of the sample's current direction.
            smoothing: (m,) how far they are turned away from it.

        Returns:
            (m,) float64, larger where g is smaller.
        """

    @override
    def start(self, ask: HardLabelAsk) -> DirectionState:
        problem = ask.problem
        x, started = adversarial_starts(ask, tries=self.tries, candidates=self.candidates, starts=self.starts)
        rows = host_rows(started)
        if len(rows):
            some, at = ask.at(rows), on_device(rows, x.device)
            subset = some.problem
            radius, unit = between(subset.set.norm, x[at], subset.x), _unit(subset, difference(x[at], subset.x))
            low, high = bracket(some, unit, radius, radius / 64, outward=False)
            _, high = narrow(some, unit, low, high, exact(radius * self.smoothing))
            x[at] = torch.where(subset.flat(high.isfinite()), way(subset, unit, high), x[at])
        full = torch.ones_like(problem.set.eps)
        return DirectionState.at(x, size=full * self.size, smoothing=full * self.smoothing, over=~started)

    @override
    def step(self, ask: HardLabelAsk, state: DirectionState) -> DirectionState:
        problem = ask.problem
        count = ((ask.left - _TO_SEARCH) // self.price).clamp_max(self.directions)
        active = (count >= 2) & ~state.over
        radius = between(problem.set.norm, state.x, problem.x)
        better = self.estimate(ask, state, radius, count.masked_fill(~active, 0).cpu().numpy())
        x, size, gained = self._turn(ask, state, radius, better, active)
        floor = max(_FINEST, 100 * torch.finfo(x.dtype).eps)
        stalled = active & ~gained
        finer = torch.where(state.smoothing > floor, (0.1 * state.smoothing).clamp_min(floor), self.smoothing)
        return replace(
            state,
            x=x,
            size=torch.where(stalled, 1.0, torch.where(gained, size, state.size)),
            smoothing=torch.where(stalled, finer, state.smoothing),
            over=~active,
        )

    @override
    def finished(self, state: DirectionState) -> Tensor:
        return state.over

    def estimate(self, ask: HardLabelAsk, state: DirectionState, radius: Tensor, count: np.ndarray) -> Tensor:
        """(n, \\*features) float64 the turn of the direction that makes g fall, of l2 size 1 (l2) or root mean square 1
        (linf): the covariance of random turns, as the ball and the box let them be, with what they gain.
        """
        problem = ask.problem
        shape, d = tuple(state.x.shape[1:]), max(1, state.x[0].numel()) if len(state.x) else 1
        length = max(1, min(self.directions, _NUMBERS // d))
        blocks = -(-self.directions // length)
        products, turns = (torch.zeros_like(state.x, dtype=torch.float64) for _ in range(2))
        gains, seen = torch.zeros_like(radius), torch.zeros_like(radius)
        least, most = torch.full_like(radius, float("inf")), torch.full_like(radius, float("-inf"))
        for j in range(-(-int(count.max(initial=0)) // length)):
            rows = np.flatnonzero(count > j * length)
            keep = np.arange(length) < (count[rows] - j * length)[:, None]
            which = on_device(np.flatnonzero(keep.reshape(-1)), state.x.device)
            at = on_device(np.repeat(rows, keep.sum(1)), state.x.device)
            some = ask.at(np.repeat(rows, keep.sum(1)))
            subset = some.problem
            u = problem.select(rows).keyed.normal("turn", (length, *shape), step=state.step[rows] * blocks + j)
            u = u.to(state.x.device).double().flatten(0, 1)[which]
            origin = _unit(subset, difference(state.x[at], subset.x))
            u = u * subset.flat(distance(Norm.L2, origin) / distance(Norm.L2, u).clamp_min(_TINY))
            turn = state.smoothing[at]
            unit = turned(subset, origin, radius[at], u, turn)
            gain = self.weigh(some, unit, radius[at], turn)
            u = (unit - origin) / subset.flat(turn)
            products.index_add_(0, at, u * subset.flat(gain))
            turns.index_add_(0, at, u)
            gains.index_add_(0, at, gain)
            seen.index_add_(0, at, torch.ones_like(gain))
            least.scatter_reduce_(0, at, gain, "amin")
            most.scatter_reduce_(0, at, gain, "amax")
        number = problem.flat(seen.clamp_min(1))
        mean = problem.flat(gains) / number
        # Where all gain alike nothing is learnt from their differences, but what they have in common still is.
        better = products / number - torch.where(problem.flat(least < most), mean, 0.0) * turns / number
        # Not its signs under linf either: where a feature's part is noise, a full step away from the ball's edge costs.
        size = 1.0 if problem.set.norm is Norm.L2 else d**0.5
        return better * problem.flat(size / distance(Norm.L2, better).clamp_min(_TINY))

    def _turn(
        self,
        ask: HardLabelAsk,
        state: DirectionState,
        radius: Tensor,
        better: Tensor,
        active: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The line search: turns twice as far as long as that is nearer, or half as far until it is.

        A turn that is not adversarial at the least radius so far is refused with that one query.

        Returns:
            the new points, the sizes of their turns, and whether they are nearer by more than is measured.
        """
        problem = ask.problem
        origin = _unit(problem, difference(state.x, problem.x))
        fine = exact(radius * state.smoothing)
        unit, low, high = origin.clone(), torch.zeros_like(radius), radius.clone()
        size, trial, gained, open_ = state.size.clone(), state.size.clone(), torch.zeros_like(active), active.clone()
        while len(rows := host_rows(open_)):
            some, at = ask.at(rows), on_device(rows, state.x.device)
            new = turned(some.problem, origin[at], radius[at], better[at], trial[at])
            a, b = bracket(some, new, high[at], high[at] * _NEAR, outward=False)
            a, b = narrow(some, new, a, b, torch.maximum(fine[at], _COARSE * (high[at] - a)))
            nearer, before = b <= high[at], gained[at]
            won = at[nearer]
            unit[won], low[won], high[won], size[won] = new[nearer], a[nearer], b[nearer], trial[won]
            # A first failure turns the search around; after it, the first success ends it.
            halved = trial[at] < state.size[at]
            gained[at] = before | nearer
            trial[at] = torch.where(nearer, 2 * trial[at], trial[at] / 2)
            more = torch.where(nearer, ~halved & (trial[at] <= _LARGEST), ~before & (trial[at] >= _LEAST))
            open_[at] = more & (some.left > 0)
        x = state.x.clone()
        rows = host_rows(gained)
        if len(rows):
            some, at = ask.at(rows), on_device(rows, x.device)
            _, end = narrow(some, unit[at], low[at], high[at], fine[at])
            x[at] = way(some.problem, unit[at], end)
            gained[at] = radius[at] - end > fine[at]
        return x, size, gained


def way(problem: Problem, unit: Tensor, radius: Tensor) -> Tensor:
    """The points at a radius of the directions, in the box."""
    return (problem.x.double() + problem.flat(radius) * unit).to(problem.x.dtype).clamp(*box(problem.set, problem.x))


def turned(problem: Problem, unit: Tensor, radius: Tensor, turn: Tensor, size: Tensor) -> Tensor:
    """Directions turned by ``size * turn``, as far as the box lets them, of lp size 1.

    Where a feature has no room at ``radius``, it does not turn; under linf it turns no further than the ball.

    Args:
        problem: the samples.
        unit: (n, \\*features) float64 directions of lp size 1.
        radius: (n,) float64 the radius at which the box counts.
        turn: (n, \\*features) float64.
        size: (n,) float64.
    """
    ahead = unit + problem.flat(size) * turn
    if problem.set.norm is Norm.LINF:
        ahead = ahead.clamp(-1.0, 1.0)
    low, high = (edge.double() - problem.x.double() for edge in box(problem.set, problem.x))
    r = problem.flat(radius.clamp_min(_TINY))
    return _unit(problem, torch.minimum(torch.maximum(ahead * r, low), high))


def exact(turn: Tensor) -> Tensor:
    """How closely a distance is measured where the direction's end is turned so far: a five-hundredth of it.

    Example:
        >>> exact(torch.tensor([0.5], dtype=torch.float64)).item()
        0.001
    """
    return turn / _SHARE


def bracket(ask: HardLabelAsk, unit: Tensor, guess: Tensor, width: Tensor, *, outward: bool) -> tuple[Tensor, Tensor]:
    """Radii around the boundary next to a guess: from it, steps of ``width``, then ever four times as wide.

    Args:
        ask: about the samples, which may repeat and are charged for every point.
        unit: (n, \\*features) directions.
        guess: (n,) float64 the radius to ask first.
        width: (n,) float64 the first step.
        outward: whether to look beyond a guess that is not adversarial, up to twice its radius.

    Returns:
        (n,) the largest radius known not to be adversarial, and the least known to be; inf if none is.
    """
    low, high = torch.zeros_like(guess), torch.full_like(guess, float("inf"))
    at_radius, width, active = guess.clone(), width.clone(), torch.ones_like(guess, dtype=torch.bool)
    while len(rows := host_rows(active)):
        some, at = _some(ask, rows), on_device(rows, guess.device)
        here = at_radius[at]
        yes = some.adversarial(way(some.problem, unit[at], here))
        low[at], high[at] = torch.where(yes, low[at], here), torch.where(yes, here, high[at])
        inward = torch.isfinite(high[at])
        at_radius[at] = torch.where(inward, high[at] - width[at], (low[at] + width[at]).clamp_max(2 * guess[at]))
        width[at] = 4 * width[at]
        more = torch.where(inward, (low[at] == 0) & (at_radius[at] > 0), outward & (here < 2 * guess[at]))
        active[at] = more & (some.left > 0)
    return low, high


def narrow(ask: HardLabelAsk, unit: Tensor, low: Tensor, high: Tensor, tolerance: Tensor) -> tuple[Tensor, Tensor]:
    """Bisects each finite interval of radii until it is no wider than its tolerance; only those that are wider ask.

    Args:
        ask: about the samples, which may repeat and are charged for every point.
        unit: (n, \\*features) directions.
        low: (n,) float64 radii that are not adversarial.
        high: (n,) float64 radii that are; inf is left alone.
        tolerance: (n,) float64.
    """
    low, high = low.clone(), high.clone()
    active = (high - low > tolerance) & high.isfinite()
    while len(rows := host_rows(active)):
        some, at = _some(ask, rows), on_device(rows, low.device)
        middle = (low[at] + high[at]) / 2
        yes = some.adversarial(way(some.problem, unit[at], middle))
        low[at], high[at] = torch.where(yes, low[at], middle), torch.where(yes, middle, high[at])
        active[at] = (high[at] - low[at] > tolerance[at]) & (some.left > 0)
    return low, high


def _some(ask: HardLabelAsk, rows: np.ndarray) -> HardLabelAsk:
    """The samples that still ask: as a rule all, and then there is nothing to select."""
    return ask if len(rows) == len(ask.problem) else ask.at(rows)


def _unit(problem: Problem, delta: Tensor) -> Tensor:
    """Perturbations scaled to lp size 1; 0 stays 0."""
    return delta / problem.flat(distance(problem.set.norm, delta).clamp_min(_TINY))
