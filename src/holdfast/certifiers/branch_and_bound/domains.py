"""Parts of a set, one a row of typed columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["DomainBatch"]


@dataclass(frozen=True, eq=False, kw_only=True)
class DomainBatch:
    """Parts of the set that a query is about; every column has the part as its first dimension.

    A method adds columns in a subclass.

    Attributes:
        bound: (n,) what is known of each part; the least one is looked at first.
        vertex: (n,) int64, its vertex in the tree of the proof; 0 where none is recorded.

    Example:
        >>> two = DomainBatch(bound=torch.tensor([0.5, -1.0]), vertex=torch.tensor([3, 4]))
        >>> two.select(torch.tensor([1])).vertex.tolist()
        [4]
        >>> len(DomainBatch.join([two, two]))
        4
    """

    bound: Tensor
    vertex: Tensor

    def __len__(self) -> int:
        return len(self.bound)

    def select(self, rows: Tensor | slice) -> Self:
        """Some of the parts: by index, by mask or by slice."""
        return replace(self, **{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """The parts of all, one after another; columns that are shorter in their last dimension end in zeros."""
        return cls(**{f.name: _together([getattr(part, f.name) for part in parts]) for f in fields(cls)})


def _together(columns: Sequence[Tensor]) -> Tensor:
    if columns[0].ndim == 1:
        return torch.cat([*columns])
    longest = max(column.shape[-1] for column in columns)
    return torch.cat([F.pad(column, (0, longest - column.shape[-1])) for column in columns])
