"""Branch and bound, once: the queue, time, memory, witnesses and the recorded proof. Methods bound, choose and split."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, ClassVar, Generic, Self, TypeVar

from torch import Tensor
from typing_extensions import override

from holdfast.certifiers.branch_and_bound.domains import DomainBatch
from holdfast.certifiers.branch_and_bound.pool import Pool
from holdfast.certifiers.branch_and_bound.witness import Witnesses
from holdfast.certifiers.verification.query import Query
from holdfast.certifiers.verification.solver import Answer, Progress, SearchLimit
from holdfast.certifiers.verification.tree import Leaf, Tree
from holdfast.core.arrays import tensor_of
from holdfast.graph.model import Graph

__all__ = [
    "Bounded",
    "BranchAndBound",
    "Ending",
    "RecordedSearch",
    "Settled",
    "Stop",
    "StuckError",
    "WhenFull",
    "search",
]

D = TypeVar("D", bound=DomainBatch)


@dataclass(frozen=True, eq=False, kw_only=True)
class Bounded(ABC, Generic[D]):
    """Domains with new bounds; a method adds what it needs to choose splits and to write leaves.

    Attributes:
        domains: n of them.
        proved: (n,) bool, those in which the property holds.
    """

    domains: D
    proved: Tensor

    @abstractmethod
    def select(self, rows: Tensor) -> Self:
        """Some of the domains."""


B = TypeVar("B", bound=Bounded[Any])


@dataclass(frozen=True, eq=False)
class Settled:
    """Nothing is left to do for domains: they are closed, or there is a witness (1, \\*features) in one of them."""

    witness: Tensor | None = None


class Stop(Enum):
    """Why a search ends before its queue is empty and without a witness."""

    TIME = auto()
    DOMAINS = auto()
    MEMORY = auto()


class WhenFull(Enum):
    """What happens when domains that wait take as much memory as is given."""

    STOP = auto()
    """The search ends."""
    DEEPEN = auto()
    """From half of it on, the best domains are split first: these are soon proved."""


class StuckError(Exception):
    """A domain can neither be decided nor split; what is under way and stays open has been put back into the queue."""


@dataclass(frozen=True, eq=False)
class Ending:
    """How a search came to its end: with a witness, an empty queue, a limit that is reached, or stuck for this reason."""

    witness: Tensor | None = None
    stop: Stop | None = None
    stuck: str = ""


class BranchAndBound(ABC, Generic[D, B]):
    """One method at work on one query; `search` drives it.

    A turn takes domains from the queue, splits them, bounds the parts, closes those that are proved, tries points of the
    others as witnesses, chooses how they shall be split, and puts them into the queue.

    Args:
        graph: the model, on which witnesses are tried.
        query: the question.
        limit: what may be spent.

    Attributes:
        queue: the domains that wait.
        domains: how many were bounded; methods count.
        iterations: how often `search` went to the queue.
        batch: how many domains are taken from the queue at once; set by the method.
    """

    when_full: ClassVar[WhenFull] = WhenFull.STOP
    batch: int

    def __init__(self, graph: Graph, query: Query, limit: SearchLimit) -> None:
        self.graph, self.query, self.limit = graph, query, limit
        self.witnesses = Witnesses(graph, query)
        self.queue: Pool[D] = Pool()
        self.domains: int = 0
        self.iterations: int = 0

    @abstractmethod
    def root(self) -> B | Settled:
        """The whole set, bounded."""

    @abstractmethod
    def split(self, domains: D) -> D:
        """What is to be bounded in the place of domains from the queue.

        Raises:
            StuckError: nothing is left to split.
        """

    @abstractmethod
    def bound(self, domains: D) -> B | Settled:
        """Bounds parts.

        Raises:
            StuckError: one can neither be decided nor split.
        """

    @abstractmethod
    def close(self, bounded: B) -> None:
        """Notes the bounds of those domains that are proved."""

    @abstractmethod
    def suspects(self, open_: B) -> tuple[Tensor, int]:
        """Points (k, \\*features) of open domains where a witness may lie, and how many steps downhill to go from each."""

    @abstractmethod
    def choose(self, open_: B) -> D:
        """Open domains as they wait: with the splits that are chosen for them, or split already."""

    @abstractmethod
    def answer(self, ending: Ending) -> Answer:
        """What the search has found."""

    def restarts(self) -> bool:
        """Whether the search should begin again, since more can be known of the whole set now."""
        return False

    def restart(self) -> None:
        """Empties the queue and finds out more of the whole set; `root` comes next."""

    def portions(self, taken: D) -> list[D]:
        """Domains from the queue in portions that are bounded together."""
        return [taken]

    @property
    def reserve(self) -> float:
        """Seconds of the limit that are kept for the answer."""
        return 0.0

    @property
    def worst(self) -> float:
        """A bound of the query as far as it is known, for the progress report."""
        return self.queue.worst

    def spent(self) -> Stop | None:
        """Which limit is reached, if one is."""
        if self.limit.left <= self.reserve:
            return Stop.TIME
        if self.domains >= self.limit.domains:
            return Stop.DOMAINS
        if self.when_full is WhenFull.STOP and self.queue.bytes >= self.limit.memory:
            return Stop.MEMORY
        return None

    def record(self, bounded: B) -> None:
        """Writes down how the proved domains are proved; here nothing, see `RecordedSearch`."""


class RecordedSearch(BranchAndBound[D, B]):
    """A method whose proof can be written down.

    Args:
        graph: see `BranchAndBound`.
        query: see `BranchAndBound`.
        limit: see `BranchAndBound`.
        tree: where the proof is recorded, if one is wanted.
    """

    def __init__(self, graph: Graph, query: Query, limit: SearchLimit, tree: Tree | None = None) -> None:
        super().__init__(graph, query, limit)
        self.tree = tree

    @abstractmethod
    def leaf(self, bounded: B, i: int) -> Leaf:
        """How domain ``i`` is proved."""

    @override
    def record(self, bounded: B) -> None:
        if self.tree is not None:
            for i in bounded.proved.nonzero().flatten().numpy().tolist():
                self.tree.close(int(bounded.domains.vertex[i]), self.leaf(bounded, i))

    def split_vertices(self, vertex: Tensor, node: Tensor, index: Tensor, point: Tensor) -> Tensor:
        """Splits vertices of the tree (n,): their children (n, 2), or twice themselves where no proof is recorded."""
        if self.tree is None:
            return vertex.unsqueeze(1).expand(-1, 2)
        children = self.tree.split(
            vertex.numpy().tolist(), node.numpy().tolist(), index.numpy().tolist(), point.numpy().tolist()
        )
        return tensor_of(children)


def search(method: BranchAndBound[D, B], progress: Progress | None = None) -> Answer:
    """Branch and bound until the query is decided, nothing is left to split or a limit is reached.

    Args:
        method: one that has done nothing yet.
        progress: told after each iteration in which something stays open.
    """
    witness, stop = None, None
    try:
        witness = _admit(method, method.root())
        while witness is None and len(method.queue):
            if method.restarts():
                method.restart()
                witness = _admit(method, method.root())
                continue
            stop = method.spent()
            if stop is not None:
                break
            witness = _iterate(method)
            if progress is not None and witness is None and len(method.queue):
                progress(method.domains, len(method.queue), method.worst)
    except StuckError as stuck:
        return method.answer(Ending(stuck=str(stuck)))
    return method.answer(Ending(witness, stop))


def _iterate(method: BranchAndBound[D, B]) -> Tensor | None:
    """Splits and bounds the worst domains of the queue. A witness, if one is found."""
    method.iterations += 1
    crowded = method.when_full is WhenFull.DEEPEN and method.queue.bytes > method.limit.memory // 2
    witness = None
    for portion in method.portions(method.queue.take(method.batch, best=crowded)):
        if witness is not None or method.spent() is not None:
            method.queue.add(portion)
        else:
            witness = _admit(method, method.bound(method.split(portion)))
    return witness


def _admit(method: BranchAndBound[D, B], bounded: B | Settled) -> Tensor | None:
    """Closes what is proved, tries points of the rest, which then waits. A witness, if one is found."""
    if isinstance(bounded, Settled):
        return bounded.witness
    method.close(bounded)
    method.record(bounded)
    left = (~bounded.proved).nonzero().squeeze(1)
    if not len(left):
        return None
    open_ = bounded.select(left)
    points, steps = method.suspects(open_)
    witness = method.witnesses.find(points, steps) if len(points) else None
    waiting = open_.domains if witness is not None else method.choose(open_)
    if len(waiting):
        method.queue.add(waiting)
    return witness
