"""How far a classifier's confidence may be believed, and the temperature that mends it (Guo et al. 2017)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["calibration_error", "temperature_of"]

_BINS = 15
_TEMPERATURES = (0.02, 50.0)
_HALVINGS = 60


def temperature_of(scores: Tensor, y: Tensor) -> float:
    """The temperature with the least cross-entropy on held-out scores (Guo et al. 2017, section 4.2).

    The cross-entropy is convex in 1 / T, so its slope is halved in on.

    Args:
        scores: (m, K) logits.
        y: (m,) labels.

    Example:
        >>> y = torch.tensor([0, 0, 0, 1])  # three quarters are right, the scores claim more
        >>> sure = torch.tensor([[9.0, 0.0]]).expand(4, 2)
        >>> round(9 / temperature_of(sure, y), 3)  # log 3: odds of 3 to 1
        1.099
    """
    z = scores.detach().double()
    low, high = (1 / t for t in reversed(_TEMPERATURES))
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        expected = ((middle * z).softmax(1) * z).sum(1)
        slope = (expected - z.gather(1, y.unsqueeze(1)).squeeze(1)).mean()
        low, high = (middle, high) if float(slope) < 0 else (low, middle)
    return 1 / (low * high) ** 0.5


def calibration_error(scores: Tensor, y: Tensor) -> float:
    """Expected calibration error: how far confidence and accuracy are apart, over 15 bins of equal width (Guo et al. 2017).

    Args:
        scores: (m, K) logits.
        y: (m,) labels.

    Example:
        >>> scores = torch.tensor([[0.8, 0.2]]).log().expand(5, 2)
        >>> round(calibration_error(scores, torch.tensor([0, 0, 0, 0, 1])), 6)  # says 80 %, is right in 80 %
        0.0
    """
    confidence, answer = scores.double().softmax(1).max(1)
    bins = (confidence * _BINS).ceil().long().clamp(1, _BINS) - 1
    gap = torch.zeros(_BINS, dtype=torch.float64, device=scores.device)
    gap.index_add_(0, bins, confidence - (answer == y).double())
    return float(gap.abs().sum() / max(1, len(y)))
