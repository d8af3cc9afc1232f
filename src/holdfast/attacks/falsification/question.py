"""What a search reads of a query about a model."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from holdfast.core.sets import LpBall

__all__ = ["Question"]


class Question(Protocol):
    """What is read of a query (`holdfast.certifiers.verification.query.Query`, which attacks do not import)."""

    @property
    def ball(self) -> LpBall:
        """The set; only its kind is read."""
        ...

    @property
    def inside(self) -> tuple[Tensor, Tensor]:
        """The least and the largest inputs of a witness, each (\\*features) float64."""
        ...

    @property
    def c(self) -> Tensor:
        """(rows, outputs) float64."""
        ...

    @property
    def d(self) -> Tensor:
        """(rows,) float64."""
        ...

    @property
    def groups(self) -> Tensor:
        """(rows,) int64, ascending from 0."""
        ...

    @property
    def strict(self) -> Tensor | None:
        """(rows,) bool: rows that are met below 0 only; None: all are met at 0 too."""
        ...
