"""Confidence and temperature, by hand."""

from __future__ import annotations

import math

import torch
from torch import nn

from holdfast.numerics.calibration import calibration_error, temperature_of


def test_the_temperature_is_the_least_cross_entropy():
    scores = 5 * torch.randn(200, 4, generator=torch.Generator().manual_seed(0)).double()
    y = torch.randint(4, (200,), generator=torch.Generator().manual_seed(1))
    y = torch.where(torch.arange(200) % 2 == 0, scores.argmax(1), y)
    best = temperature_of(scores, y)

    def loss(t: float) -> float:
        return nn.functional.cross_entropy(scores / t, y).item()

    assert loss(best) <= min(loss(best * 1.01), loss(best / 1.01))
    assert loss(best) < loss(1.0)


def test_calibration_error_by_hand():
    p = torch.tensor([0.95, 0.95, 0.6, 0.6])
    scores = torch.stack([p, 1 - p], 1).log()
    assert math.isclose(calibration_error(scores, torch.tensor([0, 0, 1, 1])), 0.5 * 0.05 + 0.5 * 0.6, rel_tol=1e-5)
