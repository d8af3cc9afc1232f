"""Gradient estimators: unbiased, at their known rates, with exact counts, and where clipping cuts their steps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from holdfast.core.draws import Draws, SampleDraws
from holdfast.core.errors import UsageError
from holdfast.numerics.zeroth import (
    Antithetic,
    Components,
    Coordinates,
    Estimator,
    Groups,
    OneSided,
    Signed,
    natural,
    principal_components,
)

D = 12
GRADIENT = torch.linspace(-1, 2, D, dtype=torch.float64)
EVERY = [
    OneSided(7, 0.01),
    OneSided(7, 0.01, "sphere"),
    Antithetic(5, 0.01),
    Antithetic(5, 0.01, "rademacher"),
    Coordinates(1e-3),
    Groups(5, 1e-3),
    Components(torch.eye(D, dtype=torch.float64)[:4], 1e-3),
    Signed(OneSided(3, 0.01)),
]


def linear(z: Tensor) -> Tensor:
    return z @ GRADIENT.to(z.dtype)


def smooth(z: Tensor) -> Tensor:
    return (z * GRADIENT).sin().sum(-1) + 0.5 * z[..., 0] * z[..., 1]


def draws(n: int) -> SampleDraws:
    return Draws(0, "test").of(np.arange(n))


@pytest.mark.parametrize("estimator", EVERY, ids=lambda e: type(e).__name__)
def test_queries_are_exact(estimator: Estimator) -> None:
    asked = 0

    def f(z: Tensor) -> Tensor:
        nonlocal asked
        asked += z.shape[1]
        return linear(z)

    estimator(f, torch.zeros(3, D).double(), draws(3))
    assert asked == estimator.queries((D,))


@pytest.mark.parametrize("kind", ["gaussian", "sphere", "rademacher"])
@pytest.mark.parametrize("made", [OneSided, Antithetic])
def test_the_mean_of_random_estimates_is_the_gradient(kind: str, made: type[OneSided] | type[Antithetic]) -> None:
    n = 3000
    grads = made(8, 1e-4, kind)(smooth, torch.full((n, D), 0.3).double(), draws(n)).grad
    x = torch.full((D,), 0.3).double().requires_grad_()
    true = torch.autograd.grad(smooth(x), x)[0]
    spread = grads.std(0) / n**0.5
    assert ((grads.mean(0) - true).abs() < 5 * spread + 1e-3).all()


@pytest.mark.parametrize("kind", ["gaussian", "sphere", "rademacher"])
def test_the_error_falls_with_the_root_of_the_directions(kind: str) -> None:
    x = torch.zeros(400, D).double()

    def error(q: int) -> float:
        return float((Antithetic(q, 1e-3, kind)(linear, x, draws(400)).grad - GRADIENT).norm(dim=1).mean())

    assert error(40) / error(160) == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize("q", [10, 40, 160])
def test_cosine_of_nes_on_a_linear_function(q: int) -> None:
    d, n = 80, 200
    g = torch.randn(d, generator=torch.Generator().manual_seed(1)).double()
    grad = Antithetic(q, 1e-3)(lambda z: z @ g, torch.zeros(n, d).double(), draws(n)).grad
    cosine = torch.nn.functional.cosine_similarity(grad, g.expand_as(grad)).mean()
    assert float(cosine) == pytest.approx((q / (q + d)) ** 0.5, rel=0.06)


def test_short_coordinate_differences_equal_autograd() -> None:
    x = torch.rand(4, D, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    true = torch.autograd.grad(smooth(x).sum(), x)[0]
    for estimator in (Coordinates(1e-5), Groups(1, 1e-5), Components(torch.eye(D).double(), 1e-5)):
        torch.testing.assert_close(estimator(smooth, x.detach(), draws(4)).grad, true, rtol=1e-7, atol=1e-8)
    which = torch.tensor([[3, 0], [1, 2], [5, 11], [7, 8]])
    some = Coordinates(1e-5).partials(smooth, x.detach(), which)
    torch.testing.assert_close(some, true.gather(1, which), rtol=1e-7, atol=1e-8)


def test_groups_share_their_mean_derivative() -> None:
    grad = Groups(5, 1e-3)(linear, torch.zeros(2, D).double(), draws(2)).grad
    assert torch.allclose(grad.sum(1), GRADIENT.sum())
    assert [len(row.round(decimals=9).unique()) for row in grad] == [3, 3]


def test_components_see_only_their_span() -> None:
    data = torch.randn(50, 3, generator=torch.Generator().manual_seed(2)).double() @ torch.randn(3, D).double()
    basis = principal_components(data, 3)
    torch.testing.assert_close(basis @ basis.T, torch.eye(3).double())
    grad = Components(basis, 1e-3)(linear, torch.zeros(1, D).double(), draws(1)).grad[0]
    torch.testing.assert_close(grad, basis.T @ (basis @ GRADIENT))
    with pytest.raises(UsageError, match="at most"):
        principal_components(data[:3], 3)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.full((2, D), 0.2).double()
    for estimator in (Coordinates(1e-4), Groups(2, 1e-4)):
        whole = estimator(smooth, x, draws(2)).grad
        monkeypatch.setattr("holdfast.numerics.zeroth._NUMBERS", 2 * D)
        torch.testing.assert_close(estimator(smooth, x, draws(2)).grad, whole)
        monkeypatch.undo()
    monkeypatch.setattr("holdfast.numerics.zeroth._NUMBERS", 3 * D)
    cut = Antithetic(200, 1e-4)(linear, torch.zeros(40, D).double(), draws(40)).grad
    assert float((cut.mean(0) - GRADIENT).abs().max()) < 0.2


def test_unanswered_points_count_for_nothing() -> None:
    def first_only(z: Tensor) -> Tensor:
        values = linear(z)
        values[:, 3:] = torch.nan
        return values

    known = OneSided(2, 0.01)(linear, torch.zeros(2, D).double(), draws(2))
    cut = OneSided(2, 0.01)(first_only, torch.zeros(2, D).double(), draws(2))
    torch.testing.assert_close(cut.grad, known.grad)
    none = Antithetic(4, 0.01)(lambda z: torch.full(z.shape[:2], torch.nan), torch.zeros(2, D).double(), draws(2))
    assert not none.grad.any()
    assert not none.value.any()


def test_the_displacement_that_was_made_is_used() -> None:
    # At the lower edge half of a step is cut; the difference quotient must be of the half that is left.
    def clip(z: Tensor) -> Tensor:
        return z.clamp_min(0.0)

    x = torch.zeros(1, D).double()
    torch.testing.assert_close(Coordinates(1e-3)(linear, x, draws(1), clip=clip).grad[0], GRADIENT)
    which = torch.arange(D).unsqueeze(0)
    torch.testing.assert_close(Coordinates(1e-3).partials(linear, x, which, clip)[0], GRADIENT)


def test_several_values_share_the_points() -> None:
    x = torch.zeros(3, D).double()

    def both(z: Tensor) -> Tensor:
        return torch.stack([linear(z), smooth(z)], dim=-1)

    for estimator in (OneSided(6, 1e-3), Antithetic(6, 1e-3)):
        pair = estimator(both, x, draws(3))
        torch.testing.assert_close(pair.grad[:, 0], estimator(linear, x, draws(3)).grad)
        torch.testing.assert_close(pair.grad[:, 1], estimator(smooth, x, draws(3)).grad)


def test_equal_steps_draw_equal_directions() -> None:
    x, e = torch.zeros(2, D).double(), OneSided(4, 1e-3)
    one, same, other = (e(linear, x, draws(2), step).grad for step in (5, 5, 6))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    given = e(linear, x, draws(2), 5, base=torch.zeros(2).double()).grad
    torch.testing.assert_close(given, one)


def test_natural_gradient_is_the_dense_solve_and_newtons_step() -> None:
    torch.manual_seed(0)
    g, s, p = torch.randn(3, D).double(), torch.randn(3, 4, D).double(), torch.rand(3, 4).double()
    fisher = torch.einsum("nk,nki,nkj->nij", p, s, s) + 0.3 * torch.eye(D).double()
    torch.testing.assert_close(natural(g, s, p, 0.3), torch.linalg.solve(fisher, g))
    # f(x) = |A x - b|^2 / 2 has the curvature sum_k a_k a_k^T: one step without damping is at the minimum.
    a, b, x = torch.randn(D, D).double(), torch.randn(D).double(), torch.randn(D).double()
    grad = a.T @ (a @ x - b)
    step = natural(grad.unsqueeze(0), a.unsqueeze(0), torch.ones(1, D).double(), 1e-9)[0]
    assert float((a @ (x - step) - b).norm()) < 1e-3 * float((a @ x - b).norm())


def test_bad_estimates_are_refused() -> None:
    with pytest.raises(UsageError, match="no directions"):
        OneSided(1, 0.1, "cauchy")
    with pytest.raises(UsageError, match="q >= 1"):
        replace(Antithetic(1, 0.1), q=0)
