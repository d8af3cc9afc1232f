"""The contract of an inspection: does this model hold a backdoor?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from holdfast.core.cards import Card
from holdfast.core.errors import UsageError
from holdfast.data.dataset import Dataset
from holdfast.transforms.triggers import Trigger

__all__ = ["Inspector", "ScanFinding"]


@dataclass(frozen=True, eq=False, kw_only=True)
class ScanFinding:
    """What an inspection found: evidence, never a bare yes.

    Attributes:
        detector: name of the method.
        score: the larger the more suspicious; finite.
        threshold: above which the model is flagged.
        target: the class that the backdoor would reach, as far as the method can tell.
        trigger: reverse-engineered, as far as the method makes one.
        by_class: (K,) float64 what the score was made of, class by class.
        p_value: chance of such a score for a clean model; None where no calibrated null was at hand.
    """

    detector: str
    score: float
    threshold: float
    target: int | None = None
    trigger: Trigger | None = None
    by_class: Tensor | None = None
    p_value: float | None = None

    @property
    def flagged(self) -> bool:
        """The score is above the threshold."""
        return self.score > self.threshold


class Inspector(ABC):
    """A frozen dataclass with a card and parameters.

    It sees the model and, where it needs them, clean data: no training set and no manifest. The contract, which
    `holdfast.testing.check_inspector` checks: a backdoored model scores above the threshold with the right target, a clean one
    below it, and a trigger that is told works on that model.
    """

    card: ClassVar[Card]

    @abstractmethod
    def inspect(self, model: nn.Module, data: Dataset | None = None) -> ScanFinding:
        """What the model looks like from the outside.

        Args:
            model: x (n, \\*features) -> scores (n, K); it is left as it is.
            data: clean samples, for a method that needs some.

        Raises:
            UsageError: it needs data and gets none.
        """

    def needed(self, data: Dataset | None) -> Dataset:
        """The data, for a method that cannot do without.

        Raises:
            UsageError: there are none.
        """
        if data is None:
            raise UsageError(f"{self.card.title} needs clean samples of the model's task; give some hundred")
        return data
