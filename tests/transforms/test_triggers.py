"""Triggers do what their papers write, and nothing else."""

from __future__ import annotations

from math import pi, sin

import pytest
import torch
from torch import nn

from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.models.fingerprint import fingerprint
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


def test_a_patch_may_fill_the_shorter_side_of_an_image_that_is_not_square() -> None:
    after = Overlay.patch((1, 2, 4), side=2).stamp(torch.zeros(1, 1, 2, 4))
    assert after.flatten().tolist() == [0, 0, 1, 1, 0, 0, 1, 1]


def test_what_a_trigger_covers_is_the_size_of_its_mask_and_not_how_many_features_it_touches() -> None:
    assert Overlay(torch.tensor([[0.5, 0.25], [0.0, 1.0]]), torch.tensor(1.0)).covered == 1.75


def test_a_blend_of_full_opacity_is_the_pattern() -> None:
    key = torch.rand(2, 6, 6, dtype=torch.float64)
    assert torch.equal(Overlay.blend(key, 1.0).stamp(X[:1])[0], key)


def test_a_sinusoid_is_clipped_to_the_range_that_it_was_given() -> None:
    wide = Sinusoid(100.0, 1.0, low=-50.0, high=255.0).stamp(torch.full((1, 1, 1, 4), 200.0))
    assert wide.flatten().tolist() == [200, 255, 200, 100]
    assert Sinusoid(100.0, 1.0, low=-50.0).stamp(torch.full((1, 1, 1, 4), 0.5)).flatten().tolist() == [0.5, 1, 0.5, -50]


@pytest.mark.parametrize("trigger", TRIGGERS, ids=lambda t: type(t).__name__)
def test_a_trigger_keeps_the_range_the_dtype_and_its_input(trigger: Trigger) -> None:
    for x in (X, X.float()):
        before = x.clone()
        after = trigger(x, x.new_zeros(len(x), 0))
        assert after.dtype == x.dtype
        assert ((after >= 0) & (after <= 1)).all()
        assert torch.equal(x, before)
        assert not torch.equal(after, x)


def test_a_pattern_of_another_type_leaves_the_inputs_theirs() -> None:
    trigger = Overlay(torch.tensor(0.5, dtype=torch.float64), torch.ones(2, 6, 6, dtype=torch.float64))
    assert trigger.stamp(X.float()).dtype == torch.float32


def test_the_mask_and_the_pattern_are_part_of_the_identity_of_what_holds_them() -> None:
    one, other, moved = Overlay.blend(X[0], 0.5), Overlay.blend(X[1], 0.5), Overlay.blend(X[0], 0.25)
    assert len({fingerprint(nn.Sequential(trigger)) for trigger in (one, other, moved)}) == 3


def test_a_trigger_lets_gradients_through() -> None:
    x = X.clone().requires_grad_()
    Overlay.patch((2, 6, 6), side=2).stamp(x).sum().backward()
    assert x.grad is not None
    assert (x.grad[..., 4:, 4:] == 0).all()
    assert (x.grad[..., :4, :] == 1).all()


@pytest.mark.parametrize("side", [-1, 0, 3, 4])
def test_a_patch_that_is_none_or_larger_than_the_shorter_side_is_refused(side: int) -> None:
    with pytest.raises(UsageError, match=f"side {side} does not fit images of 2 x 4"):
        Overlay.patch((1, 2, 4), side=side)


@pytest.mark.parametrize("mask", [[2.0], [-0.5], [0.5, 1.5], [0.5, -1.0], [float("nan")]])
def test_a_mask_of_which_any_value_leaves_its_range_is_refused(mask: list[float]) -> None:
    with pytest.raises(UsageError, match="mask must lie"):
        Overlay(torch.tensor(mask), torch.tensor(1.0))


@pytest.mark.parametrize("opacity", [0.0, 1.2, float("nan")])
def test_an_opacity_of_nothing_or_of_more_than_all_is_refused(opacity: float) -> None:
    with pytest.raises(UsageError, match="above 0 and at most 1, got"):
        Overlay.blend(torch.zeros(1), opacity)


@pytest.mark.parametrize("amplitude", [0.0, -0.1, float("nan")])
def test_a_wave_without_a_height_is_refused(amplitude: float) -> None:
    with pytest.raises(UsageError, match="amplitude of a sinusoid must be above 0"):
        Sinusoid(amplitude)


@pytest.mark.parametrize("frequency", [0.0, 3.0, 6.0])  # with 3 waves in 6 columns, each column is at a zero crossing
def test_a_wave_that_is_zero_in_every_column_is_refused(frequency: float) -> None:
    with pytest.raises(UsageError, match="0 in every column of a width of 6; give another frequency"):
        Sinusoid(0.1, frequency).stamp(X)


@pytest.mark.parametrize("shape", [(1, 4), (1, 4, 4), (1, 1, 1, 4, 4)])
def test_triggers_of_images_refuse_what_is_none(shape: tuple[int, ...]) -> None:
    with pytest.raises(UnsupportedError, match="changes images"):
        Sinusoid().stamp(torch.zeros(shape))
    with pytest.raises(UnsupportedError, match="changes images"):
        Overlay.patch(shape[1:])
