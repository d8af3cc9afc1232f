"""The least move to a hyperplane in the box, and the exact affine optimum, against scipy and enumeration."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize
from torch import Tensor

from holdfast.core.threat import Norm
from holdfast.numerics.affine import affine_optimum
from holdfast.numerics.capped import solve_capped
from holdfast.numerics.distance import distance
from holdfast.numerics.hyperplane import affine_distance, project_on_hyperplane

NORMS = list(Norm)
ZERO, ONE = torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)


def reference(norm: Norm, w: np.ndarray, gap: float, x: np.ndarray) -> float:
    """Least size of a delta with <w, delta> >= gap in the unit box, by another road than ours."""
    d = len(w)
    if norm is Norm.L0:
        give = np.where(w > 0, w * (1 - x), -w * x)
        sizes = [sum(pick) for pick in product([0, 1], repeat=d) if give[np.array(pick, dtype=bool)].sum() >= gap]
        return min(sizes, default=np.inf)
    if norm is Norm.L2:
        give = np.where(w > 0, w * (1 - x), -w * x)
        if give.sum() < gap:
            return np.inf
        best = minimize(
            lambda v: v @ v, np.where(w > 0, 1 - x, -x), jac=lambda v: 2 * v, bounds=list(zip(-x, 1 - x, strict=True)),
            constraints=[{"type": "ineq", "fun": lambda v: w @ v - gap, "jac": lambda v: w}],
            method="SLSQP", options={"ftol": 1e-16, "maxiter": 1000},
        )  # fmt: skip
        return float(np.sqrt(best.fun))
    # delta = up - down, with t >= each for linf.
    cost = np.r_[np.ones(2 * d), 0] if norm is Norm.L1 else np.r_[np.zeros(2 * d), 1]
    rows, right = [np.r_[-w, w, 0]], [-gap]
    if norm is Norm.LINF:
        for i in range(2 * d):
            row = np.zeros(2 * d + 1)
            row[i], row[-1] = 1, -1
            rows.append(row)
            right.append(0)
    bounds = [(0, v) for v in 1 - x] + [(0, v) for v in x] + [(0, None)]
    best = linprog(cost, A_ub=np.array(rows), b_ub=right, bounds=bounds)
    return best.fun if best.status == 0 else np.inf


def case(seed: int, n: int = 5, d: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(n, d, generator=g, dtype=torch.float64)
    x[:, 0] = x[:, 0].round()
    w = torch.randn(n, d, generator=g, dtype=torch.float64)
    w[:, 1] = 0
    w[:, 3] = w[:, 2]
    reach = torch.where(w > 0, w * (1 - x), -w * x).sum(1)
    share = torch.linspace(0.0, 1.2, n, dtype=torch.float64)  # from no gap to out of reach
    return x, w, reach * share


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("seed", range(6))
def test_affine_distance_by_scipy(norm: Norm, seed: int) -> None:
    x, w, gap = case(seed)
    ours = affine_distance(norm, w, gap, x, ZERO, ONE).numpy()
    theirs = [reference(norm, w[i].numpy(), float(gap[i]), x[i].numpy()) for i in range(len(x))]
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)
    assert np.isinf(ours[-1])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_the_move_reaches_the_plane_in_the_box(norm: Norm, dtype: torch.dtype, seed: int) -> None:
    x, w, gap = case(seed, n=6)
    turn = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(3)
    b = -(w * x).sum(1) - gap
    delta = project_on_hyperplane(
        norm, x.to(dtype), (w * turn.unsqueeze(1)).to(dtype), b * turn, ZERO.to(dtype), ONE.to(dtype)
    )
    assert delta.dtype == dtype
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    moved = x + delta
    assert (moved >= -tolerance).all()
    assert (moved <= 1 + tolerance).all()
    value = (w * moved).sum(1) + b
    assert (value[:-1].abs() <= 10 * tolerance).all()
    # Out of reach: the corner of the box nearest to the plane.
    corner = torch.where(w[-1] > 0, 1.0, torch.where(w[-1] < 0, 0.0, x[-1]))
    assert torch.allclose(moved[-1], corner, atol=tolerance)


def test_a_box_without_edges() -> None:
    inf = torch.tensor(float("inf"))
    x, w = torch.zeros(1, 3), torch.tensor([[3.0, 0.0, 4.0]])
    for norm, size in ((Norm.L2, 1.0), (Norm.LINF, 5 / 7), (Norm.L1, 1.25), (Norm.L0, 1.0)):
        delta = project_on_hyperplane(norm, x, w, torch.tensor([-5.0]), -inf, inf)
        assert (w * delta).sum() == pytest.approx(5)
        assert distance(norm, delta).item() == pytest.approx(size)


@pytest.mark.parametrize("norm", NORMS)
def test_tiny_and_zero_normals(norm: Norm) -> None:
    x = torch.full((2, 2), 0.5)
    w = torch.tensor([[1e-30, 2e-30], [0.0, 0.0]])
    delta = project_on_hyperplane(norm, x, w, -(w * x).sum(1) - torch.tensor([1e-30, 1.0]), ZERO, ONE)
    assert (w[0].double() * delta[0].double()).sum() == pytest.approx(1e-30, rel=1e-5)
    assert torch.equal(delta[1], torch.zeros(2))


def test_solve_capped_on_geometric_caps() -> None:
    # Breakpoints over thirty orders of magnitude: what would need most Newton steps.
    p = torch.logspace(15, -15, 60, dtype=torch.float64).unsqueeze(0)
    q = p * torch.logspace(-15, 15, 60, dtype=torch.float64)
    for share in (1e-6, 0.1, 0.5, 0.9, 0.999):
        c = q.sum(1) * share
        u = solve_capped(p, q, c)
        assert torch.minimum(u * p, q).sum(1).item() == pytest.approx(c.item(), rel=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_affine_optimum(norm: Norm) -> None:
    g = torch.Generator().manual_seed(2)
    weight, bias = torch.randn(4, 6, generator=g).double(), torch.randn(4, generator=g).double() * 0.1
    x = torch.rand(12, 1, 2, 3, generator=g)
    flat = x.double().flatten(1)
    scores = flat @ weight.T + bias
    y = scores.argmax(1)
    y[0] = (y[0] + 1) % 4  # misclassified already
    best = affine_optimum(norm, weight, bias, x, y, ZERO, ONE)
    assert best.distance[0] == 0
    for i in range(1, 12):
        classes = [k for k in range(4) if k != y[i]]
        sizes = [
            reference(norm, (weight[k] - weight[y[i]]).numpy(), float(scores[i, y[i]] - scores[i, k]), flat[i].numpy())
            for k in classes
        ]
        assert best.distance[i].item() == pytest.approx(min(sizes), rel=1e-6)
        if np.isfinite(min(sizes)):
            at = weight @ best.x_adv[i].flatten() + bias
            assert at[best.label[i]].item() == pytest.approx(at[y[i]].item(), abs=1e-9)
            moved = best.x_adv[i : i + 1] - x[i : i + 1].double()
            assert distance(norm, moved).item() == pytest.approx(best.distance[i].item(), rel=1e-12)
            assert best.x_adv[i].min() >= -1e-12
            assert best.x_adv[i].max() <= 1 + 1e-12


def test_affine_optimum_targeted_and_out_of_reach() -> None:
    weight, bias = torch.eye(3), torch.tensor([0.0, 0.0, -5.0])
    x, y = torch.tensor([[0.75, 0.25, 0.0]] * 2), torch.tensor([0, 0])
    best = affine_optimum(Norm.L1, weight, bias, x, y, ZERO, ONE, target=torch.tensor([1, 2]))
    assert best.distance.tolist() == [0.5, float("inf")]
    assert best.label.tolist() == [1, 0]
    assert torch.equal(best.x_adv[1], x[1].double())
