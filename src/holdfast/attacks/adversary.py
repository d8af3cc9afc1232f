"""The contract of an adversary in federated training: what hostile clients send instead of their honest updates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from holdfast.core.cards import Card
from holdfast.core.draws import Draws
from holdfast.core.errors import UsageError

__all__ = ["Adversary", "Round"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Round:
    """What a hostile client knows of a round.

    Attributes:
        number: of the round, from 1.
        weights: (parameters,) float64 of the global model at its start.
        sizes: (clients,) int64 samples of each client that takes part, by which the server weighs.
        hostile: (k,) int64 places of the adversary's clients among them.
        rate: learning rate of the server: the global model moves by ``rate`` times the joined update.
    """

    number: int
    weights: Tensor
    sizes: Tensor
    hostile: Tensor
    rate: float = 1.0

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise UsageError(f"the server's learning rate must be above 0, got {self.rate}")
        if not len(self.hostile) or not 0 <= int(self.hostile.min()) <= int(self.hostile.max()) < len(self.sizes):
            raise UsageError(f"hostile clients must be some of the {len(self.sizes)} of the round, counted from 0")


class Adversary(ABC):
    """A frozen dataclass with a card and parameters.

    The contract, which `holdfast.testing.check_adversary` checks: an update for each of the adversary's clients, finite and
    of the type of the honest ones; what is drawn comes from ``draws``; what is handed in is left as it is; in which order
    the clients stand does not matter.
    """

    card: ClassVar[Card]

    @abstractmethod
    def update(self, round: Round, own: Tensor, draws: Draws) -> Tensor:
        """(k, parameters) what the hostile clients send.

        Args:
            round: what they know of it.
            own: (k, parameters) float64 the updates that their own training gave, as a rule on poisoned data.
            draws: keyed by the seed and this method.
        """
