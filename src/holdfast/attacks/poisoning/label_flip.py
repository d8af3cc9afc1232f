"""Random label flips: a share of the labels becomes another class, drawn uniformly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from holdfast.attacks.poisoner import Poisoner, count_at
from holdfast.core.cards import Card, parameter
from holdfast.core.draws import Draws
from holdfast.core.errors import UsageError
from holdfast.core.knowledge import Knowledge
from holdfast.core.manifest import Samples
from holdfast.core.registry import name_of
from holdfast.core.threat import Phase
from holdfast.data.dataset import Dataset
from holdfast.data.poisoned import PoisonedDataset

__all__ = ["LabelFlip"]


@dataclass(frozen=True)
class LabelFlip(Poisoner):
    """Flips a share of the labels at random; the control that every guided flip is held against."""

    rate: float = parameter(0.1, "share of the samples whose label is flipped, above 0", "ours: one in ten")

    card: ClassVar[Card] = Card(
        title="Label flipping",
        rows=("P01",),
        paper="Biggio, Nelson, Laskov 2011, Support Vector Machines Under Adversarial Label Noise, ACML",
        section="2.1",
        summary="Gives a random share of the training samples a wrong label.",
        phase=Phase.TRAINING,
        failure_modes=("Random symmetric flips barely hurt deep networks before the rate is large.",),
        checked_by="the number of changed labels and the uniform law of the new ones",
    )

    @override
    def poison(self, data: Dataset, knowledge: Knowledge, draws: Draws) -> PoisonedDataset:
        classes = data.class_count
        if classes < 2:
            raise UsageError("labels are flipped to another class, and these data have one alone")
        stream = draws.generator("flips", len(data))
        rows = torch.randperm(len(data), generator=stream)[: count_at(len(data), self.rate)]
        shift = torch.randint(1, classes, (len(rows),), generator=stream)
        flipped = Samples(data.x[rows], (data.y[rows] + shift) % classes)
        return PoisonedDataset.of(data, method=name_of(self), seed=draws.seed, replacing=(rows, flipped))
