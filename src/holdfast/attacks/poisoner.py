"""The contract of an attack on training data: a data set in, a changed data set with its manifest out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from holdfast.core.cards import Card
from holdfast.core.draws import Draws
from holdfast.core.errors import ContradictionError, UsageError
from holdfast.core.knowledge import Knowledge
from holdfast.core.registry import name_of
from holdfast.data.dataset import Dataset
from holdfast.data.poisoned import PoisonedDataset

__all__ = ["Poisoner", "count_at", "poison"]


class Poisoner(ABC):
    """A frozen dataclass with a card and parameters, among them the ``rate`` of the data set that it changes.

    The contract, which `holdfast.testing.check_poisoner` checks: the manifest tells every change and no other, the budget is
    kept, labels stay classes and features in the range of the data, what is drawn comes from ``draws``, and the victim is
    never trained: that is the audit's business. Methods are called through `poison`, which narrows the knowledge.
    """

    card: ClassVar[Card]
    rate: float

    def edits(self, n: int) -> int:
        """The most that the symmetric difference of the two data sets may be for n samples: a changed one counts twice.

        As it stands, every sample of the rate is changed; who only adds or removes samples promises less.
        """
        return 2 * count_at(n, self.rate)

    @abstractmethod
    def poison(self, data: Dataset, knowledge: Knowledge, draws: Draws) -> PoisonedDataset:
        """The poisoned data set with its manifest.

        Args:
            data: the clean one; it is left as it is.
            knowledge: what the card asks for, and nothing else.
            draws: keyed by the seed and this method.
        """

    def check(self, data: Dataset) -> None:
        """Refuses, in words, data that the method cannot poison.

        Raises:
            UsageError: a rate that is no share, or one that changes no sample.
        """
        if not 0 < self.rate <= 1:
            raise UsageError(f"the rate of {self.card.title} is a share above 0 and at most 1, got {self.rate}")
        if count_at(len(data), self.rate) < 1:
            raise UsageError(f"a rate of {self.rate} changes none of {len(data)} samples; raise it, or give more data")


def poison(poisoner: Poisoner, data: Dataset, *, seed: int = 0, knowledge: Knowledge | None = None) -> PoisonedDataset:
    """Poisons a data set and holds the result to the poisoner's own budget.

    Args:
        poisoner: the method.
        data: the clean data set.
        seed: keys the draws.
        knowledge: all that the attacker knows; the method gets what its card asks for.

    Raises:
        UsageError: the method must know more, or cannot poison such data.
        ContradictionError: the method exceeds its budget.

    Example:
        >>> from holdfast.core.registry import create
        >>> from holdfast.data import load_digits
        >>> made = poison(create("label_flip", Poisoner, rate=0.01), load_digits("test"))
        >>> made.manifest.edits
        10
    """
    poisoner.check(data)
    granted = (knowledge or Knowledge()).narrowed(poisoner.card)
    made = poisoner.poison(data, granted, Draws(seed, name_of(poisoner)))
    allowed = poisoner.edits(len(data))
    if made.manifest.edits > allowed:
        raise ContradictionError(
            f"{poisoner.card.title} made {made.manifest.edits} edits, and promises at most {allowed}"
        )
    return made


def count_at(n: int, rate: float) -> int:
    """How many of n samples a rate is, rounded down but for the rounding of the rate itself.

    Example:
        >>> count_at(100, 0.29), count_at(10, 0.05)
        (29, 0)
    """
    return int(n * rate + 1e-9)
