"""The one branch and bound: on a toy whose answer is known, what is proved, tried, put back and left open."""

from dataclasses import dataclass

import pytest
import torch
from typing_extensions import override

from holdfast.certifiers.branch_and_bound import box_schedule
from holdfast.certifiers.branch_and_bound.box_schedule import BoxSchedule
from holdfast.certifiers.branch_and_bound.domains import DomainBatch
from holdfast.certifiers.branch_and_bound.search import (
    Bounded,
    Ending,
    RecordedSearch,
    Settled,
    Stop,
    StuckError,
    WhenFull,
    search,
)
from holdfast.certifiers.verification.query import Query
from holdfast.certifiers.verification.solver import Answer, Decision, SearchLimit
from holdfast.certifiers.verification.tree import Leaf, Split, Tree
from holdfast.graph.model import Graph, Node

F64 = torch.float64


@dataclass(frozen=True, eq=False, kw_only=True)
class Intervals(DomainBatch):
    low: torch.Tensor
    high: torch.Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class BoundedIntervals(Bounded[Intervals]):
    @override
    def select(self, rows: torch.Tensor) -> "BoundedIntervals":
        return BoundedIntervals(domains=self.domains.select(rows), proved=self.proved[rows])


class Halving(RecordedSearch[Intervals, BoundedIntervals]):
    """The least of ``|x - 0.3|`` over [0, 1], less a level, by a bound that is loose by the interval's width."""

    batch = 4

    def __init__(self, level: float, limit: SearchLimit, tree: Tree | None = None, smallest: float = 0.0) -> None:
        nodes = (
            Node(op="input", inputs=(), shape=(1,)),
            Node(op="affine", inputs=(0,), shape=(1,), tensors={"shift": torch.tensor([-0.3], dtype=F64)}),
            Node(op="abs", inputs=(1,), shape=(1,)),
        )
        box = torch.zeros(1), torch.ones(1)
        query = Query.of_box(*box, torch.ones(1, 1), torch.tensor([-level], dtype=F64))
        super().__init__(Graph(nodes, F64), query, limit, tree)
        self.level, self.smallest = level, smallest
        self.covered, self.seen, self.ending = 0.0, [], Ending()

    @override
    def root(self) -> BoundedIntervals | Settled:
        zero = torch.zeros(1, dtype=F64)
        return self.bound(Intervals(bound=zero, vertex=zero.long(), low=zero, high=zero + 1))

    @override
    def split(self, domains: Intervals) -> Intervals:
        if ((domains.high - domains.low) < self.smallest).any():
            self.queue.add(domains)
            raise StuckError("too small to split")
        middle = (domains.low + domains.high) / 2
        vertices = self.split_vertices(domains.vertex, torch.zeros(len(domains)), torch.zeros(len(domains)), middle)
        lower = Intervals(bound=domains.bound, vertex=vertices[:, 0], low=domains.low, high=middle)
        return Intervals.join(
            [lower, Intervals(bound=domains.bound, vertex=vertices[:, 1], low=middle, high=domains.high)]
        )

    @override
    def bound(self, domains: Intervals) -> BoundedIntervals | Settled:
        self.domains += len(domains)
        self.seen.append(len(domains))
        nearest = (domains.low - 0.3).clamp(min=0) + (0.3 - domains.high).clamp(min=0)
        bound = nearest - (domains.high - domains.low) - self.level
        low = Intervals(bound=bound, vertex=domains.vertex, low=domains.low, high=domains.high)
        return BoundedIntervals(domains=low, proved=bound > 0)

    @override
    def close(self, bounded: BoundedIntervals) -> None:
        done = bounded.domains.select(bounded.proved)
        self.covered += float((done.high - done.low).sum())

    @override
    def leaf(self, bounded: BoundedIntervals, i: int) -> Leaf:
        return Leaf((0,))

    @override
    def suspects(self, open_: BoundedIntervals) -> tuple[torch.Tensor, int]:
        return open_.domains.low.unsqueeze(1), 0

    @override
    def choose(self, open_: BoundedIntervals) -> Intervals:
        return open_.domains

    @override
    def answer(self, ending: Ending) -> Answer:
        self.ending = ending
        decision = Decision.UNKNOWN
        if ending.witness is not None:
            decision = Decision.BROKEN
        elif not len(self.queue):
            decision = Decision.HOLDS
        bound = 1e-9 if decision is Decision.HOLDS else self.queue.worst
        return Answer(decision=decision, bound=bound, witness=ending.witness, domains=self.domains, reason=ending.stuck)


def test_what_holds_is_proved_on_parts_that_cover_the_set_and_no_witness_is_made_up() -> None:
    method, tree = Halving(-0.01, SearchLimit.seconds(60)), Tree()
    answer = search(method)
    assert answer.decision is Decision.HOLDS
    assert method.covered == 1.0
    assert max(method.seen) <= 2 * method.batch
    recorded = search(Halving(-0.01, SearchLimit.seconds(60), tree))
    assert tree.complete
    assert sum(isinstance(v, Leaf) for v in tree.vertices) == sum(isinstance(v, Split) for v in tree.vertices) + 1
    assert recorded.domains == answer.domains == len(tree.vertices)


