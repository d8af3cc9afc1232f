"""The contract of a rule by which a server joins the updates of its clients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from holdfast.core.cards import Card
from holdfast.core.errors import DataError, UsageError

__all__ = ["Aggregator", "AggregatorState"]


@dataclass(frozen=True)
class AggregatorState:
    """What a rule remembers from round to round; one that remembers nothing uses it as it is."""


class Aggregator(ABC):
    """A frozen dataclass with a card and parameters, and what it may say of its clients: nothing but their updates.

    The contract, which `holdfast.testing.check_aggregator` checks: the order of the clients does not matter, equal updates
    come back as they are, and as many hostile clients as it `tolerates` cannot carry the result away.
    """

    card: ClassVar[Card]

    def start(self, weights: Tensor) -> AggregatorState:
        """The state before the first round, given the weights (parameters,) of the global model."""
        return AggregatorState()

    @abstractmethod
    def tolerates(self, clients: int) -> int:
        """How many hostile clients among so many leave the result bounded; 0 for a mean."""

    @abstractmethod
    def combine(self, updates: Tensor, sizes: Tensor, state: AggregatorState) -> tuple[Tensor, AggregatorState]:
        """(parameters,) float64 the joined update, and the state after the round.

        Args:
            updates: (clients, parameters) float64, finite, at least one.
            sizes: (clients,) int64 samples of each client, above 0; a client may lie about its own.
            state: after the round before.
        """

    @final
    def aggregate(self, updates: Tensor, sizes: Tensor, state: AggregatorState) -> tuple[Tensor, AggregatorState]:
        """As `combine`, for updates of any floating type, after a look at what came in.

        Raises:
            DataError: no updates, shapes that do not agree, values that are not finite, or a client without samples;
                the message names the client.
        """
        if updates.ndim != 2 or not len(updates):
            raise DataError(
                f"updates must be (clients, parameters), at least one; got the shape {tuple(updates.shape)}"
            )
        if sizes.shape != (len(updates),):
            raise DataError(f"{len(updates)} updates come with {tuple(sizes.shape)} sample counts; give one for each")
        odd = [k for k, fine in enumerate(updates.isfinite().all(1)) if not bool(fine)]
        if odd:
            raise DataError(f"the updates of clients {odd} are not finite; leave these clients out")
        empty = [k for k, count in enumerate(sizes) if int(count) < 1]
        if empty:
            raise DataError(f"clients {empty} have no samples; leave them out")
        return self.combine(updates.to(torch.float64), sizes, state)

    def need(self, clients: int, least: int) -> None:
        """Refuses a round with fewer clients than the rule is made for.

        Raises:
            UsageError: the message says how many it needs.
        """
        if clients < least:
            raise UsageError(f"{self.card.title} needs at least {least} clients with these settings, and got {clients}")
