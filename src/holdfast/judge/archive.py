"""What a search leaves behind: the best feasible witness of each sample, over every row that was asked.

An attack cannot lose a witness (a returned iterate that is worse than an earlier one), and only rows inside the set count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from math import ceil, sqrt

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.core.criterion import usable
from holdfast.core.problem import Problem
from holdfast.judge.ledger import Ledger
from holdfast.judge.rows import first_of, reads_freely
from holdfast.numerics.distance import contains, measured

__all__ = ["Archive", "Keep", "VotingArchive"]


class Keep(StrEnum):
    """What is kept of a search."""

    FIRST = "first"
    """The first witness of each sample, which settles it: the budget formulation."""
    NEAREST = "nearest"
    """The nearest witness of each sample; the search goes on."""
    LAST = "last"
    """The last iterate of each sample, judged by nobody: for whoever judges it elsewhere."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Claims:
    """Rows that may be witnesses.

    Attributes:
        x: (m, \\*features) what was asked.
        index: (m,) their samples.
        y: (m,) their labels.
        target: (m,) their targets.
        margin: (m,) float64 what the criterion makes of them.
        holds: (m,) bool: they are adversarial.
        settles: (m,) bool: so surely that they settle their sample.
        merit: (m,) float64 the smaller the better; None where it is the distance.
        lies: distances (m,) and who is inside (m,), where they are known.
    """

    x: Tensor
    index: Tensor
    y: Tensor
    target: Tensor
    margin: Tensor
    holds: Tensor
    settles: Tensor
    merit: Tensor | None = None
    lies: tuple[Tensor, Tensor] | None = None

    def select(self, rows: Tensor) -> _Claims:
        """Some of the rows; where they lie is then worked out anew."""
        return _Claims(
            x=self.x[rows],
            index=self.index[rows],
            y=self.y[rows],
            target=self.target[rows],
            margin=self.margin[rows],
            holds=self.holds[rows],
            settles=self.settles[rows],
            merit=None if self.merit is None else self.merit[rows],
        )


