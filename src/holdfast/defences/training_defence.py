"""The contract of a defence that trains: a loss for a batch, a way to score a batch, and hooks on the one loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from holdfast.core.cards import Card
from holdfast.training.batch import Batch
from holdfast.training.hooks import Hooks

__all__ = ["TrainingDefence"]


class TrainingDefence(ABC):
    """A frozen dataclass with a card and parameters; `holdfast.training.loop.fit` does the rest.

    The contract, which `holdfast.testing.check_training_defence` checks: what it draws comes from ``batch.draws``, so that
    a training that was killed and resumed ends with the same weights; the model's mode and the gradients of its
    parameters are left as they are; the loss reaches every parameter that the model's answer depends on.
    """

    card: ClassVar[Card]

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """A scalar that the training minimises, differentiable in the parameters; the model is in training mode."""

    @abstractmethod
    def score(self, model: nn.Module, batch: Batch) -> Tensor:
        """(n,) bool: the model, in evaluation mode, does right by the sample; the best epoch is chosen by it."""

    def hooks(self) -> Hooks:
        """What one training is to do after each step and epoch: fresh ones for each training; nothing by default."""
        return Hooks()
