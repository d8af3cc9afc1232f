"""The contract of a complete method, and what it answers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from math import inf
from time import monotonic

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.certifiers.graph_certifier import GraphCertifier
from holdfast.certifiers.verification.query import Query
from holdfast.certifiers.verification.tree import Tree
from holdfast.core.cards import parameter
from holdfast.core.sets import LpBall
from holdfast.graph.model import Graph

__all__ = ["Answer", "Decision", "Progress", "SearchLimit", "Solver"]

Progress = Callable[[int, int, float], None]
"""Told domains done, domains open and the bound so far, now and then."""


class Decision(StrEnum):
    """The answer to a query, in the words of the verification competition."""

    HOLDS = "unsat"
    BROKEN = "sat"
    UNKNOWN = "unknown"
    TIMEOUT = "timeout"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a solver found.

    Attributes:
        decision: HOLDS only if proved in ``arithmetic``; BROKEN only with a witness.
        bound: a lower bound of `Query.score` over the whole set, sound at any time; -inf if nothing is known.
        rows: (rows,) float64, the same for each row of the query alone, or None.
        witness: (1, \\*features) float64 inside the box, which breaks the property when it is run, or None.
        domains: how many parts of the set were bounded.
        method: what decided, for example ``crown`` or ``relu_splitting``.
        arithmetic: in which the answer holds.
        reason: why it is UNKNOWN, in words.
    """

    decision: Decision
    bound: float
    rows: Tensor | None = None
    witness: Tensor | None = None
    domains: int = 0
    method: str = ""
    arithmetic: str = ""
    reason: str = ""

    def __post_init__(self) -> None:
        """Whatever a method says: without a bound that is a finite number above 0, nothing holds."""
        if self.decision is Decision.HOLDS and not 0 < self.bound < inf:
            object.__setattr__(self, "decision", Decision.UNKNOWN)
            reason = f"{self.method or 'the method'} says that it holds, but its bound of {self.bound:g} proves nothing"
            object.__setattr__(self, "reason", reason)


@dataclass(frozen=True)
class SearchLimit:
    """What a solver may spend.

    Attributes:
        deadline: on the clock of `time.monotonic`.
        memory: bytes for tensors of one pass and for domains that wait, together.
        domains: how many parts of the set may be bounded.
    """

    deadline: float
    memory: int = 1 << 30
    domains: int = 1 << 40

    @classmethod
    def seconds(cls, seconds: float, memory: int = 1 << 30, domains: int = 1 << 40) -> SearchLimit:
        """From now on."""
        return cls(monotonic() + seconds, memory, domains)

    @property
    def left(self) -> float:
        """Seconds that are left, at least 0."""
        return max(self.deadline - monotonic(), 0.0)


@dataclass(frozen=True)
class Solver(GraphCertifier):
    """A certifier that, given time, decides a query.

    A method is one `solve`; as a certifier it gets so many seconds for each sample.
    """

    seconds: float = parameter(
        10.0, "for one sample at one radius, above 0", "ours: a radius takes about seven of them"
    )
    domains: int = parameter(
        1 << 30, "parts of the set that may be bounded for it, at least 1", "ours: time is the limit"
    )

    @abstractmethod
    def solve(
        self,
        graph: Graph,
        query: Query,
        limit: SearchLimit,
        *,
        tree: Tree | None = None,
        progress: Progress | None = None,
    ) -> Answer:
        """Decides the query or stops at the end of its time with the bound so far.

        Args:
            graph: the model.
            query: the question.
            limit: time, memory and domains.
            tree: where the proof is recorded, if one is wanted.
            progress: told how far it is.

        Raises:
            UnsupportedError: a graph or a set that the method does not serve; the message says which one does.
        """

    @override
    def bounds(self, graph: Graph, region: LpBall, x: Tensor, c: Tensor, d: Tensor | None = None) -> Tensor:
        """See `GraphCertifier.bounds`; without gradient, and no better than needed to see that a row is positive."""
        c = c.double().expand(len(x), *c.shape[-2:])
        d = c.new_zeros(c.shape[:2]) if d is None else d.to(c).expand(c.shape[:2])
        groups, found = torch.arange(c.shape[1], device=c.device), c.new_full(c.shape[:2], -torch.inf)
        for i in range(len(x)):
            ball = region.select(torch.tensor([i], device=x.device))
            answer = self.solve(
                graph,
                Query(x=x[i : i + 1].double(), ball=ball, c=c[i], d=d[i], groups=groups),
                SearchLimit.seconds(self.seconds, domains=self.domains),
            )
            if answer.rows is not None:
                found[i] = answer.rows
        return found
