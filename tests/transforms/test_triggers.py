"""Triggers do what their papers write, and nothing else."""

from __future__ import annotations

from math import pi, sin

import pytest
import torch

from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.transforms.triggers import Overlay, Sinusoid, Trigger

X = torch.rand(3, 2, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TRIGGERS = (Overlay.patch((2, 6, 6), side=2), Overlay.blend(torch.rand(2, 6, 6)), Sinusoid(0.2, 1.0))


def test_a_patch_changes_its_square_alone() -> None:
    patch = Overlay.patch((2, 6, 6), side=2, value=0.75)
    after = patch.stamp(X)
    assert (after[..., 4:, 4:] == 0.75).all()
    outside = torch.ones(6, 6, dtype=torch.bool)
    outside[4:, 4:] = False
    assert torch.equal(after[..., outside], X[..., outside])
    assert patch.covered == 4


def test_a_blend_is_the_weighted_mean() -> None:
    key = torch.rand(2, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(Overlay.blend(key, 0.3).stamp(X), 0.7 * X + 0.3 * key, atol=1e-7, rtol=0)


def test_a_sinusoid_is_the_paper_s_wave_clipped_to_the_range() -> None:
    after = Sinusoid(0.3, 2.0).stamp(X)
    for j in range(6):
        wave = 0.3 * sin(2 * pi * 2 * j / 6)
        torch.testing.assert_close(after[..., j], (X[..., j] + wave).clamp(0, 1), atol=1e-12, rtol=0)


@pytest.mark.parametrize("trigger", TRIGGERS, ids=lambda t: type(t).__name__)
def test_a_trigger_keeps_the_range_the_dtype_and_its_input(trigger: Trigger) -> None:
    for x in (X, X.float()):
        before = x.clone()
        after = trigger(x, x.new_zeros(len(x), 0))
        assert after.dtype == x.dtype
        assert ((after >= 0) & (after <= 1)).all()
        assert torch.equal(x, before)
        assert not torch.equal(after, x)


def test_a_trigger_lets_gradients_through() -> None:
    x = X.clone().requires_grad_()
    Overlay.patch((2, 6, 6), side=2).stamp(x).sum().backward()
    assert x.grad is not None
    assert (x.grad[..., 4:, 4:] == 0).all()
    assert (x.grad[..., :4, :] == 1).all()


def test_what_makes_no_trigger_is_refused() -> None:
    with pytest.raises(UsageError, match="side 9 does not fit"):
        Overlay.patch((1, 8, 8), side=9)
    with pytest.raises(UsageError, match="opacity"):
        Overlay.blend(torch.zeros(1), 0.0)
    with pytest.raises(UsageError, match="mask must lie"):
        Overlay(torch.tensor([2.0]), torch.tensor([1.0]))
    with pytest.raises(UsageError, match="amplitude"):
        Sinusoid(0.0)
    with pytest.raises(UsageError, match="0 in every column"):
        Sinusoid(0.1, 6.0).stamp(X)
    with pytest.raises(UnsupportedError, match="changes images"):
        Sinusoid().stamp(torch.zeros(1, 4))
