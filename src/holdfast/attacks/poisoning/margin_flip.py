"""Loss-guided label flips: the labels whose change raises the loss of a clean model most (Xiao et al. 2012)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from holdfast.attacks.poisoner import Poisoner, count_at
from holdfast.core.cards import Card, Knows, parameter
from holdfast.core.draws import Draws
from holdfast.core.knowledge import Knowledge
from holdfast.core.manifest import Samples
from holdfast.core.registry import name_of
from holdfast.core.threat import Phase
from holdfast.data.dataset import Dataset
from holdfast.data.poisoned import PoisonedDataset
from holdfast.numerics.evaluation import evaluate

__all__ = ["MarginFlip"]


@dataclass(frozen=True)
class MarginFlip(Poisoner):
    """Flips where it raises the cross-entropy of a clean surrogate most: the label it is surest of, to the least likely."""

    rate: float = parameter(0.1, "share of the samples whose label is flipped, above 0", "ours: one in ten")

    card: ClassVar[Card] = Card(
        title="Loss-guided label flipping",
        rows=("P01",),
        paper="Xiao, Xiao, Eckert 2012, Adversarial Label Flips Attack on Support Vector Machines, ECAI",
        section="2.1",
        summary="Flips the labels of the samples that a clean model is surest of, to the class that it finds least likely.",
        phase=Phase.TRAINING,
        knows=(Knows.SURROGATE,),
        failure_modes=(
            "A filter that drops samples of large loss under a clean model finds exactly these.",
            "It is the furthest-first flip of its paper, one look at a clean model: a search that asks what the flips do to "
            "the trained model, as the paper's ALFA, chooses better.",
        ),
        checked_by="an exhaustive search of the loss on a small set",
    )

    @override
    def poison(self, data: Dataset, knowledge: Knowledge, draws: Draws) -> PoisonedDataset:
        gain, label = _rise(knowledge.known_surrogate(), data)
        rows = gain.argsort(descending=True, stable=True)[: count_at(len(data), self.rate)]
        flipped = Samples(data.x[rows], label[rows])
        return PoisonedDataset.of(data, method=name_of(self), seed=None, replacing=(rows, flipped))


def _rise(surrogate: nn.Module, data: Dataset) -> tuple[Tensor, Tensor]:
    """(n,) by how much the worst wrong label of each sample raises its cross-entropy, and that label."""
    device = next((p.device for p in surrogate.parameters()), torch.device("cpu"))
    scores = evaluate(surrogate, data.x.to(device)).double().cpu()
    loss, own = -scores.log_softmax(1), data.y.unsqueeze(1)
    worst = loss.scatter(1, own, float("-inf")).max(1)
    return worst.values - loss.gather(1, own).squeeze(1), worst.indices
