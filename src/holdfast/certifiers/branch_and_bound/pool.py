"""Domains that wait to be split, worst first."""

from __future__ import annotations

from dataclasses import fields
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from holdfast.certifiers.branch_and_bound.domains import DomainBatch

__all__ = ["OldestFirst", "Pool"]

D = TypeVar("D", bound=DomainBatch)


class Pool(Generic[D]):
    """Domains of one kind in tensors that grow; places of what was taken are used again.

    Columns may get longer in their last dimension; rows that are there already are then padded with zeros.

    Example:
        >>> pool = Pool[DomainBatch]()
        >>> pool.add(DomainBatch(bound=torch.tensor([1.0, -1.0, 0.0]), vertex=torch.tensor([7, 8, 9])))
        >>> pool.take(2).vertex.tolist()
        [8, 9]
        >>> len(pool)
        1
    """

    def __init__(self) -> None:
        self._store: D | None = None
        self._free = torch.zeros(0, dtype=torch.int64)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def worst(self) -> float:
        """The least bound, inf if nothing waits."""
        return float(self._store.bound.min()) if self._store is not None and len(self) else torch.inf

    @property
    def bytes(self) -> int:
        """What the columns take."""
        if self._store is None:
            return 0
        columns: list[Tensor] = [getattr(self._store, f.name) for f in fields(self._store)]
        return sum(column.numel() * column.element_size() for column in columns)

    def add(self, domains: D) -> None:
        """Puts domains in."""
        if self._store is None:
            self._store = domains.select(slice(0))
        count, store = len(domains), self._store
        more = max(count - len(self._free), 0)
        more = max(more, len(store) // 2) if more else 0
        grown = {f.name: _grown(getattr(store, f.name), getattr(domains, f.name), more) for f in fields(store)}
        # free places hold the bound inf, so that none of them is the least
        grown["bound"][len(store) :] = torch.inf
        self._store = store = type(store)(**grown)
        self._free = torch.cat([self._free, torch.arange(len(store) - more, len(store))])
        places, self._free = self._free[:count], self._free[count:]
        for f in fields(store):
            _put(getattr(store, f.name), getattr(domains, f.name), places)
        self._count += count
        self._placed(places, len(store))

    def take(self, count: int, *, best: bool = False) -> D:
        """Takes out the domains of the least bounds, or of the largest; at least one must wait."""
        assert self._store is not None, "nothing was ever put in"
        bound = self._store.bound
        key = torch.where(bound == torch.inf, -torch.inf, bound) if best else bound
        places = self._first(key, min(count, len(self)), largest=best)
        taken = self._store.select(places)
        bound[places] = torch.inf
        self._free = torch.cat([self._free, places])
        self._count -= len(places)
        return taken

    def _placed(self, places: Tensor, size: int) -> None:
        """Notes that what was just put in lies at these of so many places."""

    def _first(self, key: Tensor, count: int, *, largest: bool) -> Tensor:
        """Where the first ones lie; which of equals come first is left open."""
        return key.topk(count, largest=largest).indices


class OldestFirst(Pool[D]):
    """A pool in which of equal bounds the oldest come first."""

    def __init__(self) -> None:
        super().__init__()
        self._arrival = torch.zeros(0, dtype=torch.int64)
        self._arrived = 0

    @override
    def _placed(self, places: Tensor, size: int) -> None:
        self._arrival = F.pad(self._arrival, (0, size - len(self._arrival)))
        self._arrival[places] = torch.arange(self._arrived, self._arrived + len(places))
        self._arrived += len(places)

    @override
    def _first(self, key: Tensor, count: int, *, largest: bool) -> Tensor:
        order = self._arrival.argsort()
        return order[key[order].argsort(stable=True, descending=largest)][:count]


def _grown(column: Tensor, new: Tensor, more: int) -> Tensor:
    """The column with room for so many more rows, and as wide as what comes in."""
    wider = max(new.shape[-1] - column.shape[-1], 0) if new.ndim > 1 else 0
    if not (wider or more):
        return column
    return F.pad(column, [*([0, wider] if new.ndim > 1 else []), *[0, 0] * max(new.ndim - 2, 0), 0, more])


def _put(column: Tensor, new: Tensor, places: Tensor) -> None:
    if new.ndim > 1:
        column[places, ..., new.shape[-1] :] = 0
        column[places, ..., : new.shape[-1]] = new
    else:
        column[places] = new
