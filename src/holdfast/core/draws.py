"""Keyed randomness: the numbers a sample gets depend on its key, never on who shares its batch.

The key is (seed, method, restart, sample id, stream, block of steps). PyTorch's own generator is reseeded once for a
block of consecutive steps and the steps read from it, so that small draws do not pay for a reseed each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod

import numpy as np
import torch
from torch import Tensor

from holdfast.core.arrays import on_device

__all__ = ["Draws", "SampleDraws", "seeded"]

_BLOCK_STEPS = 64
_BLOCK_NUMBERS = 1 << 12  # a block of big draws holds fewer steps, so that its memory stays bounded
_Fill = Callable[[tuple[int, ...], torch.Generator], Tensor]


def _key(*parts: object) -> int:
    """63 well-mixed bits of the parts; the CPU generator uses the low 32 of them."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@dataclass
class _Stream:
    """The current block of each sample of one stream, stacked so that a batch is one gather."""

    block: np.ndarray = field(default_factory=lambda: np.full(0, -1, dtype=np.int64))
    slot: dict[tuple[int, int], int] = field(default_factory=dict[tuple[int, int], int])
    values: Tensor | None = None
    batch: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
    """The last batch's ids, rounds and slots: as a rule the next step asks for the same one."""


class Draws:
    """Draws of one run of one method.

    Example:
        >>> a = Draws(0, "pgd").of([5, 7]).uniform("start", (2,), step=0)
        >>> b = Draws(0, "pgd").of([7]).uniform("start", (2,), step=0)
        >>> bool((a[1] == b[0]).all())
        True
    """

    def __init__(self, seed: int, method: str, device: torch.device | str = "cpu") -> None:
        """Args:
        seed: the seed of the plan.
        method: name of the method, part of the key.
        device: where the numbers are made; the promise of equal draws holds on one kind of device.
        """
        self.seed, self.method, self.device = seed, method, torch.device(device)
        self._generator = torch.Generator(self.device)
        self._streams: dict[tuple[str, str, tuple[int, ...]], _Stream] = {}

    def of(self, ids: object, rounds: object = 0) -> SampleDraws:
        """The draws of some samples: ``ids`` int (n,), ``rounds`` the restart of each, int or (n,)."""
        i = np.asarray(ids, dtype=np.int64)
        return SampleDraws(self, i, np.broadcast_to(np.asarray(rounds, dtype=np.int64), i.shape))

    def generator(self, *parts: object) -> torch.Generator:
        """A fresh generator for draws that are not per sample, keyed by the given parts."""
        return torch.Generator(self.device).manual_seed(_key(self.seed, self.method, *parts))

    def read(
        self,
        kind: str,
        name: str,
        shape: tuple[int, ...],
        ids: np.ndarray,
        rounds: np.ndarray,
        step: np.ndarray,
        fill: _Fill,
    ) -> Tensor:
        """Numbers of one kind of draw for a batch of samples; `SampleDraws` names the kinds."""
        length = max(1, min(_BLOCK_STEPS, _BLOCK_NUMBERS // max(1, prod(shape))))
        stream = self._streams.setdefault((kind, name, shape), _Stream())
        slots = self._slots(stream, ids, rounds)
        block, within = np.divmod(step, length)
        for k in np.flatnonzero(stream.block[slots] != block).tolist():
            s = int(slots[k])
            key = _key(self.seed, self.method, int(rounds[k]), int(ids[k]), name, int(block[k]))
            values = fill((length, *shape), self._generator.manual_seed(key))
            if stream.values is None:
                stream.values = values.new_empty((len(stream.block), length, *shape))
            elif len(stream.values) < len(stream.block):
                grown = stream.values.new_empty((len(stream.block), length, *shape))
                grown[: len(stream.values)] = stream.values
                stream.values = grown
            stream.values[s] = values
            stream.block[s] = block[k]
        if stream.values is None:  # an empty batch
            return fill((0, *shape), self._generator)
        at = on_device(slots * length + within, self.device)
        return stream.values.flatten(0, 1).index_select(0, at)

    def _slots(self, stream: _Stream, ids: np.ndarray, rounds: np.ndarray) -> np.ndarray:
        if stream.batch is not None and stream.batch[0] is ids and stream.batch[1] is rounds:
            return stream.batch[2]
        table = stream.slot
        slots = np.fromiter(
            (table.setdefault(key, len(table)) for key in zip(ids.tolist(), rounds.tolist(), strict=True)),
            dtype=np.int64,
            count=len(ids),
        )
        if len(table) > len(stream.block):
            stream.block = np.concatenate([stream.block, np.full(2 * len(table) - len(stream.block), -1)])
        stream.batch = ids, rounds, slots
        return slots


@dataclass(frozen=True)
class SampleDraws:
    """Keyed draws of a batch of samples; what an attack reads from. ``step`` is an int or (n,) integers, host-side."""

    draws: Draws
    ids: np.ndarray
    rounds: np.ndarray

    def select(self, rows: np.ndarray) -> SampleDraws:
        """The draws of the samples at ``rows``."""
        return SampleDraws(self.draws, self.ids[rows], self.rounds[rows])

    def _read(self, kind: str, name: str, shape: tuple[int, ...], step: object, fill: _Fill) -> Tensor:
        steps = np.broadcast_to(np.asarray(step, dtype=np.int64), self.ids.shape)
        return self.draws.read(kind, name, tuple(shape), self.ids, self.rounds, steps, fill)

    def uniform(self, name: str, shape: tuple[int, ...], step: object = 0) -> Tensor:
        """(n, \\*shape) float32, uniform in [0, 1)."""
        device = self.draws.device
        return self._read("u", name, shape, step, lambda s, g: torch.rand(s, generator=g, device=device))

    def normal(self, name: str, shape: tuple[int, ...], step: object = 0) -> Tensor:
        """(n, \\*shape) float32, standard normal."""
        device = self.draws.device
        return self._read("n", name, shape, step, lambda s, g: torch.randn(s, generator=g, device=device))

    def integers(self, name: str, high: int | Tensor, shape: tuple[int, ...], step: object = 0) -> Tensor:
        """(n, \\*shape) int64, uniform in [0, high); ``high`` is an int or a tensor broadcastable to the result."""
        u = self.uniform(name, shape, step).double()
        top = torch.as_tensor(high, device=u.device)
        return (u * top).long().clamp_max(top - 1)

    def permutation(self, name: str, length: int, step: object = 0) -> Tensor:
        """(n, length) int64, a permutation of range(length) for each sample."""
        return self.uniform(name, (length,), step).argsort(dim=1)


@contextmanager
def seeded(seed: int, gpus: Iterable[int] | None = None) -> Generator[None, None, None]:
    """PyTorch's global generators from one seed for the time being: for what reads them, such as fresh weights and dropout.

    Args:
        seed: what they start from.
        gpus: whose generators are put back as they were, beside the host's; None: those of all there are, for
            which CUDA is started.

    Example:
        >>> with seeded(1):
        ...     one = torch.rand(1)
        >>> with seeded(1):
        ...     two = torch.rand(1)
        >>> bool(one == two)
        True
    """
    kept = range(torch.cuda.device_count()) if gpus is None else list(gpus)
    with torch.random.fork_rng(devices=kept):  # pyright: ignore[reportUnknownMemberType]
        torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
        yield
