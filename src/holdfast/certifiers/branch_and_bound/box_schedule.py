"""When a search that splits neurons stops to seek better boxes."""

from __future__ import annotations

import math
from time import monotonic

__all__ = ["BoxSchedule"]


class BoxSchedule:
    """Boxes and splits take turns: after each refinement of the boxes, splits have as much time as it took.

    Times are on the clock of `time.monotonic`.

    Args:
        useful: whether better boxes may help at all.
        share: of the time from the first turn to the deadline after which boxes have no more turns, in [0, 1].
        splits: for each end of a box from the second turn on, at least 0; three times as many each turn after it. The first
            turn does without.
        deadline: of the search.
    """

    def __init__(self, *, useful: bool, share: float, splits: int, deadline: float) -> None:
        self.splits = 0
        self._useful, self._share, self._least, self._deadline = useful, share, splits, deadline
        self._first, self._next = math.inf, -math.inf
        self._began: float | None = None

    @property
    def until(self) -> float:
        """When boxes have had their share."""
        return self._first + self._share * (self._deadline - self._first)

    def due(self) -> bool:
        """Whether it is their turn; asked before each step of the search, so that it sees when a turn is over."""
        now = monotonic()
        if self._first == math.inf:
            self._first = now
        if self._began is not None:
            self._next, self._began = 2 * now - self._began, None
        if now < self._next:
            return False
        if self._useful and now < self.until:
            return True
        self._next = -math.inf
        return False

    def begin(self) -> None:
        """A turn begins."""
        self._began = monotonic()

    def end(self) -> None:
        """It has ended: the next one splits each end more often."""
        self.splits = max(3 * self.splits, self._least)
