"""Steepest steps, bisection and keyed uniform draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from holdfast.core.draws import Draws
from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.numerics.distance import between, contains, distance, dual_norm
from holdfast.numerics.sampling import uniform_in_ball
from holdfast.numerics.search import bisect
from holdfast.numerics.steps import pinned_by_box, steepest


@pytest.mark.parametrize("norm", [Norm.L1, Norm.L2, Norm.LINF])
@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1.0, 1e30])
def test_steepest_attains_the_dual_norm(norm: Norm, scale: float) -> None:
    grad = torch.randn(5, 2, 4, generator=torch.Generator().manual_seed(0)) * scale
    step = steepest(norm, grad)
    assert step.dtype == grad.dtype
    assert torch.allclose(
        distance(norm, step), torch.ones(5, dtype=torch.float64), rtol=1e-3 if scale < 1e-40 else 1e-6
    )
    gain = (grad.double() * step.double()).flatten(1).sum(1)
    assert torch.allclose(
        gain / dual_norm(norm, grad), torch.ones(5, dtype=torch.float64), rtol=1e-3 if scale < 1e-40 else 1e-6
    )


@pytest.mark.parametrize("norm", [Norm.L1, Norm.L2, Norm.LINF])
def test_steepest_without_a_gradient(norm: Norm) -> None:
    grad = torch.tensor([[0.0, 0.0], [float("nan"), 0.0], [float("nan"), 2.0]])
    step = steepest(norm, grad)
    assert step.tolist() == [[0.0, 0.0], [0.0, 0.0], [0.0, 1.0]]


def test_l1_share() -> None:
    grad = torch.arange(1.0, 11).repeat(3, 1)
    grad[:, ::2] *= -1
    for share, count in ((0.0, 1), (0.3, 3), (0.25, 3), (1.0, 10)):
        step = steepest(Norm.L1, grad, share=share)
        assert (step != 0).sum(1).tolist() == [count] * 3
        assert torch.allclose(distance(Norm.L1, step), torch.ones(3, dtype=torch.float64))
        assert torch.equal(step.sign()[step != 0], grad.sign()[step != 0])
    each = steepest(Norm.L1, grad, share=torch.tensor([0.0, 0.5, 1.0]))
    assert (each != 0).sum(1).tolist() == [1, 5, 10]
    assert torch.equal(each[1], steepest(Norm.L1, grad, share=0.5)[1])


def test_pinned_features_do_not_move() -> None:
    ball = LpBall.uniform(Norm.L1, 1.0, 1, mask=torch.tensor([[True, True, True, False]]))
    x = torch.tensor([[1.0, 0.0, 0.5, 0.5]])
    grad = torch.tensor([[9.0, 8.0, 1.0, 7.0]])
    pinned = pinned_by_box(ball, x, x, grad)
    assert pinned.tolist() == [[True, False, False, True]]
    assert steepest(Norm.L1, grad, pinned=pinned).tolist() == [[0.0, 1.0, 0.0, 0.0]]
    assert steepest(Norm.LINF, grad, pinned=pinned).tolist() == [[0.0, 1.0, 1.0, 0.0]]


def test_l0_has_no_steepest_step() -> None:
    with pytest.raises(UnsupportedError, match="l0"):
        steepest(Norm.L0, torch.ones(1, 2))


def test_bisect_keeps_the_invariant_and_works_both_ways() -> None:
    root = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    asked = []

    def holds(v: torch.Tensor) -> torch.Tensor:
        asked.append(v)
        return v >= root

    low, high = bisect(holds, torch.zeros(3).double(), torch.ones(3).double(), 30)
    assert len(asked) == 30
    assert (high >= root).all()
    assert (low < root).all()
    assert ((high - low) <= 2.0**-29).all()
    low, high = bisect(lambda v: v <= root, torch.ones(3).double(), torch.zeros(3).double(), 30)
    assert (high <= root).all()
    assert ((low - high) <= 2.0**-29).all()


def ball_and_x(norm: Norm, eps: float, n: int, d: int, **more: object) -> tuple[LpBall, torch.Tensor]:
    return LpBall.uniform(norm, eps, n, -100, 100, dtype=torch.float64, **more), torch.zeros(n, d, dtype=torch.float64)


@pytest.mark.parametrize("norm", [Norm.L1, Norm.L2, Norm.LINF])
def test_uniform_in_ball(norm: Norm) -> None:
    n, d, eps = 4000, 5, 0.7
    ball, x = ball_and_x(norm, eps, n, d)
    z = uniform_in_ball(ball, x, Draws(1, "test").of(range(n)), "start")
    assert contains(ball, z, x).all()
    # The share of volume within radius r is (r/eps)^d, so its d-th power is uniform: 5 sigma tests of one seed.
    share = (between(norm, z, x) / eps) ** d
    assert kstest(share.numpy(), "uniform").pvalue > 1e-5
    for i in range(d):
        assert abs((z[:, i] > 0).double().mean() - 0.5) < 5 * 0.5 / n**0.5
    # Exchangeable coordinates, and the direction is independent of the radius.
    sizes = z.abs()
    assert abs(np.corrcoef(share, (sizes[:, 0] / sizes.sum(1)))[0, 1]) < 5 / n**0.5
    reference = torch.rand(400_000, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    inside = reference[distance(norm, reference) <= 1] * eps
    assert kstest(z[:, 0].numpy(), inside[:, 0].numpy()).pvalue > 1e-5


@pytest.mark.parametrize("norm", list(Norm))
def test_draws_do_not_depend_on_the_batch(norm: Norm) -> None:
    n = 6
    x = torch.rand(n, 3, 4, generator=torch.Generator().manual_seed(0))
    eps = torch.linspace(1, 3, n, dtype=torch.float64) * (1.0 if norm is Norm.L0 else 0.1)
    ball = LpBall(norm=norm, eps=eps, lower=torch.tensor(0.0), upper=torch.tensor(1.0))
    whole = uniform_in_ball(ball, x, Draws(3, "a").of(range(n)), "start", step=2)
    assert contains(ball, whole, x).all()
    for rows in ([5], [4, 0], [3, 2, 1]):
        at = torch.tensor(rows)
        part = uniform_in_ball(ball.select(at), x[at], Draws(3, "a").of(rows), "start", step=2)
        assert torch.equal(part, whole[at])
    other = uniform_in_ball(ball, x, Draws(3, "a").of(range(n), rounds=1), "start", step=2)
    assert not torch.equal(other, whole)


@pytest.mark.parametrize("norm", list(Norm))
def test_masked_draws(norm: Norm) -> None:
    n, d = 2000, 8
    mask = torch.zeros(1, d, dtype=torch.bool)
    mask[:, :3] = True
    ball, x = ball_and_x(norm, 2.0, n, d, mask=mask)
    z = uniform_in_ball(ball, x, Draws(1, "test").of(range(n)), "start")
    assert contains(ball, z, x).all()
    assert (z[:, 3:] == 0).all()
    if norm is Norm.L0:
        assert ((z != 0).sum(1) == 2).all()
    else:
        assert kstest(((between(norm, z, x) / 2) ** 3).numpy(), "uniform").pvalue > 1e-5


def test_l0_draws_fill_the_box() -> None:
    ball = LpBall.uniform(Norm.L0, 3, 2000, 0.25, 0.75)
    x = torch.full((2000, 6), 0.5)
    z = uniform_in_ball(ball, x, Draws(1, "test").of(range(2000)), "start")
    changed = z != x
    assert (changed.sum(1) == 3).all()
    assert kstest((z[changed].double().numpy() - 0.25) * 2, "uniform").pvalue > 1e-5
    assert (changed.double().mean(0) - 0.5).abs().max() < 5 * 0.5 / 2000**0.5


def test_no_uniform_draw_of_an_infinite_ball() -> None:
    draws = Draws(0, "t").of([0])
    with pytest.raises(UsageError, match="finite eps"):
        uniform_in_ball(LpBall.uniform(Norm.L2, float("inf"), 1), torch.zeros(1, 2), draws, "s")
    with pytest.raises(UsageError, match="box must be finite"):
        uniform_in_ball(LpBall.uniform(Norm.L0, 1, 1, -float("inf"), 1), torch.zeros(1, 2), draws, "s")
