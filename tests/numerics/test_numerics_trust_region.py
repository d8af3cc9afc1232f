"""The trust region step against SciPy's solver, brute force, and its limits."""

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from holdfast.core.threat import Norm
from holdfast.numerics.distance import distance
from holdfast.numerics.hyperplane import project_on_hyperplane
from holdfast.numerics.trust_region import nearest_in_trust_region

EDGES = torch.zeros(()).double(), torch.ones(()).double()


def case(n, d, seed=0):
    g = torch.Generator().manual_seed(seed)
    x, centre = torch.rand(2, n, d, generator=g, dtype=torch.float64)
    normal = torch.randn(n, d, generator=g, dtype=torch.float64)
    level = (normal * (centre + 0.05 * torch.randn(n, d, generator=g, dtype=torch.float64))).sum(1)
    radius = 0.15 + 0.5 * torch.rand(n, generator=g, dtype=torch.float64)
    return x, centre, normal, level, radius


def by_scipy(norm, x, centre, normal, level, radius, begin):
    """The least distance, in the form with slack variables that is smooth."""
    d = len(x)
    slacks = {Norm.L2: 0, Norm.L1: d, Norm.LINF: 1}[norm]
    limits = [
        {"type": "eq", "fun": lambda v: normal @ v[:d] - level},
        {"type": "ineq", "fun": lambda v: radius**2 - ((v[:d] - centre) ** 2).sum()},
    ]
    if slacks:
        limits += [
            {"type": "ineq", "fun": lambda v: v[d:] - (v[:d] - x)},
            {"type": "ineq", "fun": lambda v: v[d:] + (v[:d] - x)},
        ]
    goal = (lambda v: v[d:].sum()) if slacks else (lambda v: ((v - x) ** 2).sum())
    found = minimize(
        goal, np.concatenate([begin, np.ones(slacks)]), bounds=[(0, 1)] * d + [(0, 5)] * slacks, constraints=limits,
        method="SLSQP", options={"maxiter": 500, "ftol": 1e-12},
    )  # fmt: skip
    value = found.fun if slacks else found.fun**0.5
    return value if found.success else None


@pytest.mark.parametrize("norm", [Norm.L1, Norm.L2, Norm.LINF])
def test_as_near_as_scipy_gets(norm):
    x, centre, normal, level, radius = case(12, 5)
    z = nearest_in_trust_region(norm, x, centre, normal, level, radius, *EDGES, halvings=24)
    assert ((z >= 0) & (z <= 1)).all()
    assert ((z - centre).norm(dim=1) <= radius * (1 + 1e-8)).all()
    assert torch.allclose((normal * z).sum(1), level, atol=1e-9)
    ours, compared = distance(norm, z - x), 0
    for i in range(len(x)):
        theirs = by_scipy(norm, *(t[i].numpy() for t in (x, centre, normal, level, radius, z)))
        if theirs is not None:
            compared += 1
            assert float(ours[i]) == pytest.approx(theirs, abs=3e-6)
    assert compared >= 9


def test_few_features_against_all_supports():
    x, centre, normal, level, radius = case(30, 5)
    z = nearest_in_trust_region(Norm.L0, x, centre, normal, level, radius, *EDGES, halvings=24)
    assert ((z - centre).norm(dim=1) <= radius * (1 + 1e-6)).all()
    assert ((normal * z).sum(1) >= level - 1e-9).all()
    off = 0
    for i in range(len(x)):
        least = next(k for k in range(6) if any(possible(i, s, x, centre, normal, level, radius) for s in supports(k)))
        off += max(int((z[i] != x[i]).sum()) - least, 0)
    assert off <= 2  # features over 30 cases: the price of what is not convex


def supports(k):
    return (list(s) for s in combinations(range(5), k))


def possible(i, support, x, centre, normal, level, radius):
    """Whether changing these features alone reaches the far side of the plane, inside the ball."""
    low, high = x[i : i + 1].clone(), x[i : i + 1].clone()
    low[0, support], high[0, support] = 0.0, 1.0
    begin, w = centre[i : i + 1].clamp(low, high), normal[i : i + 1]
    z = begin
    if (w * begin).sum() < level[i]:
        z = begin + project_on_hyperplane(Norm.L2, begin, w, -level[i : i + 1], low, high)
    reached = (w * z).sum() >= level[i] - 1e-9
    return bool(reached and (z - centre[i]).norm() <= radius[i] + 1e-9)


@pytest.mark.parametrize("norm", list(Norm))
def test_without_a_ball_it_is_the_nearest_point_of_the_plane(norm):
    x, centre, normal, level, radius = case(20, 8, seed=1)
    z = nearest_in_trust_region(norm, x, centre, normal, level, radius + 1e3, *EDGES, halvings=40)
    best = project_on_hyperplane(norm, x, normal, -level, *EDGES)
    if norm is Norm.L0:
        keep = (normal * x).sum(1) < level  # its answer is on the far side
        assert (distance(norm, (z - x)[keep]) == distance(norm, best[keep])).double().mean() >= 0.9
        return
    assert torch.allclose(distance(norm, z - x), distance(norm, best), atol=2e-3)


@pytest.mark.parametrize("norm", list(Norm))
def test_each_sample_alone_gets_the_same(norm):
    whole = case(6, 4, seed=2)
    z = nearest_in_trust_region(norm, *whole, *EDGES)
    for i in range(6):
        alone = nearest_in_trust_region(norm, *(t[i : i + 1] for t in whole), *EDGES)
        assert torch.allclose(alone, z[i : i + 1], atol=1e-9)


@pytest.mark.parametrize("norm", list(Norm))
def test_a_plane_out_of_reach_gives_the_corner(norm):
    x, centre, normal, _, radius = case(4, 3, seed=3)
    z = nearest_in_trust_region(norm, x, centre, normal, torch.full((4,), 100.0), radius, *EDGES)
    assert torch.equal(z, (normal > 0).double())
