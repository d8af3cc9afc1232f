"""The contract of a certificate for a training set: edits of it that change no prediction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from holdfast.core.cards import Card
from holdfast.core.verdict import Certificate
from holdfast.data.dataset import Dataset
from holdfast.training.learner import Learner

__all__ = ["CertifiedPredictions", "LearnerCertifier"]


@dataclass(frozen=True, eq=False)
class CertifiedPredictions:
    """What the certified learner answers, and how many edits leave each answer as it is.

    Attributes:
        prediction: (n,) int64 labels; whether they are right is not asked.
        certificates: of each prediction; the radius is the size of a symmetric difference, so that a changed sample counts
            twice. None where not even one edit is proved harmless.
    """

    prediction: Tensor
    certificates: tuple[Certificate | None, ...]


class LearnerCertifier(ABC):
    """A frozen dataclass with a card and parameters.

    Its subject is a training algorithm with its data: the learner that it makes of the given one, for example by voting. The
    contract, which `holdfast.testing.check_learner_certifier` checks: no edits within the radius that a search finds move a
    prediction, the order of the data does not matter, and nothing is drawn.
    """

    card: ClassVar[Card]

    @abstractmethod
    def certify(self, learner: Learner, data: Dataset, x: Tensor) -> CertifiedPredictions:
        """Predictions for inputs, with certificates.

        Args:
            learner: the training algorithm.
            data: the training set.
            x: (n, \\*features) inputs to predict.

        Raises:
            UsageError: the data are too few for the method's settings.
        """
