"""What was asked of a model, in counts that add up."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Cost"]


@dataclass(frozen=True)
class Cost:
    """Counts of what was asked; a forward is one sample through a model once.

    Attributes:
        forwards: rows sent forwards through a model.
        backwards: rows sent backwards.
        queries: those forwards that the attacked model answered; a surrogate's are none.

    Example:
        >>> sum([Cost(3, 2, 3), Cost(1, 0, 0)], Cost())
        Cost(forwards=4, backwards=2, queries=3)
    """

    forwards: int = 0
    backwards: int = 0
    queries: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.forwards + other.forwards, self.backwards + other.backwards, self.queries + other.queries)

    @property
    def passes(self) -> int:
        """Forwards and backwards together."""
        return self.forwards + self.backwards
