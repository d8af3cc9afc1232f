"""The trimmed mean: in each parameter the largest and smallest values are left out (Yin et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from holdfast.core.arrays import rising
from holdfast.core.cards import Card, parameter
from holdfast.core.errors import UsageError
from holdfast.core.threat import Phase
from holdfast.defences.aggregator import Aggregator, AggregatorState

__all__ = ["TrimmedMean"]


@dataclass(frozen=True)
class TrimmedMean(Aggregator):
    """The mean of what is left of each parameter after the ``trim`` largest and smallest values are gone.

    Example:
        >>> import torch
        >>> rule, updates = TrimmedMean(trim=1), torch.tensor([[0.0], [1.0], [2.0], [9e9]])
        >>> rule.aggregate(updates, torch.ones(4, dtype=torch.int64), rule.start(torch.zeros(1)))[0].tolist()
        [1.5]
    """

    trim: int = parameter(
        1,
        "values that are left out at either end, at least 0; 0 is the mean",
        "ours: one hostile client; Yin et al. 2018: a share beta of all",
    )

    card: ClassVar[Card] = Card(
        title="Trimmed mean",
        rows=(),
        paper="Yin, Chen, Ramchandran, Bartlett 2018, Byzantine-Robust Distributed Learning: Towards Optimal Statistical "
        "Rates, ICML, arXiv:1803.01498",
        section="2.1",
        summary="Averages each parameter over the clients without the largest and smallest values.",
        phase=Phase.TRAINING,
        failure_modes=(
            "Sample counts are not looked at, for a client may lie about its own.",
            "Where clients see different classes, what only few of them know is trimmed away with the attack.",
        ),
        checked_by="the mean for no trimming, and the coordinate-wise hull of the honest updates",
    )

    def __post_init__(self) -> None:
        if self.trim < 0:
            raise UsageError(f"trim must be at least 0, got {self.trim}")

    @override
    def tolerates(self, clients: int) -> int:
        return self.trim if clients > 2 * self.trim else 0

    @override
    def combine(self, updates: Tensor, sizes: Tensor, state: AggregatorState) -> tuple[Tensor, AggregatorState]:
        self.need(len(updates), 2 * self.trim + 1)
        ordered = rising(updates.T)  # (parameters, clients)
        return ordered[:, self.trim : len(updates) - self.trim].mean(1), state
