"""The contract of a backdoor: a poisoner with a trigger, after which the model answers as the attacker wants."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from typing_extensions import override

from holdfast.attacks.poisoner import Poisoner, count_at
from holdfast.core.draws import Draws
from holdfast.core.errors import UsageError
from holdfast.core.knowledge import Knowledge
from holdfast.core.manifest import Samples
from holdfast.core.registry import name_of
from holdfast.data.dataset import Dataset
from holdfast.data.poisoned import PoisonedDataset
from holdfast.transforms.triggers import Trigger

__all__ = ["Backdoor"]


class Backdoor(Poisoner):
    """Stamps its trigger on a share of the samples of other classes and gives them the target's label.

    That is the dirty-label rule; a backdoor with another one overrides `poison`. Its success is two-fold (survey, Table 2):
    the clean accuracy that is kept, and how often the trigger reaches the target from other classes; neither is told
    without the other.
    """

    target: int

    @abstractmethod
    def trigger(self, shape: Sequence[int]) -> Trigger:
        """The trigger for inputs of a shape: a `Transform`, so that views, scanners and repairs can use it.

        Raises:
            UnsupportedError: it cannot change such inputs.
        """

    @override
    def check(self, data: Dataset) -> None:
        super().check(data)
        if not 0 <= self.target < data.class_count:
            raise UsageError(
                f"there is no class {self.target}: the data have {data.class_count} classes, counted from 0"
            )

    @override
    def poison(self, data: Dataset, knowledge: Knowledge, draws: Draws) -> PoisonedDataset:
        others = (data.y != self.target).nonzero().squeeze(1)
        wanted = count_at(len(data), self.rate)
        if wanted > len(others):
            raise UsageError(
                f"{wanted} samples are to be stamped, and {len(others)} are of other classes than {self.target}"
            )
        order = torch.randperm(len(others), generator=draws.generator("stamped", len(data)))
        rows = others[order[:wanted]]
        with torch.no_grad():
            stamped = self.trigger(data.x.shape[1:]).stamp(data.x[rows])
        new = Samples(stamped, torch.full_like(rows, self.target))
        return PoisonedDataset.of(data, method=name_of(self), seed=draws.seed, replacing=(rows, new))