def test_what_is_broken_gives_a_witness_that_the_model_confirms() -> None:
    answer = search(Halving(0.05, SearchLimit.seconds(60)))
    assert answer.decision is Decision.BROKEN
    assert answer.witness is not None
    assert float((answer.witness - 0.3).abs()) <= 0.05


@pytest.mark.parametrize("full", list(WhenFull))
def test_each_limit_ends_the_search_with_what_waits_still_there(full: WhenFull) -> None:
    held = -1e-12  # true, but far beyond these limits
    for limit, stop in (
        (SearchLimit(0.0), Stop.TIME),
        (SearchLimit(SearchLimit.seconds(60).deadline, domains=40), Stop.DOMAINS),
        (SearchLimit(SearchLimit.seconds(60).deadline, memory=1, domains=60), Stop.MEMORY),
    ):
        method = Halving(held, limit)
        method.when_full = full  # pyright: ignore[reportAttributeAccessIssue]
        answer = search(method)
        expected = Stop.DOMAINS if stop is Stop.MEMORY and full is WhenFull.DEEPEN else stop
        assert method.ending.stop is expected
        assert answer.decision is Decision.UNKNOWN
        left = method.queue.take(len(method.queue))
        assert method.covered + float((left.high - left.low).sum()) == pytest.approx(1.0)


def test_who_is_stuck_says_so_and_loses_nothing() -> None:
    method = Halving(-1e-12, SearchLimit.seconds(60), smallest=2**-6)
    answer = search(method)
    assert answer.reason == "too small to split"
    left = method.queue.take(len(method.queue))
    assert method.covered + float((left.high - left.low).sum()) == pytest.approx(1.0)


def test_progress_is_told_while_something_is_open_and_may_interrupt() -> None:
    told: list[tuple[int, int, float]] = []
    search(Halving(-0.01, SearchLimit.seconds(60)), lambda *now: told.append(now))
    assert told
    assert all(waiting > 0 and bound <= 0 for _, waiting, bound in told)
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(Halving(-0.01, SearchLimit.seconds(60)), interrupt)


class Portioned(Halving):
    """Hands on what it takes in portions of one, and is out of domains between two of them."""

    @override
    def portions(self, taken: Intervals) -> list[Intervals]:
        return [taken.select(slice(i, i + 1)) for i in range(len(taken))]


def test_portions_that_no_limit_allows_any_more_wait_again() -> None:
    method = Portioned(-1e-12, SearchLimit(SearchLimit.seconds(60).deadline, domains=23))
    search(method)
    assert method.domains in (23, 24)
    left = method.queue.take(len(method.queue))
    assert method.covered + float((left.high - left.low).sum()) == pytest.approx(1.0)


class Renewed(Halving):
    """Learns a better level after three rounds and begins again."""

    begun = 0

    @override
    def root(self) -> BoundedIntervals | Settled:
        self.begun += 1
        return super().root()

    @override
    def restarts(self) -> bool:
        return self.iterations == 3 and self.begun == 1

    @override
    def restart(self) -> None:
        self.queue.take(len(self.queue))
        self.covered, self.level = 0.0, self.level - 0.1


def test_a_new_start_begins_at_the_root_again() -> None:
    method = Renewed(-0.01, SearchLimit.seconds(60))
    answer = search(method)
    assert answer.decision is Decision.HOLDS
    assert method.begun == 2
    assert method.covered == 1.0


def _boxes(monkeypatch: pytest.MonkeyPatch, *, useful: bool = True) -> tuple[BoxSchedule, dict[str, float]]:
    """With half of the time from its first turn to second 100, on a clock that a test sets."""
    clock = {"now": 20.0}
    monkeypatch.setattr(box_schedule, "monotonic", lambda: clock["now"])
    return BoxSchedule(useful=useful, share=0.5, splits=8, deadline=100.0), clock


def test_splits_have_as_much_time_as_the_boxes_before_them(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes, clock = _boxes(monkeypatch)
    due = []
    for begins, ends in ((20.0, 23.0), (26.0, 31.0)):
        clock["now"] = begins
        assert boxes.due()
        boxes.begin()
        clock["now"] = ends
        boxes.end()
        for wait in (0.0, ends - begins - 0.1, ends - begins):
            clock["now"] = ends + wait
            due.append(boxes.due())
    assert due == [False, False, True, False, False, True]


def test_boxes_have_no_turn_after_their_share_and_none_where_they_cannot_help(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes, clock = _boxes(monkeypatch)
    assert boxes.due()
    assert boxes.until == 60.0  # half of what was left at the first turn, 80 seconds
    for now, due in ((59.9, True), (60.0, False), (90.0, False)):
        clock["now"] = now
        assert boxes.due() is due
    useless, _ = _boxes(monkeypatch, useful=False)
    assert not useless.due()


def test_each_turn_splits_the_ends_of_boxes_more_often_than_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes, _ = _boxes(monkeypatch)
    seen = []
    for _ in range(4):
        seen.append(boxes.splits)
        boxes.end()
    assert seen == [0, 8, 24, 72]
