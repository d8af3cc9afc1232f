"""The contract of a detector of adversarial inputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Self

from torch import Tensor, nn

from holdfast.core.cards import Card
from holdfast.data.dataset import Dataset

__all__ = ["Detector"]


class Detector(ABC):
    """A frozen dataclass with a card and parameters, among them the ``false_positives`` that it allows itself.

    The contract, which `holdfast.testing.check_detector` checks: it is fitted on clean data alone, fitting gives a new
    detector, of new clean inputs about the allowed share is flagged, adversarial inputs score higher, and the score of an
    input depends on nothing but that input. An audit attacks the model and its detector together
    (`holdfast.core.criterion.WithDetector`).
    """

    card: ClassVar[Card]
    false_positives: float

    @abstractmethod
    def fit(self, model: nn.Module, data: Dataset) -> Self:
        """The detector with its threshold, from clean data that the model was not trained on."""

    @abstractmethod
    def score(self, model: nn.Module, x: Tensor) -> Tensor:
        """(n,) how odd each input is; flagged above 0.

        Raises:
            UsageError: it was not fitted.
        """
