"""Spectral signatures: poison shows in the top singular direction of its class's representations (Tran et al. 2018)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from holdfast.core.cards import Card
from holdfast.core.threat import Phase
from holdfast.data.dataset import Dataset
from holdfast.defences.sanitiser import Sanitiser
from holdfast.models.penultimate import penultimate

__all__ = ["SpectralSignatures"]

_svd: Callable[..., Any] = torch.linalg.svd  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


@dataclass(frozen=True)
class SpectralSignatures(Sanitiser):
    """The squared projection of each centred representation on its class's top singular direction.

    Scores of a class are counted in their median, so that classes of different spread compare.
    """

    card: ClassVar[Card] = Card(
        title="Spectral signatures",
        rows=("D01",),
        paper="Tran, Li, Madry 2018, Spectral Signatures in Backdoor Attacks, NeurIPS, arXiv:1811.00636",
        section="3.1",
        summary="Ranks the samples of each class by how far they lie along its strongest direction in representation space.",
        phase=Phase.TRAINING,
        failure_modes=(
            "The score is symmetric: where the poison is half of a class, clean samples rank as high.",
            "How much to remove is not known in life; filtering and retraining does not stop a poison of many per cent.",
            "Clean-label and adaptive poisons that hide their representations do not show.",
        ),
        checked_by="a planted shift along one direction, and the singular vectors of NumPy",
    )

    @override
    def scores(self, data: Dataset, model: nn.Module | None = None) -> Tensor:
        features = penultimate(self.needed(model), data.x)
        scores = torch.zeros(len(data), dtype=torch.float64)
        for label in range(int(data.y.max()) + 1):
            rows = (data.y == label).nonzero().squeeze(1)
            if len(rows) > 1:
                scores[rows] = _signature(features[rows])
        return scores


def _signature(features: Tensor) -> Tensor:
    """(n,) squared projections on the top right singular vector of the centred matrix, over their median."""
    centred = features - features.mean(0)
    squares = (centred @ _svd(centred, full_matrices=False)[2][0]).square()
    # Where most representations are equal the median is rounding: no score may be made of that.
    rounding = (torch.finfo(torch.float64).eps * features.abs().amax()).square() * features.shape[1]
    return squares / squares.median().clamp_min(rounding).clamp_min(torch.finfo(torch.float64).tiny)
