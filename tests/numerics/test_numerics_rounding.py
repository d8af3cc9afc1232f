"""Numbers that a type holds, between bounds."""

import pytest
import torch

from holdfast.numerics.rounding import held_inside


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_inside_and_held_wherever_the_box_has_such_a_number(dtype):
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(4000, generator=generator, dtype=torch.float64)
    width = torch.rand(4000, generator=generator, dtype=torch.float64) ** 12
    high = low + torch.where(width < 1e-6, 0.0, width)
    for x in (low - 1, low, (low + high) / 2, high, high + 1):
        found = held_inside(x.unsqueeze(0), low, high, dtype)[0]
        assert bool(((low <= found) & (found <= high)).all())
        held = found.to(dtype).double() == found
        least = low.to(dtype)  # the least number of the type at or above the lower bound
        least = torch.where(least.double() < low, torch.nextafter(least, torch.full_like(least, torch.inf)), least)
        assert torch.equal(held, least.double() <= high)


def test_it_moves_no_further_than_to_the_next_number():
    x = torch.tensor([[0.1, -3.0, 2.0]], dtype=torch.float64)
    found = held_inside(x, x[0] - 1, x[0] + 1, torch.float32)
    assert torch.equal(found, x.float().double())
