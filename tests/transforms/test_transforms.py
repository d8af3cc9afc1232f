"""Transforms against what is known in closed form, and the lift."""

from __future__ import annotations

import colorsys

import pytest
import torch
from torch import Tensor, nn

from holdfast.attacks.engine import run
from holdfast.attacks.evasion.white.fmn import FMN
from holdfast.attacks.evasion.white.pgd import PGD
from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.core.threat import Norm
from holdfast.transforms.colour import BrightnessContrast, HueSaturation, from_hsv, to_hsv
from holdfast.transforms.geometry import RotationTranslation
from holdfast.transforms.lifted import Lifted, lift
from holdfast.transforms.transform import Composition, ImageTransform


def images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def everything(shape: tuple[int, ...]) -> ImageTransform:
    return Composition(HueSaturation(60, 0.4), BrightnessContrast(0.1, 0.3), RotationTranslation(shape, 30, 0.1))


@pytest.mark.parametrize(("quarters", "degrees"), [(1, 90.0), (2, 180.0), (3, 270.0), (-1, -90.0)])
@pytest.mark.parametrize("side", [7, 8])
def test_quarter_turns_are_those_of_rot90(quarters: int, degrees: float, side: int) -> None:
    x = images(2, 3, side, side)
    turned = RotationTranslation((3, side, side), 360, 0)(x, torch.full((2, 1), degrees / 360).double())
    torch.testing.assert_close(turned, torch.rot90(x, quarters, (2, 3)), atol=1e-5, rtol=0)


def test_whole_pixel_shifts_are_shifted_arrays() -> None:
    x = images(1, 2, 6, 10)
    move = RotationTranslation((2, 6, 10), 0, 0.5)  # 5 pixels across, 3 down
    moved = move(x, torch.tensor([[0.4, -1 / 3]]).double())  # 2 to the right, 1 up
    wanted = torch.zeros_like(x)
    wanted[:, :, :-1, 2:] = x[:, :, 1:, :-2]
    torch.testing.assert_close(moved, wanted, atol=1e-6, rtol=0)


def test_hue_saturation_and_value_are_those_of_colorsys() -> None:
    x = images(1, 3, 20, 20)
    x[0, :, 0, 0], x[0, :, 0, 1], x[0, :, 0, 2] = 0.0, 0.5, 1.0  # black, grey, white
    pixels = x[0].flatten(1).T.tolist()
    hsv = torch.stack([c.flatten() for c in to_hsv(x)], 1)
    wanted = torch.tensor([colorsys.rgb_to_hsv(*p) for p in pixels]).double()
    torch.testing.assert_close(hsv, wanted, atol=1e-6, rtol=0)
    torch.testing.assert_close(from_hsv(*to_hsv(x)), x, atol=1e-12, rtol=0)


def test_a_whole_turn_of_the_hue_is_the_identity_and_no_saturation_is_grey() -> None:
    x = images(2, 3, 5, 5)
    turn = HueSaturation(360, 1.0)
    torch.testing.assert_close(turn(x, torch.tensor([[1.0, 0.0]] * 2).double()), x, atol=1e-9, rtol=0)
    grey = turn(x, torch.tensor([[0.3, -1.0]] * 2).double())
    torch.testing.assert_close(grey, x.amax(1, keepdim=True).expand_as(x))


def test_theta_0_is_the_identity_to_the_bit_and_has_the_slope_of_the_transform() -> None:
    x = images(3, 3, 9, 9).float()
    t, theta = everything((3, 9, 9)), torch.zeros(3, 7, requires_grad=True)
    assert torch.equal(t(x, theta.detach()), x)
    t(x, theta).square().sum().backward()
    assert theta.grad is not None
    assert (theta.grad.abs() > 1e-4).all()


def test_slopes_are_those_of_finite_differences() -> None:
    x = images(4, 3, 8, 8)
    t = everything((3, 8, 8))
    theta = 1.6 * images(4, 7) - 0.8
    weight = images(4, 3, 8, 8)
    theta.requires_grad_()
    (t(x, theta) * weight).sum().backward()
    h = 1e-7
    with torch.no_grad():
        for k in range(7):
            step = torch.zeros(4, 7).double()
            step[:, k] = h
            slope = ((t(x, theta + step) - t(x, theta - step)) * weight).sum((1, 2, 3)) / (2 * h)
            assert theta.grad is not None
            torch.testing.assert_close(theta.grad[:, k], slope, atol=1e-5, rtol=1e-4)


def test_brightness_and_contrast_are_clipped_products() -> None:
    x = images(2, 1, 4, 4)
    changed = BrightnessContrast(0.4, 1.0)(x, torch.tensor([[1.0, 0.5], [-0.5, 0.0]]).double())
    torch.testing.assert_close(changed[0], (1.5 * x[0] + 0.4).clamp(0, 1))
    torch.testing.assert_close(changed[1], (x[1] - 0.2).clamp(0, 1))


def test_shapes_and_ranges_are_refused_in_words() -> None:
    with pytest.raises(UnsupportedError, match="3 channels"):
        HueSaturation().check((1, 8, 8))
    with pytest.raises(UnsupportedError, match="images"):
        everything((3, 8, 8)).check((64,))
    with pytest.raises(UsageError, match="nothing can change"):
        HueSaturation(0, 0)
    with pytest.raises(UsageError, match="one name"):
        Composition(HueSaturation(), HueSaturation())


class _Left(nn.Module):
    """Class 1 where the left half is brighter than the right one by 0.2."""

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        return torch.stack(
            [torch.full((len(x),), 0.2, dtype=x.dtype), (x[..., :half] - x[..., half:]).mean((1, 2, 3))], 1
        )


def test_the_lift_pins_the_image_and_steps_along_theta_alone() -> None:
    """One shift to the left changes the class; the l2 step of PGD would be lost among the pixels' gradients otherwise."""
    x = torch.zeros(1, 1, 8, 8).double()
    x[..., 3:7] = 1.0
    t = RotationTranslation((1, 8, 8), 0, 0.25)
    f = Lifted(_Left(), t, (1, 8, 8))
    problem = lift(x, torch.tensor([0]), 2, Norm.L2, 1.0)
    z = problem.x.clone().requires_grad_()
    f(z)[:, 1].sum().backward()
    assert z.grad is not None
    assert not z.grad[:, :64].any()
    assert z.grad[:, 64:].any()
    out = run(PGD(steps=10, random_start=False), problem, f)
    assert out.found.all()
    assert torch.equal(out.x[:, :64], problem.x[:, :64])
    assert out.x[0, 64] < 0


def test_a_minimal_distortion_attack_finds_the_smallest_theta() -> None:
    """The mean of a uniform image crosses 0.6 at brightness + 0.5 contrast = 0.1: the nearest theta is known."""

    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([torch.full((len(x),), 0.6, dtype=x.dtype), x.mean((1, 2, 3))], 1)

    x = torch.full((1, 1, 3, 3), 0.5).double()
    f = Lifted(Mean(), BrightnessContrast(0.4, 0.4), (1, 3, 3))
    out = run(FMN(steps=200), lift(x, torch.tensor([0]), 2, Norm.L2, float("inf")), f)
    normal = torch.tensor([0.4, 0.2]).double()
    assert float(out.distance) == pytest.approx(0.1 / float(normal.norm()), rel=1e-2)
