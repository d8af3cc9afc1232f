"""What a training may do beside its loss: after each step, and after each epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from holdfast.training.batch import Batch

__all__ = ["Epoch", "Hooks"]


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What one epoch gave.

    Attributes:
        number: from 1.
        loss: mean training loss.
        score: share of validation samples that the model does right by; None without validation.
        best: the best epoch so far.
    """

    number: int
    loss: float
    score: float | None
    best: bool


class Hooks:
    """Called by the loop; as it stands it does nothing, and a subclass overrides what it needs.

    What a hook remembers from step to step, such as an average of the weights, it gives as `state`, which the checkpoint
    holds: a training that was killed and resumed must end with the same weights.
    """

    def after_step(self, model: nn.Module, batch: Batch) -> None:
        """Called after each update of the parameters, with the model in training mode; it may change the parameters."""

    def after_epoch(self, model: nn.Module, epoch: Epoch) -> None:
        """Called after an epoch was scored and before its checkpoint is written, with the model in evaluation mode."""

    def state(self) -> Mapping[str, Tensor]:
        """What the next step needs, by names of the hook's own; nothing by default."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Takes back what `state` gave, before the first step of a resumed training."""
