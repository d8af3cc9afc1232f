"""Keyed draws for training: a batch's numbers depend on the seed, the epoch and its place in it alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from holdfast.core.draws import Draws, SampleDraws

__all__ = ["BatchDraws"]


@dataclass(frozen=True)
class BatchDraws(SampleDraws):
    """Draws of one training batch, all samples of a stream from one generator.

    Who shares a batch is itself keyed in training, so that a generator for each sample, as searches have, would cost
    reseeds and promise nothing more.

    Example:
        >>> a = BatchDraws.of(Draws(0, "training"), [3, 5], epoch=1, batch=0).uniform("start", (2,))
        >>> b = BatchDraws.of(Draws(0, "training"), [3, 5], epoch=1, batch=0).uniform("start", (2,))
        >>> tuple(a.shape), bool((a == b).all())
        ((2, 2), True)
    """

    batch: int = 0

    @classmethod
    def of(cls, draws: Draws, ids: object, *, epoch: int, batch: int) -> BatchDraws:
        """The draws of the samples ``ids`` (n,), which are batch number ``batch`` of an epoch."""
        i = np.asarray(ids, dtype=np.int64)
        return cls(draws, i, np.broadcast_to(np.int64(epoch), i.shape), batch)

    @override
    def _read(
        self,
        kind: str,
        name: str,
        shape: tuple[int, ...],
        step: object,
        fill: Callable[[tuple[int, ...], torch.Generator], Tensor],
    ) -> Tensor:
        epoch = int(self.rounds[0]) if len(self.rounds) else 0
        return fill((len(self.ids), *shape), self.draws.generator(kind, name, epoch, self.batch, step))