class Archive:
    """Keeps the witnesses of a problem's samples.

    Attributes:
        problem: the whole chunk; ``index`` in calls points into it.
        keep: which witness is kept.
        found_at: (n,) int64 queries spent when the first witness was found; -1 if none.
        distance: (n,) float64 of the witness; inf if none.
        witness: (n, \\*features) the witness, or the clean input.
        low_margin: (n,) float64 the least margin of any row, inside the set or not; inf if none was asked.
        unusable: (n,) int64 rows whose scores cannot be judged.
        no_answer: (n, \\*features) the nearest such row inside the set; None if there is none.
        no_answer_at: (n,) float64 its distance; inf if none.
        trace: after every call what each sample had cost, and how near its witness was; None if nobody wants it.
    """

    def __init__(
        self,
        problem: Problem,
        keep: Keep,
        *,
        confidence: float = 0.0,
        exact: Callable[[Tensor], Tensor] | None = None,
        trace: bool = False,
    ) -> None:
        """Opens an archive.

        Args:
            problem: the samples; their sets say where a witness may lie.
            keep: the first witness or the nearest one.
            confidence: the margin that a witness must have.
            exact: scores in full precision, where rows are asked in a lower one: a success is confirmed by them.
            trace: keep what each sample had cost, and how near its witness was, after every call.
        """
        n, device = len(problem), problem.x.device
        self.problem, self.keep = problem, keep
        self.found_at = torch.full((n,), -1, dtype=torch.int64, device=device)
        self.distance = torch.full((n,), float("inf"), dtype=torch.float64, device=device)
        self.low_margin = torch.full_like(self.distance, float("inf"))
        self.unusable = torch.zeros_like(self.found_at)
        self.no_answer: Tensor | None = None
        self.no_answer_at = torch.full_like(self.distance, float("inf"))
        self.witness = problem.x.clone()
        self.trace: list[tuple[Tensor, Tensor]] | None = [] if trace else None
        self._confidence, self._exact = confidence, exact
        self._merit = torch.full_like(self.distance, float("inf"))

    @property
    def found(self) -> Tensor:
        """(n,) bool: a witness is known."""
        return self.found_at >= 0

    @property
    def settled(self) -> Tensor:
        """(n,) bool: a witness is known that ends a search for the first one."""
        return self.found

    @property
    def closed(self) -> Tensor | None:
        """(n,) bool: samples that nothing more is kept of; None where there is no end to it."""
        return self.settled if self.keep is Keep.FIRST else None

    def record_clean(self, scores: Tensor, ledger: Ledger) -> None:
        """Keeps the samples that are adversarial as they are, by the scores (n, K) of their clean inputs."""
        p, size = self.problem, torch.zeros_like(self.distance)
        holds = p.criterion.holds(scores, p.y, p.target) & contains(p.set, p.x, p.x, size)
        if self._confidence:
            holds = holds & (p.criterion.margin(scores, p.y, p.target) <= -self._confidence)
        self._keep(p.x, p.rows, size, size, holds & (self.found_at < 0), ledger.queries)
        self._settle(p.rows, holds)

    def record(
        self,
        x: Tensor,
        index: Tensor,
        scores: Tensor,
        *,
        ledger: Ledger,
        answered: Tensor | None = None,
        failed: Tensor | None = None,
    ) -> None:
        """Looks at rows that were asked, and keeps what is better than what is known.

        Args:
            x: (m, \\*features) what was asked.
            index: (m,) their samples.
            scores: (m, K) what was answered.
            ledger: what each sample has cost so far; confirmations are charged to it.
            answered: (m,) bool the rows that were answered; None if all were.
            failed: (n,) bool samples that the model raised on: no answer of theirs counts.
        """
        if len(x):
            with torch.no_grad():
                self._weigh(x, index, scores, ledger, answered, failed)
        if self.trace is not None:
            self.trace.append((ledger.passes, self.distance.clone()))

    def _weigh(
        self, x: Tensor, index: Tensor, scores: Tensor, ledger: Ledger, answered: Tensor | None, failed: Tensor | None
    ) -> None:
        claims, unusable = self._claims(x, index, scores, answered)
        self.unusable.index_add_(0, index, unusable.long())
        self._note_unusable(x, index, unusable if failed is None else unusable & ~failed[index], claims.lies)
        claims = self._counted(claims)
        index = claims.index
        self.low_margin.scatter_reduce_(0, index, claims.margin.nan_to_num(nan=float("inf")), "amin")
        holds = claims.holds & ~self.settled[index] if self.keep is Keep.FIRST else claims.holds
        if reads_freely(x):  # the rest is for the rows that may become a witness
            rows = holds.nonzero().squeeze(-1)
            if not len(rows):
                return
            if len(rows) < len(claims.x):
                claims, holds = claims.select(rows), holds[rows]
        part, clean = self.problem.set.select(claims.index), self.problem.x[claims.index]
        size = measured(part, claims.x, clean) if claims.lies is None else claims.lies[0]
        merit = size if claims.merit is None else claims.merit
        better = holds & (merit < self._merit[claims.index])
        if reads_freely(x) and not better.any():
            return
        holds = better & (contains(part, claims.x, clean, size) if claims.lies is None else claims.lies[1])
        if self._exact is not None and holds.any():
            holds = self._confirmed(self._exact, claims, holds, ledger)
        self._settle(claims.index, holds & claims.settles)
        self._keep(claims.x, claims.index, size, merit, holds, ledger.queries)

    def _claims(self, x: Tensor, index: Tensor, scores: Tensor, answered: Tensor | None) -> tuple[_Claims, Tensor]:
        """What rows claim by their scores, and (m,) bool which scores cannot be judged."""
        p = self.problem
        y, target = p.y[index], p.target[index]
        margin = p.criterion.margin(scores, y, target).double()
        # What rounding decides is no witness: asked anew in another batch, it may not be adversarial. What was asked in
        # low precision is asked anew below.
        judge = p.criterion.certain if self._exact is None else p.criterion.holds
        holds = judge(scores, y, target)
        if self._confidence:
            holds = holds & (margin <= -self._confidence)
        unusable = ~usable(scores.flatten(1))
        if answered is not None:
            margin, holds = margin.masked_fill(~answered, float("inf")), holds & answered
            unusable = unusable & answered
        # an accelerator is not waited for to learn which rows matter: all are measured, once for both uses
        lies = None if reads_freely(x) else self._lies(x, index)
        claims = _Claims(x=x, index=index, y=y, target=target, margin=margin, holds=holds, settles=holds, lies=lies)
        return claims, unusable

    def _counted(self, claims: _Claims) -> _Claims:
        """The claims, once each."""
        return claims

    def _settle(self, index: Tensor, surely: Tensor) -> None:
        """Notes the samples of rows that hold surely enough to end their search."""

    def _confirmed(self, exact: Callable[[Tensor], Tensor], claims: _Claims, holds: Tensor, ledger: Ledger) -> Tensor:
        """(m,) bool: what still holds in full precision, which one more forward a row tells."""
        rows = holds.nonzero().squeeze(-1)
        ledger.forwards.index_add_(0, claims.index[rows], torch.ones_like(rows))
        whole = exact(claims.x[rows])
        sure = self.problem.criterion.certain(whole, claims.y[rows], claims.target[rows], self._confidence)
        return holds.index_copy(0, rows, sure)

    def _lies(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """(m,) float64 distances of rows from their samples, and (m,) bool which lie in the set."""
        part, clean = self.problem.set.select(index), self.problem.x[index]
        size = measured(part, x, clean)
        return size, contains(part, x, clean, size)

    def _note_unusable(self, x: Tensor, index: Tensor, unusable: Tensor, lies: tuple[Tensor, Tensor] | None) -> None:
        """Keeps the nearest input in the set that the model gave no usable answer to, of each sample. No synchronisation
        with an accelerator, but where a precision was given.

        Args:
            x: (m, \\*features) what was asked.
            index: (m,) their samples.
            unusable: (m,) bool.
            lies: what `_lies` says of the rows, where it is known.
        """
        p = self.problem
        if reads_freely(x) or self._exact is not None:
            rows = unusable.nonzero().squeeze(-1)
            if self._exact is not None and len(rows):  # what overflows in low precision alone is not the model's
                rows = rows[~usable(self._exact(x[rows]).flatten(1))]
            if not len(rows):
                return
            x, index, unusable = x[rows], index[rows], unusable[rows]
            lies = None if lies is None else (lies[0][rows], lies[1][rows])
        size, inside = self._lies(x, index) if lies is None else lies
        inside = unusable & inside
        d = size.masked_fill(~inside, float("inf"))
        best = self.no_answer_at.scatter_reduce(0, index, d, "amin")
        first_row = first_of(index, inside & (d == best[index]) & (d < self.no_answer_at[index]), len(best))
        known = p.x if self.no_answer is None else self.no_answer
        taken = x.detach()[first_row.clamp_max(len(x) - 1)]
        self.no_answer = torch.where(p.flat(first_row < len(x)), taken, known)
        self.no_answer_at = best

    def _keep(self, x: Tensor, index: Tensor, size: Tensor, merit: Tensor, holds: Tensor, queries: Tensor) -> None:
        """Keeps the best of the rows that hold, all of them better than what is known: the nearest as a rule; ties go to the
        row asked first. No synchronisation with an accelerator.
        """
        n, m = len(self.distance), len(x)
        d = merit.masked_fill(~holds, float("inf"))
        best = self._merit.scatter_reduce(0, index, d, "amin")
        first_row = first_of(index, holds & (d == best[index]), n)
        better = first_row < m
        if reads_freely(x):
            samples = better.nonzero().squeeze(-1)
            self.witness.index_copy_(0, samples, x.detach()[first_row[samples]])
        else:
            take = first_row.clamp_max(m - 1)
            self.witness.copy_(torch.where(self.problem.flat(better), x[take].detach(), self.witness))
        self.distance.copy_(
            torch.where(better, size[first_row.clamp_max(max(0, m - 1))], self.distance) if m else self.distance
        )
        self._merit.copy_(best)
        self.found_at.copy_(torch.where(better & (self.found_at < 0), queries, self.found_at))


class VotingArchive(Archive):
    """An archive for models that answer at random: each point is asked ``votes`` times in a row. It is adversarial if most of
    its answers are, and settles its sample if all are.
    """

    def __init__(
        self,
        problem: Problem,
        keep: Keep,
        *,
        votes: int,
        confidence: float = 0.0,
        exact: Callable[[Tensor], Tensor] | None = None,
        trace: bool = False,
    ) -> None:
        """Opens an archive; see `Archive`."""
        super().__init__(problem, keep, confidence=confidence, exact=exact, trace=trace)
        self.votes = votes
        self._sure = torch.zeros_like(self.found_at, dtype=torch.bool)

    @property
    @override
    def settled(self) -> Tensor:
        return self._sure

    @property
    def doubtful(self) -> Tensor:
        """Samples (k,) with a witness that not all votes upheld: a claim is what fresh draws uphold."""
        return (self.found & ~self._sure & (self.distance > 0)).nonzero().squeeze(-1)

    def upholds(self, samples: Tensor, scores: Tensor, answered: Tensor) -> None:
        """Withdraws the witnesses that most fresh draws do not uphold.

        Args:
            samples: (k,) whose witnesses were asked again.
            scores: (k, draws, K) the answers.
            answered: (k, draws) bool: who got one.
        """
        p, draws = self.problem, answered.shape[1]
        y, target = p.y[samples].repeat_interleave(draws), p.target[samples].repeat_interleave(draws)
        holds = p.criterion.certain(scores.flatten(0, 1), y, target, self._confidence).view_as(answered) & answered
        asked = answered.sum(1)
        fallen = samples[(2 * holds.sum(1) <= asked) & (asked > 0)]
        self.found_at[fallen], self.distance[fallen] = -1, float("inf")
        self.witness[fallen] = p.x[fallen]

    @override
    def _counted(self, claims: _Claims) -> _Claims:
        """One claim for the votes of each point."""
        first = slice(None, None, self.votes)
        margin = claims.margin.reshape(-1, self.votes).mean(1)
        each = claims.holds.reshape(-1, self.votes)
        # for the first witness the most convincing point, not the nearest: a lucky majority must not end the search
        merit = margin.nan_to_num(nan=float("inf")) if self.keep is Keep.FIRST else None
        enough = self.votes // 2 + 1 if self.keep is Keep.FIRST else _beyond_luck(self.votes)
        return _Claims(
            x=claims.x[first],
            index=claims.index[first],
            y=claims.y[first],
            target=claims.target[first],
            margin=margin,
            holds=each.sum(1) >= enough,
            settles=each.all(1),
            merit=merit,
            lies=None if claims.lies is None else (claims.lies[0][first], claims.lies[1][first]),
        )

    @override
    def _settle(self, index: Tensor, surely: Tensor) -> None:
        self._sure |= torch.zeros_like(self._sure).index_put((index,), surely, accumulate=True)


def _beyond_luck(votes: int) -> int:
    """Votes that a fair coin gives once in a hundred times, or all.

    Example:
        >>> [_beyond_luck(n) for n in (2, 10, 100)]
        [2, 9, 60]
    """
    return min(votes, -(-votes // 2) + ceil(sqrt(votes)))
