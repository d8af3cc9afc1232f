"""The coordinate-wise median of the updates (Yin et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from holdfast.core.arrays import rising
from holdfast.core.cards import Card
from holdfast.core.threat import Phase
from holdfast.defences.aggregator import Aggregator, AggregatorState

__all__ = ["Median"]


@dataclass(frozen=True)
class Median(Aggregator):
    """The median of each parameter over the clients; of an even number the mean of the two in the middle."""

    card: ClassVar[Card] = Card(
        title="Coordinate-wise median",
        rows=(),
        paper="Yin, Chen, Ramchandran, Bartlett 2018, Byzantine-Robust Distributed Learning: Towards Optimal Statistical "
        "Rates, ICML, arXiv:1803.01498",
        section="2.1",
        summary="Takes the median of each parameter over the clients.",
        phase=Phase.TRAINING,
        failure_modes=(
            "Where clients see different classes, it is far from the mean and training slows down.",
            "A backdoor that many clients share a little of is no outlier in any parameter.",
        ),
        checked_by="NumPy's median, and the coordinate-wise hull of the honest updates",
    )

    @override
    def tolerates(self, clients: int) -> int:
        return (clients - 1) // 2

    @override
    def combine(self, updates: Tensor, sizes: Tensor, state: AggregatorState) -> tuple[Tensor, AggregatorState]:
        ordered = rising(updates.T)
        middle = len(updates) // 2
        return ordered[:, len(updates) - 1 - middle : middle + 1].mean(1), state
