"""The contract of a repair: a model that no longer obeys a trigger."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import nn

from holdfast.core.cards import Card
from holdfast.data.dataset import Dataset

__all__ = ["Repair"]


class Repair(ABC):
    """A frozen dataclass with a card and parameters.

    Every choice is made on clean data, never on the success of an attack, which nobody knows in life. The contract, which
    `holdfast.testing.check_repair` checks: the given model is left as it is, the new one keeps its clean accuracy, and a
    backdoor that was there reaches its target less often.
    """

    card: ClassVar[Card]

    @abstractmethod
    def repair(self, model: nn.Module, data: Dataset) -> nn.Module:
        """A repaired copy in evaluation mode: the same network with other weights, which alone hold the repair.

        Args:
            model: x (n, \\*features) -> scores (n, K).
            data: clean samples with labels.
        """
