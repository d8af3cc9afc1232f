"""Projections are inside without tolerance, the identity inside, idempotent and nearest."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from holdfast.core.errors import UsageError
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.numerics.distance import between, box, contains, distance, dual_norm, measured, on_grid, within
from holdfast.numerics.project import linf_bounds, project, snap_to_grid

NORMS = list(Norm)
DTYPES = [torch.float32, torch.float64]


def random_case(
    seed: int, norm: Norm, dtype: torch.dtype, d: int = 40, n: int = 16, scale: float = 1.0, masked: bool = False
) -> tuple[LpBall, Tensor, Tensor]:
    """Radii, clean points (some on the edges of the box) and far points with ties and zeros among the changes."""
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(n, d, generator=g, dtype=dtype)
    x[:, ::5] = x[:, ::5].round()
    delta = torch.randn(n, d, generator=g, dtype=dtype) * scale
    delta[:, 1::7] = 0
    delta[:, 2::9] = 0.25
    eps = (
        torch.rand(n, generator=g, dtype=torch.float64) * {Norm.L0: d, Norm.L1: d / 8, Norm.L2: 2, Norm.LINF: 0.3}[norm]
    )
    mask = torch.rand(n, d, generator=g) < 0.7 if masked else None
    return LpBall(norm=norm, eps=eps, lower=torch.tensor(0.0), upper=torch.tensor(1.0), mask=mask), x + delta, x


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([1e-9, 1e-4, 0.02, 1.0, 1e6]), masked=st.booleans())
@settings(max_examples=40, deadline=None)
def test_inside_and_idempotent(norm: Norm, dtype: torch.dtype, seed: int, scale: float, masked: bool) -> None:
    ball, far, x = random_case(seed, norm, dtype, scale=scale, masked=masked)
    ball = ball.with_eps(ball.eps * (scale if norm is not Norm.L0 and scale < 1 else 1.0))
    z = project(ball, far, x)
    assert z.dtype == dtype
    assert contains(ball, z, x).all()
    assert torch.equal(project(ball, z, x), z)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_identity_inside(norm: Norm, dtype: torch.dtype, seed: int) -> None:
    ball, far, x = random_case(seed, norm, dtype, scale=0.3)
    z = project(ball, far, x)
    inner = x + (z - x) * 0.5 if norm is not Norm.L0 else torch.where(torch.arange(40) < 20, z, x)
    inside = contains(ball, inner, x)
    assert inside.any()
    assert torch.equal(project(ball, inner, x)[inside], inner[inside])
    # A point on the box side of the ball loses only what the box cuts off.
    big = ball.unbounded()
    assert torch.equal(project(big, far, x), far.clamp(0, 1))


@pytest.mark.parametrize("norm", [Norm.L1, Norm.L2, Norm.LINF])
@pytest.mark.parametrize("seed", range(8))
def test_nearest_by_slsqp(norm: Norm, seed: int) -> None:
    ball, far, x = random_case(seed, norm, torch.float64, d=6, n=1, masked=seed % 2 == 1)
    ball = ball.with_eps({Norm.L1: 0.6, Norm.L2: 0.4, Norm.LINF: 0.2}[norm])
    z = project(ball, far, x)
    low, high = (t.expand_as(x)[0].numpy() for t in box(ball, x))
    x0, p, eps = x[0].numpy(), far[0].numpy(), float(ball.eps)
    # delta = up - down makes the l1 and linf balls smooth.
    size = {
        Norm.L1: lambda v: eps - v.sum(),
        Norm.L2: lambda v: eps**2 - ((v[:6] - v[6:]) ** 2).sum(),
        Norm.LINF: lambda v: (eps - v).min(),
    }[norm]
    bounds = [(0, max(h - c, 0)) for h, c in zip(high, x0, strict=True)]
    bounds += [(0, max(c - w, 0)) for w, c in zip(low, x0, strict=True)]
    if norm is Norm.LINF:
        bounds, constraints = [(a, min(b, eps)) for a, b in bounds], []
    else:
        constraints = [{"type": "ineq", "fun": size}]
    best = minimize(
        lambda v: ((x0 + v[:6] - v[6:] - p) ** 2).sum(), np.zeros(12), bounds=bounds, constraints=constraints,
        method="SLSQP", options={"ftol": 1e-14, "maxiter": 500},
    )  # fmt: skip
    found = float((z[0] - far[0]).square().sum())
    assert found <= best.fun * (1 + 1e-6) + 1e-9
    assert contains(ball, z, x).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_sampled_point_is_nearer(norm: Norm, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(3)
    x = torch.tensor([[0.5, 0.05, 1.0]], dtype=dtype)
    far = torch.tensor([[1.7, -0.4, 0.2]], dtype=dtype)
    ball = LpBall.uniform(norm, {Norm.L0: 2, Norm.L1: 0.9, Norm.L2: 0.7, Norm.LINF: 0.3}[norm], 1, dtype=dtype)
    found = (project(ball, far, x) - far).square().sum()
    points = torch.rand(400_000, 3, generator=g, dtype=dtype)
    if norm is Norm.L0:
        points = torch.where(torch.rand(400_000, 3, generator=g) < 0.5, points, x)
    inside = distance(norm, points - x) <= ball.eps
    assert inside.sum() > 1000
    nearest = (points[inside] - far).square().sum(1).min()
    assert found <= nearest + 1e-6
    assert nearest - found < 0.05  # the samples are dense enough to mean something


def test_l0_keeps_gains_not_sizes() -> None:
    # The first wants to move far but the box stops it: its gain is small although its change is the largest wanted.
    x = torch.tensor([[0.99, 0.5, 0.5]])
    far = torch.tensor([[1.30, 0.8, 0.55]])
    z = project(LpBall.uniform(Norm.L0, 1, 1), far, x)
    # gains: .31^2 - .30^2 = .0061 and .3^2 = .09
    assert torch.equal(z, torch.tensor([[0.99, 0.8, 0.5]]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_l1_worst_cases(dtype: torch.dtype) -> None:
    d = 1000
    x = torch.full((6, d), 0.5, dtype=dtype)
    far = x.clone()
    far[0] += 0.25  # all equal
    far[1, :500] += 0.25  # ties with zeros
    x[2], far[2] = 1.0, 3.0  # every feature at the edge it wants to pass
    x[3], far[3] = 1.0, -3.0  # every feature free for the whole box, wanted far outside
    far[4, 0] = 1e8  # one feature saturated, the rest small
    far[4, 1:] += 1e-6
    far[5] += torch.logspace(-12, 6, d, dtype=dtype)  # eighteen orders of magnitude
    ball = LpBall.uniform(Norm.L1, 12.0, 6, dtype=dtype)
    z = project(ball, far, x)
    assert contains(ball, z, x).all()
    size = between(Norm.L1, z, x)
    assert torch.allclose(z[0] - x[0], torch.full((d,), 0.012, dtype=dtype), atol=1e-6)
    assert torch.allclose(z[1, :500] - x[1, :500], torch.full((500,), 0.024, dtype=dtype), atol=1e-6)
    assert torch.equal(z[1, 500:], x[1, 500:])
    assert torch.equal(z[2], x[2])
    assert size[3] == pytest.approx(12, abs=1e-4)
    assert z[4, 0] == 1.0
    assert size[4] == pytest.approx(0.5 + 1e-6 * 999, rel=0.05)
    assert size[5] == pytest.approx(12, abs=1e-4)
    assert (z[5, -24:] == 1).sum() >= 23


@pytest.mark.parametrize("norm", NORMS)
def test_radius_zero_and_empty_batch(norm: Norm) -> None:
    x = torch.rand(3, 5)
    ball = LpBall.uniform(norm, 0.0, 3)
    assert torch.equal(project(ball, x + 1, x), x)
    assert contains(ball, x, x).all()
    none = LpBall.uniform(norm, 0.1, 0)
    assert project(none, x[:0], x[:0]).shape == (0, 5)
    assert contains(none, x[:0], x[:0]).shape == (0,)


@pytest.mark.parametrize("norm", NORMS)
def test_each_sample_has_its_own_radius_and_answer(norm: Norm) -> None:
    ball, far, x = random_case(5, norm, torch.float32)
    together = project(ball, far, x)
    for i in range(len(x)):
        row = torch.tensor([i])
        assert torch.equal(project(ball.select(row), far[row], x[row]), together[row])


@pytest.mark.parametrize("norm", NORMS)
def test_image_shapes_and_per_feature_bounds(norm: Norm) -> None:
    g = torch.Generator().manual_seed(1)
    x = torch.rand(4, 3, 5, 5, generator=g)
    lower, upper = (x - 0.1 * torch.rand(1, 3, 1, 1, generator=g)), x + 0.05
    eps = {Norm.L0: 9, Norm.L1: 1.5, Norm.L2: 0.3, Norm.LINF: 0.07}[norm]
    mask = torch.zeros(1, 1, 5, 5, dtype=torch.bool)
    mask[..., 1:4, 1:4] = True
    ball = LpBall(norm=norm, eps=torch.full((4,), eps, dtype=torch.float64), lower=lower, upper=upper, mask=mask)
    z = project(ball, x + torch.randn(4, 3, 5, 5, generator=g), x)
    assert contains(ball, z, x).all()
    flat = LpBall(
        norm=norm, eps=ball.eps, lower=lower.flatten(1), upper=upper.flatten(1), mask=mask.expand_as(x).flatten(1)
    )
    assert contains(flat, z.flatten(1), x.flatten(1)).all()
    assert torch.equal(z[:, :, 0], x[:, :, 0])


@pytest.mark.parametrize("norm", NORMS)
def test_contains_has_no_tolerance(norm: Norm) -> None:
    x = torch.full((1, 4), 0.5, dtype=torch.float64)
    eps = {Norm.L0: 1, Norm.L1: 0.25, Norm.L2: 0.25, Norm.LINF: 0.25}[norm]
    ball = LpBall.uniform(norm, eps, 1)
    edge = x.clone()
    edge[0, 0] = 0.75
    assert contains(ball, edge, x).all()
    over = edge.clone()
    if norm is Norm.L0:
        over[0, 1] = np.nextafter(0.5, 1)
    else:
        over[0, 0] = np.nextafter(0.75, 1)
    assert not contains(ball, over, x).any()


def test_contains_refuses_what_is_not_finite_outside_the_box_or_masked() -> None:
    inf = float("inf")
    x = torch.full((5, 2), 0.5)
    bad = x.clone()
    bad[:, 0] = torch.tensor([float("nan"), inf, -inf, 1.0000001, 0.5])
    for norm in NORMS:
        ball = LpBall.uniform(norm, inf, 5)
        assert contains(ball, bad, x).tolist() == [False] * 4 + [True]
        open_box = LpBall.uniform(norm, inf, 5, -inf, inf)
        assert contains(open_box, bad, x).tolist() == [False] * 3 + [True] * 2
        masked = replace(ball, mask=torch.tensor([[False, True]]))
        assert contains(masked, x + torch.tensor([1e-6, 0.0]), x).tolist() == [False] * 5


@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=st.integers(0, 10**6), eps=st.sampled_from([0.0, 1e-8, 0.1, 8 / 255, 1 / 3, 0.5]), negative=st.booleans())
@settings(max_examples=40, deadline=None)
def test_linf_bounds_are_tight_and_inside(dtype: torch.dtype, seed: int, eps: float, negative: bool) -> None:
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(3, 200, generator=g, dtype=dtype) - (0.5 if negative else 0.0)
    ball = LpBall.uniform(Norm.LINF, eps, 3, -1.0 if negative else 0.0, 1.0)
    low, high = linf_bounds(ball, x)
    for edge, out in ((low, -9.0), (high, 9.0)):
        assert contains(ball, edge, x).all()
        assert within(edge, low, high).all()
        beyond = torch.nextafter(torch.nextafter(edge, torch.full_like(x, out)), torch.full_like(x, out))
        reachable = (beyond >= ball.lower) & (beyond <= ball.upper)
        # One part in 2^52 for the rounding of the test's own difference.
        assert ((beyond.double() - x.double()).abs()[reachable] >= eps * (1 - 2.0**-52)).all()


def test_bounds_wider_than_the_dtype_are_rounded_inward() -> None:
    low64, high64 = torch.full((1, 3), 0.1).double() + 1e-9, torch.full((1, 3), 0.7).double() - 1e-9
    x = torch.full((1, 3), 0.5)
    ball = LpBall(norm=Norm.L2, eps=torch.tensor([5.0], dtype=torch.float64), lower=low64, upper=high64)
    for far in (x + 9, x - 9):
        z = project(ball, far, x)
        assert (z.double() >= low64).all()
        assert (z.double() <= high64).all()
        assert contains(ball, z, x).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=st.integers(0, 10**6), steps=st.sampled_from([2, 3, 10, 255]))
@settings(max_examples=20, deadline=None)
def test_grid(norm: Norm, dtype: torch.dtype, seed: int, steps: int) -> None:
    g = torch.Generator().manual_seed(seed)
    x = (torch.randint(0, steps + 1, (4, 30), generator=g).double() / steps).to(dtype)
    eps = {Norm.L0: 7, Norm.L1: 2.0, Norm.L2: 0.6, Norm.LINF: 8 / 255}[norm]
    ball = LpBall.uniform(norm, eps, 4, grid=Fraction(1, steps))
    far = x + torch.randn(4, 30, generator=g, dtype=dtype)
    z = project(ball, far, x)
    assert contains(ball, z, x).all()
    assert torch.equal(project(ball, z, x), z)
    # No more than one step is lost.
    free = project(replace(ball, grid=None), far, x)
    assert ((z - free).abs() <= 1 / steps + 1e-6).all()
    assert torch.equal(snap_to_grid(ball, x, x), x)


def test_a_set_without_a_grid_has_nothing_to_snap_to() -> None:
    with pytest.raises(UsageError, match="no grid"):
        snap_to_grid(LpBall.uniform(Norm.LINF, 0.1, 1), torch.zeros(1, 2), torch.zeros(1, 2))


def test_every_eight_bit_value_is_on_the_grid() -> None:
    ball = LpBall.uniform(Norm.LINF, 1.0, 1, grid=Fraction(1, 255))
    levels = torch.arange(256, dtype=torch.uint8).unsqueeze(0)
    for dtype in DTYPES:
        assert on_grid(ball, levels.to(dtype) / 255).all()
        assert not on_grid(ball, torch.nextafter(levels[:, 1:].to(dtype) / 255, torch.tensor(0.0, dtype=dtype))).any()


@pytest.mark.parametrize("norm", [Norm.L1, Norm.L2, Norm.LINF])
def test_dual_norm_is_the_maximum_over_the_unit_ball(norm: Norm) -> None:
    g = torch.Generator().manual_seed(0)
    grad = torch.randn(1, 3, generator=g)
    points = torch.randn(200_000, 3, generator=g)
    points = points / distance(norm, points).unsqueeze(1)
    corners = torch.cat([torch.eye(3), torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3)])
    corners = corners / distance(norm, corners).unsqueeze(1)
    best = (torch.cat([points, corners, -corners]) @ grad[0].double()).max()
    assert best == pytest.approx(dual_norm(norm, grad).item(), rel=1e-3)
    assert best <= dual_norm(norm, grad).item() * (1 + 1e-7)


def test_l0_has_no_dual() -> None:
    with pytest.raises(UsageError, match="no dual"):
        dual_norm(Norm.L0, torch.ones(1, 2))


@pytest.mark.parametrize("norm", NORMS)
def test_distances_in_float64_do_not_overflow_or_round(norm: Norm) -> None:
    delta = torch.tensor([[1e25, -1e25]])  # squares overflow float32
    exact = {Norm.L0: 2.0, Norm.L1: 2.0, Norm.L2: 2.0**0.5, Norm.LINF: 1.0}[norm] * (
        1.0 if norm is Norm.L0 else float(delta[0, 0])
    )
    assert distance(norm, delta).item() == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("steps", "low", "high"), [(255, 0.0, 1.0), (1, 0.0, 255.0), (127, -1.0, 1.0)])
def test_a_change_of_so_many_levels_is_inside_and_one_more_is_not(
    steps: int, low: float, high: float, dtype: torch.dtype
) -> None:
    """The type's rounding of two levels may lie further apart than the levels; distances on a grid are those of levels."""
    grid = Fraction(1, steps)
    last = round((high - low) * steps)
    level = torch.arange(last + 1, dtype=torch.float64)
    value = (low + level / steps).to(dtype)[:, None]
    if dtype is torch.bfloat16:  # its levels merge: those that are told apart
        kept = torch.cat([torch.tensor([True]), value[1:, 0] != value[:-1, 0]])[:40].nonzero()[:, 0]
        value, level, last = value[kept], level[kept], len(kept) - 1
    for k in (1, 8):
        x, up, over = value[: last - k], value[k:last], value[k + 1 :]
        for norm in (Norm.LINF, Norm.L1, Norm.L2):
            ball = LpBall.uniform(norm, k * grid, len(x), low, high, grid=grid, dtype=dtype)
            assert contains(ball, up, x).all()
            assert contains(ball.select(torch.arange(len(x))), x, up).all()
            assert not contains(ball, over, x).any()
            assert torch.equal(measured(ball, up, x), torch.full((len(x),), k / steps, dtype=torch.float64))
            if dtype is not torch.bfloat16:
                assert torch.equal(project(ball, torch.full_like(x, high), x), up)
                assert torch.equal(project(ball, torch.full_like(up, low), up), x)
                assert torch.equal(snap_to_grid(ball, project(replace(ball, grid=None), over, x), x), up)


def test_an_eps_just_below_a_level_does_not_reach_it() -> None:
    x = torch.arange(248)[:, None] / 255
    eps = torch.nextafter(torch.tensor(8 / 255, dtype=torch.float64), torch.tensor(0.0).double())
    ball = LpBall.uniform(Norm.LINF, float(eps), 248, grid=Fraction(1, 255))
    up = torch.arange(8, 256)[:, None] / 255
    assert not contains(ball, up, x).any()
    assert torch.equal(project(ball, torch.ones_like(x), x), torch.arange(7, 255)[:, None] / 255)


def test_off_the_grid_distances_are_those_of_the_values() -> None:
    ball = LpBall.uniform(Norm.LINF, Fraction(8, 255), 1, grid=Fraction(1, 255))
    x, near, far = (torch.tensor([[v / 255]]) for v in (10.5, 18.0, 19.0))
    assert contains(ball, near, x)
    assert not contains(ball, far, x)
