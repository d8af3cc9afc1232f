"""Domains that wait to be split, worst first."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Pool"]


class Pool:
    """Rows of named columns of tensors; one column, ``bound``, says which come first.

    Columns may get longer in their last dimension; rows that are there already are then padded with zeros.

    Example:
        >>> pool = Pool()
        >>> pool.add({"bound": torch.tensor([1.0, -1.0, 0.0]), "name": torch.tensor([7, 8, 9])})
        >>> pool.take(2)["name"].tolist()
        [8, 9]
        >>> len(pool)
        1
    """

    def __init__(self) -> None:
        self._columns: dict[str, Tensor] = {}
        self._free = torch.zeros(0, dtype=torch.int64)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def worst(self) -> float:
        """The least bound, inf if nothing waits."""
        return float(self._columns["bound"].min()) if len(self) else torch.inf

    @property
    def bytes(self) -> int:
        """What the columns take."""
        return sum(t.numel() * t.element_size() for t in self._columns.values())

    def add(self, rows: Mapping[str, Tensor]) -> None:
        """Puts rows in."""
        count = len(rows["bound"])
        if not self._columns:
            self._columns = {k: t[:0].clone() for k, t in rows.items()}
        for name, new in rows.items():
            old = self._columns[name]
            wider = new.shape[-1] - old.shape[-1] if new.ndim > 1 else 0
            more = max(count - len(self._free), 0)
            more = max(more, len(old) // 2) if more else 0
            if wider > 0 or more:
                grow = [0, max(wider, 0)] if new.ndim > 1 else []
                grow += [0, 0] * max(new.ndim - 2, 0) + [0, more]
                self._columns[name] = F.pad(old, grow, value=torch.inf if name == "bound" else 0)
        last, known = len(self._columns["bound"]), len(self._free) + self._count
        self._free = torch.cat([self._free, torch.arange(known, last)])
        places, self._free = self._free[:count], self._free[count:]
        for name, new in rows.items():
            column = self._columns[name]
            if new.ndim > 1:
                column[places, ..., new.shape[-1] :] = 0
                column[places, ..., : new.shape[-1]] = new
            else:
                column[places] = new
        self._count += count

    def take(self, count: int, *, best: bool = False) -> dict[str, Tensor]:
        """Takes out the rows of the least bounds, or of the largest."""
        bound = self._columns["bound"]
        key = torch.where(bound == torch.inf, -torch.inf, bound) if best else bound
        places = key.topk(min(count, len(self)), largest=best).indices
        found = {k: t[places] for k, t in self._columns.items()}
        bound[places] = torch.inf
        self._free = torch.cat([self._free, places])
        self._count -= len(places)
        return found
