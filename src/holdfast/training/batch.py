"""What a training loss and a score get to see, and what they must give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from holdfast.training.draws import BatchDraws

__all__ = ["Batch", "BatchLoss", "BatchScore"]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What a loss gets to see beside the model.

    Attributes:
        x: (n, \\*features) inputs on the device.
        y: (n,) int64 labels.
        ids: (n,) int64 on the host: rows in the data set.
        draws: keyed draws of this batch.
    """

    x: Tensor
    y: Tensor
    ids: Tensor
    draws: BatchDraws


class BatchLoss(Protocol):
    """The loss that is minimised."""

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """A scalar that is differentiable in the parameters; the model is in training mode before and after."""
        ...


class BatchScore(Protocol):
    """What the best epoch is chosen by."""

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """(n,) bool: the model, in evaluation mode, does right by the sample."""
        ...
