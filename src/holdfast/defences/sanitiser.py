"""The contract of a filter of training sets: how suspicious each sample is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from holdfast.core.cards import Card
from holdfast.core.errors import UsageError
from holdfast.data.dataset import Dataset

__all__ = ["Sanitiser"]


class Sanitiser(ABC):
    """A frozen dataclass with a card and parameters.

    It sees the data set as a person gets it, and no manifest. The contract, which `holdfast.testing.check_sanitiser` checks:
    a finite score for each sample that does not depend on the order of the data, and poison ranks above clean samples.
    """

    card: ClassVar[Card]

    @abstractmethod
    def scores(self, data: Dataset, model: nn.Module | None = None) -> Tensor:
        """(n,) float64, the larger the more suspicious.

        Args:
            data: the data set to filter.
            model: trained on it, for a filter that looks at representations.

        Raises:
            UsageError: it needs a model and gets none.
        """

    def needed(self, model: nn.Module | None) -> nn.Module:
        """The model, for a filter that cannot do without.

        Raises:
            UsageError: there is none.
        """
        if model is None:
            raise UsageError(f"{self.card.title} looks at what a model makes of the data; give a model trained on them")
        return model
