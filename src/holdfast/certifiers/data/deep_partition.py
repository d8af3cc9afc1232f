"""Deep partition aggregation: one model a part of the data; an edit reaches one part (Levine & Feizi 2021)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.certifiers.learner_certifier import CertifiedPredictions, LearnerCertifier
from holdfast.core.cards import Card, parameter
from holdfast.core.errors import UsageError
from holdfast.core.manifest import Samples
from holdfast.core.threat import Guarantee, Phase
from holdfast.core.verdict import Certificate
from holdfast.data.dataset import Dataset
from holdfast.training.learner import Learner

__all__ = ["DeepPartition"]


@dataclass(frozen=True)
class DeepPartition(LearnerCertifier):
    """Every sample goes to the part that a hash of its bytes names; each part's model has a vote.

    An insertion or a deletion changes one part, so one vote: it moves the lead of a class over another by 2 at most. The
    prediction therefore stands under r edits if ``2 r <= lead``, less one where the other class wins a tie. The hash sees no
    order and no index, and each part is sorted by its bytes; a part without samples has no vote. Edits may give any of the K
    classes that the data have: K is part of the learner.
    """

    parts: int = parameter(50, "parts of the data, at least 1", "Levine & Feizi 2021, CIFAR-10")

    card: ClassVar[Card] = Card(
        title="Deep partition aggregation",
        rows=("C03",),
        paper="Levine, Feizi 2021, Deep Partition Aggregation: Provable Defense against General Poisoning Attacks, ICLR, "
        "arXiv:2006.14768",
        section="3.2",
        summary="Trains a model on each part of the data and proves how many edits cannot turn their vote.",
        phase=Phase.TRAINING,
        guarantee=Guarantee.SOUND,
        failure_modes=(
            "Each model sees one part alone: the more parts, the larger the radii and the lower the clean accuracy.",
            "A flipped label counts as two edits; the paper's SS-DPA, which partitions without looking at labels, certifies "
            "more flips.",
            "The learner must draw nothing that its settings do not key, or the proof is void.",
        ),
        checked_by="greedy and random edits within the radius, which never move a prediction",
    )

    def __post_init__(self) -> None:
        if self.parts < 1:
            raise UsageError(f"the number of parts must be at least 1, got {self.parts}")

    @override
    def certify(self, learner: Learner, data: Dataset, x: Tensor) -> CertifiedPredictions:
        classes = data.class_count
        votes = torch.zeros(len(x), classes, dtype=torch.int64)
        each = torch.arange(len(x))
        for rows in self._parts(data):
            votes[each, learner.learn(data.x[rows], data.y[rows], classes)(x)] += 1
        prediction = votes.argmax(1)  # of equal counts the first
        about = f"votes of {self.parts} parts, counted exactly; each part by {learner.describe()}"
        return CertifiedPredictions(
            prediction,
            tuple(
                Certificate(radius=float(r), guarantee=Guarantee.SOUND, method="deep_partition", arithmetic=about)
                if r >= 1
                else None
                for r in map(int, _radii(votes, prediction))
            ),
        )

    def _parts(self, data: Dataset) -> list[Tensor]:
        """Rows of each part that has some, sorted by their samples' bytes."""
        members: dict[int, list[tuple[bytes, int]]] = {}
        for row, key in enumerate(Samples(data.x, data.y).keys()):
            part = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") % self.parts
            members.setdefault(part, []).append((key, row))
        return [torch.tensor([row for _, row in sorted(members[part])]) for part in sorted(members)]


def _radii(votes: Tensor, prediction: Tensor) -> Tensor:
    """(n,) int64, at least 0: edits under which each prediction stands."""
    own = votes.gather(1, prediction.unsqueeze(1))
    other = torch.arange(votes.shape[1])
    lead = own - votes - (other < prediction.unsqueeze(1)).long()
    lead = lead.scatter(1, prediction.unsqueeze(1), 2 * int(votes.sum(1).max()) + 2)
    return torch.div(lead.amin(1), 2, rounding_mode="floor")
