"""The search, round after round: random points, descents from the best of them, and linear programs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from time import monotonic

import torch
from torch import Tensor, nn

from holdfast.attacks.falsification.descent import End, descend
from holdfast.attacks.falsification.programs import polish
from holdfast.attacks.falsification.question import Question
from holdfast.attacks.falsification.trials import Along, Networks, Trials, in_batches
from holdfast.core.threat import Norm
from holdfast.graph.model import Graph
from holdfast.numerics.counting import PassCounter

__all__ = ["Falsifier", "falsifier"]

_FEW = 64  # free inputs up to which random points are drawn densely
_DENSE = 8192  # of them in a round
_MOVES = 10  # times that the best points are moved at random


@dataclass(frozen=True, eq=False)
class Falsifier:
    """An attack on queries about a model.

    Attributes:
        networks: the model, as it is asked.
        generator: of the random starts.
        passes: what went through the networks so far.
    """

    networks: Networks
    generator: torch.Generator
    passes: PassCounter

    def __call__(self, question: Question, seconds: float) -> Tensor | None:
        """A witness (1, \\*features) float64 of a query, or None when time is up; see `falsifier`."""
        if question.ball.norm is not Norm.LINF:
            return None
        return _Rounds(Trials(self.networks, question, monotonic() + seconds), self.generator).run()


def falsifier(model: nn.Module | Graph, seed: int = 0) -> Falsifier:
    """An attack on queries about a model.

    Args:
        model: the model, in the type in which it runs; a graph is the better choice (its memory is known beforehand).
        seed: of the random starts.

    Returns:
        A function of a query and seconds. It returns an input (1, \\*features) float64 in the query's box, made of
        numbers of the model's type, at which all rows of a group are at most 0 (below 0, where that was found) when the
        model runs on it alone, in its own type and in float64; or None. Sets other than boxes are not searched: None.

    Example:
        >>> from holdfast.certifiers.verification.query import Query
        >>> half = Query.of_box(torch.zeros(1), torch.ones(1), torch.eye(1), torch.tensor([-0.5]))  # f(x) <= 0.5?
        >>> bool(falsifier(nn.Identity())(half, 1.0) <= 0.5)
        True
    """
    networks, passes = Networks.of(model), PassCounter()
    for network in dict.fromkeys((networks.own, networks.exact, networks.leaky)):
        passes.watch(network)
    return Falsifier(networks, torch.Generator().manual_seed(seed), passes)


class _Rounds:
    """One search.

    Args:
        trials: tries points.
        generator: of the random ones.
    """

    def __init__(self, trials: Trials, generator: torch.Generator) -> None:
        self.trials, self.generator = trials, generator
        self.lower, self.upper, self.few = trials.lower, trials.upper, trials.free <= _FEW
        self.least = [math.inf] * trials.count  # the least score of each group so far

    def run(self) -> Tensor | None:
        """A witness beyond doubt, or else one within rounding of the edge, or None when time is up."""
        middle = (self.lower / 2 + self.upper / 2).unsqueeze(0)
        starts = torch.cat([middle, self.lower.unsqueeze(0), self.upper.unsqueeze(0)])
        number = 0
        while not self.trials.over:
            witness = self._round(starts, number)
            if witness is not None:
                return witness
            if self.trials.witness is not None or not self.trials.free:
                break
            number += 1
            starts = middle[:0]
        return self.trials.witness

    def _round(self, starts: Tensor, number: int) -> Tensor | None:
        """Draws points, and goes downhill from the best for each group."""
        trials = self.trials
        drawn = min(_DENSE if self.few else 4 * trials.count + 16, 4 * trials.batch)
        points = torch.cat([starts, self._draw(drawn, corners=number % 2 == 1)])
        scores: list[Tensor] = []
        for some in in_batches(points, trials.batch):
            with torch.no_grad():
                scores.append(trials.scores(trials.rows(some)))
            witness = trials.settle(some, scores[-1])
            if witness is not None or trials.over:
                return witness
        x, target = self._starts(points, torch.cat(scores), number)
        if self.few:
            x, witness = self._move(x, target)
            if witness is not None or trials.over:
                return witness
        return self._downhill(x, target, number)

    def _downhill(self, x: Tensor, target: Tensor, number: int) -> Tensor | None:
        """Descents from all points, then, with few inputs, linear programs from the best ends."""
        ends: list[End] = []
        along = tuple(Along)[number % len(Along)]
        batch = self.trials.batch
        for some, own in zip(in_batches(x, batch), in_batches(target, batch), strict=True):
            end = descend(self.trials, some, own, along, first=0.5 if self.few else 1.0)
            if not isinstance(end, End):
                return end
            ends.append(end)
            if self.trials.over:
                return None
        return polish(self.trials, ends) if self.few else None

    def _draw(self, n: int, *, corners: bool) -> Tensor:
        """(n, \\*features): uniform points of the box, or half of them corners."""
        fraction = torch.rand(n, *self.lower.shape, generator=self.generator, dtype=torch.float64)
        fraction = fraction.to(self.trials.device)
        if corners:
            fraction[n // 2 :] = fraction[n // 2 :].round()
        return self.lower + fraction * (self.upper - self.lower)

    def _starts(self, points: Tensor, scores: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """The points with the least scores for each group, more of them for the groups that are nearest to break."""
        trials = self.trials
        least = scores.amin(0).cpu()
        self.least = [min(before, float(now)) for before, now in zip(self.least, least, strict=True)]
        order = sorted(range(trials.count), key=lambda g: self.least[g])
        room = max(min(trials.batch, 256 if self.few else 32), 1)
        chosen = order[: room if number % 2 == 0 else max(room // 8, 1)]
        each = max(room // len(chosen), 1)
        x: list[Tensor] = []
        target: list[int] = []
        for g in chosen:
            k = min(each, len(points))
            best = scores[:, g].topk(-(-k // 2), largest=False).indices
            x += [points[best], points[len(points) - k // 2 :]]  # the other half at random: the best may be neighbours
            target += [g] * k
        return torch.cat(x), torch.tensor(target, device=trials.device)

    def _move(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor | None]:
        """Moves points at random, less and less, where that lowers the score of their own groups."""
        trials, wide, size = self.trials, self.upper - self.lower, 0.2
        each = max(_DENSE // len(x) // 4, 4)
        for _ in range(_MOVES):
            noise = torch.randn(len(x), each, *self.lower.shape, generator=self.generator, dtype=torch.float64)
            noise[:, 0] = 0
            tried = (x.unsqueeze(1) + size * wide * noise.to(trials.device)).clamp(self.lower, self.upper)
            with torch.no_grad():
                batches = in_batches(tried.flatten(0, 1), trials.batch)
                scores = torch.cat([trials.scores(trials.rows(some)) for some in batches])
            witness = trials.settle(tried.flatten(0, 1), scores)
            own = scores.view(len(x), each, -1).gather(2, target.view(-1, 1, 1).expand(-1, each, 1)).squeeze(2)
            x = tried[torch.arange(len(x)), own.argmin(1)]
            if witness is not None or trials.over:
                return x, witness
            size *= 0.6
        return x, None
