"""The projected step."""

from __future__ import annotations

import pytest
import torch

from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.numerics.ascent import step
from holdfast.numerics.distance import contains, dual_norm
from holdfast.numerics.project import linf_bounds

SIZE = {Norm.L0: 2.0, Norm.L1: 0.3, Norm.L2: 0.25, Norm.LINF: 0.1}


def _case(norm: Norm) -> tuple[LpBall, torch.Tensor, torch.Tensor]:
    stream = torch.Generator().manual_seed(0)
    x = 0.4 + 0.2 * torch.rand(6, 2, 4, generator=stream, dtype=torch.float64)
    grad = torch.randn(6, 2, 4, generator=stream, dtype=torch.float64)
    return LpBall.uniform(norm, SIZE[norm], 6, dtype=torch.float64), x, grad


@pytest.mark.parametrize("norm", [Norm.L1, Norm.L2, Norm.LINF])
def test_a_step_of_the_radius_reaches_the_optimum_of_a_linear_function(norm: Norm) -> None:
    ball, x, grad = _case(norm)
    gain = (grad * (step(ball, x, grad, x, SIZE[norm]) - x)).flatten(1).sum(1)
    torch.testing.assert_close(gain, SIZE[norm] * dual_norm(norm, grad), rtol=1e-12, atol=0)


def test_in_l0_the_features_that_gain_most_go_to_the_end_of_the_box() -> None:
    ball, x, grad = _case(Norm.L0)
    after = step(ball, x, grad, x, 1.0)
    top = grad.flatten(1).abs().topk(2).indices
    changed = (after != x).flatten(1)
    assert (changed.sum(1) == 2).all()
    assert changed.gather(1, top).all()
    first = top[:, 0]
    assert torch.isin(after.flatten(1).gather(1, first[:, None]), torch.tensor([0.0, 1.0]).double()).all()


def test_in_l0_the_largest_entry_moves_by_the_length_and_the_others_in_proportion() -> None:
    ball = LpBall.uniform(Norm.L0, 4.0, 2)  # as many as there are features: the projection leaves the step as it is
    x, grad = torch.full((2, 4), 0.5), torch.tensor([[-400.0, 200.0, 0.0, 100.0], [0.0, 0.0, 0.0, 0.0]])
    after = step(ball, x, grad, x, 0.25)
    assert after.tolist() == [[0.25, 0.625, 0.5, 0.5625], [0.5, 0.5, 0.5, 0.5]]


def test_a_step_stays_near_the_clean_input_and_not_near_the_iterate() -> None:
    origin = torch.tensor([[0.5, 0.5]])
    x = origin + torch.tensor([[0.25, 0.0]])
    for norm in (Norm.LINF, Norm.L2, Norm.L1):
        after = step(LpBall.uniform(norm, 0.25, 1), x, torch.tensor([[1.0, 0.0]]), origin, 0.125)
        assert after[0, 0].item() == pytest.approx(0.75, abs=1e-6)
    moved = step(LpBall.uniform(Norm.L0, 1.0, 1), x, torch.tensor([[0.0, 9.0]]), origin, 0.125)
    assert (moved != origin).sum() == 1  # of the two that the iterate and the step have changed


@pytest.mark.parametrize("norm", list(Norm))
def test_a_long_step_ends_inside_and_leaves_the_iterate_as_it_was(norm: Norm) -> None:
    ball, x, grad = _case(norm)
    before = x.clone()
    assert contains(ball, step(ball, x, 1e3 * grad, x, 7.0), x).all()
    assert torch.equal(x, before)


def test_bounds_at_hand_are_the_projection() -> None:
    ball, x, grad = _case(Norm.LINF)
    one = step(ball, x, grad, x, 0.3)
    assert torch.equal(one, step(ball, x, grad, x, 0.3, bounds=linf_bounds(ball, x)))


def test_pinned_features_do_not_move_in_l1() -> None:
    ball, x, grad = _case(Norm.L1)
    pinned = torch.zeros_like(x, dtype=torch.bool)
    pinned[..., 0] = True
    after = step(ball, x, grad, x, 0.2, sparsity=1.0, pinned=pinned)
    assert torch.equal(after[..., 0], x[..., 0])
    assert (after[..., 1:] != x[..., 1:]).all()
