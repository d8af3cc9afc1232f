"""What runs at each step of an attack never waits for the device: tensors without values prove it."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from holdfast.core.sets import LpBall
from holdfast.core.threat import Goal, Norm
from holdfast.numerics.affine import affine_optimum
from holdfast.numerics.distance import contains, within
from holdfast.numerics.hyperplane import project_on_hyperplane
from holdfast.numerics.losses import LOSSES, pick_loss
from holdfast.numerics.project import linf_bounds, project
from holdfast.numerics.search import bisect
from holdfast.numerics.steps import pinned_by_box, steepest


def on_meta(norm: Norm) -> tuple[LpBall, Tensor]:
    x = torch.rand(4, 3, 5, device="meta")
    mask = torch.ones(1, 3, 5, dtype=torch.bool, device="meta")
    return LpBall.uniform(norm, 0.5, 4, grid=Fraction(1, 255), mask=mask, device="meta"), x


@pytest.mark.parametrize("norm", list(Norm))
def test_sets_are_not_read_back(norm: Norm) -> None:
    ball, x = on_meta(norm)
    assert project(ball, x, x).shape == x.shape
    assert contains(ball, x, x).shape == (4,)
    assert within(x, *linf_bounds(ball, x)).shape == (4,)
    offset = torch.rand(4, device="meta")
    assert project_on_hyperplane(norm, x, x, offset, ball.lower, ball.upper).shape == x.shape
    if norm is not Norm.L0:
        share = torch.rand(4, device="meta")
        assert steepest(norm, x, share=share, pinned=pinned_by_box(ball, x, x, x)).shape == x.shape
    y = torch.zeros(4, dtype=torch.int64, device="meta")
    weight = torch.rand(3, 15, device="meta")
    assert affine_optimum(norm, weight, weight[:, 0], x, y, ball.lower, ball.upper).distance.shape == (4,)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_losses_are_not_read_back(name: str) -> None:
    scores = torch.rand(4, 6, device="meta")
    y = torch.zeros(4, dtype=torch.int64, device="meta")
    for goal in Goal:
        assert pick_loss(name, goal, 6)[0](scores, y, y).shape == (4,)


def test_bisection_is_not_read_back() -> None:
    ends = torch.rand(4, device="meta")
    holds: Callable[[Tensor], Tensor] = lambda v: v > ends  # noqa: E731
    assert bisect(holds, ends, ends, 3)[0].shape == (4,)


def test_a_value_read_back_would_be_caught() -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        bool(torch.rand(2, device="meta").any())
