"""Boundary, SurFree and GeoDA: the walks along a boundary that is known, what they ask, and how near they come."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.attacks.common.frequencies import band, from_band, to_band
from holdfast.attacks.common.label_normal import mean_direction
from holdfast.attacks.engine import run
from holdfast.attacks.evasion.hard.boundary import BoundaryAttack, BoundaryState
from holdfast.attacks.evasion.hard.geoda import GeoDA
from holdfast.attacks.evasion.hard.surfree import SurFree
from holdfast.core.draws import Draws
from holdfast.core.problem import Problem
from holdfast.core.sets import LpBall
from holdfast.core.threat import Access, Norm
from holdfast.judge.archive import Keep
from holdfast.judge.inquiry import Inquiry
from holdfast.judge.ledger import Budget
from holdfast.testing.toys import AffineModel, digits, net

INFINITE = torch.tensor(torch.inf, dtype=torch.float64)


def plane(d, distance):
    """A model of two classes that change on a plane at this l2 distance from 0, and its unit normal."""
    w = torch.randn(d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    w = w / w.norm()
    return AffineModel(torch.stack([torch.zeros_like(w), w]), torch.tensor([0.0, -distance]).double()), w


def free(norm, x, y=None, **more):
    """A search without eps and without box."""
    ball = LpBall(norm=norm, eps=torch.full((len(x),), torch.inf, dtype=torch.float64), lower=-INFINITE, upper=INFINITE)
    return Problem.of(x, torch.zeros(len(x), dtype=torch.int64) if y is None else y, ball, **more)


def drawn(problem, name):
    return Problem(**{**vars(problem), "draws": Draws(0, name).of(problem.ids)})


@pytest.mark.parametrize(
    ("attack", "ratio"),
    [(SurFree(queries=1500), 1.005), (GeoDA(queries=2500), 1.02), (BoundaryAttack(queries=1500), 1.02)],
)
def test_the_foot_of_a_plane_is_reached(attack, ratio):
    model, _ = plane(16, 0.7)
    out = run(attack, free(Norm.L2, torch.zeros(4, 16, dtype=torch.float64)), model)
    assert out.found.all()
    assert (out.distance >= 0.7 * (1 - 1e-12)).all()
    assert out.distance.max() <= 0.7 * ratio


@pytest.mark.parametrize(("norm", "power"), [(Norm.L1, float("inf")), (Norm.LINF, 1)])
def test_geoda_goes_the_way_of_its_norm(norm, power):
    model, w = plane(8, 0.7)
    out = run(GeoDA(queries=4000), free(norm, torch.zeros(4, 8, dtype=torch.float64)), model)
    best = 0.7 / float(w.norm(p=power))
    assert (out.distance >= best * (1 - 1e-12)).all()
    assert out.distance.median() <= 1.05 * best


def test_a_sphere_is_left_on_the_shortest_way():
    """Inside a ball around 0.3 of radius 1 from its middle: the walks end at 1 - 0.3."""

    class Ball(nn.Module):
        def forward(self, x):
            out = x.norm(dim=1) - 1
            return torch.stack([-out, out], dim=1)

    x = torch.zeros(3, 6, dtype=torch.float64)
    x[:, 0] = 0.3
    for attack in (SurFree(queries=1500), GeoDA(queries=1500), BoundaryAttack(queries=1500)):
        out = run(attack, free(Norm.L2, x), Ball())
        assert (out.distance >= 0.7 - 1e-12).all()
        assert out.distance.max() <= 0.72, attack.card.title


def test_the_estimate_nears_the_true_normal():
    model, w = plane(32, 0.0)
    x = torch.zeros(1, 32, dtype=torch.float64)
    problem, angles = drawn(free(Norm.L2, x), "geoda"), []
    for count in (50, 500, 20_000):
        ask = Inquiry.of(model, problem, Keep.NEAREST).oracle(Access.HARD_LABEL).on(problem)
        normal, blocks = mean_direction(
            ask, x, np.array([count]), torch.tensor([1e-3]).double(), GeoDA()._directions, np.zeros(1, int)
        )
        assert blocks[0] == -(-count // 64)
        angles.append(float(torch.rad2deg(torch.acos((normal @ w / normal.norm()).clamp(max=1)))))
    assert angles[0] > angles[1] > angles[2]
    assert angles[2] < 5


def test_the_estimates_of_geoda_grow_and_spend_what_is_left():
    x = torch.zeros(1, 16, dtype=torch.float64)
    problem, attack = drawn(free(Norm.L2, x), "geoda"), GeoDA(queries=6000, ratio=0.6, each=600, fewest=1)
    model, _ = plane(16, 0.7)
    inquiry = Inquiry.of(model, problem, Keep.NEAREST, budget=attack.budget)
    ask, counts = inquiry.oracle(Access.HARD_LABEL).on(problem), []
    state = attack.start(ask)
    for k in range(attack.iterations):
        state.step[:] = k
        counts.append(int(attack._directions_now(ask.left, problem, state)))
        state = attack.step(ask, state)
    ratios = [b / a for a, b in pairwise(counts[3:])]
    assert all(abs(r - 0.6 ** (-2 / 3)) < 0.1 for r in ratios)
    assert 0 <= int(ask.left) < 40


def test_candidates_lie_on_the_sphere_and_inward_of_it():
    x = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    problem = drawn(free(Norm.L2, x), "boundary")
    none, size = torch.zeros((5, 2), dtype=torch.int64), torch.full((5,), 0.1, dtype=torch.float64)
    state = BoundaryState.at(
        x + 0.5, sideways=size, inward=size / 2, asked=none, held=none, over=torch.zeros(5, dtype=torch.bool)
    )
    sphere, candidate = BoundaryAttack()._candidates(problem, state)
    assert torch.allclose((sphere - x).flatten(1).norm(dim=1), 2 * torch.ones(5).double())
    assert torch.allclose((candidate - x).flatten(1).norm(dim=1), 1.9 * torch.ones(5).double())
    moved = (sphere - state.x).flatten(1).norm(dim=1)
    assert torch.allclose(moved, torch.full((5,), 0.2).double(), rtol=0.02)


@pytest.mark.parametrize(("always", "grows"), [(True, True), (False, False)])
def test_step_sizes_follow_the_rates(always, grows):
    class Constant(nn.Module):
        def forward(self, x):
            return torch.tensor([0.0, 1.0 if always else -1.0]).double().expand(len(x), 2)

    x = torch.zeros(2, 4, dtype=torch.float64)
    problem, attack = drawn(free(Norm.L2, x), "boundary"), BoundaryAttack()
    none, size = torch.zeros((2, 2), dtype=torch.int64), torch.full((2,), 0.01, dtype=torch.float64)
    state = BoundaryState.at(
        x + 1, sideways=size, inward=size, asked=none, held=none, over=torch.zeros(2, dtype=torch.bool)
    )
    ask = (
        Inquiry.of(Constant(), problem, Keep.NEAREST, budget=Budget(queries=1000)).oracle(Access.HARD_LABEL).on(problem)
    )
    for k in range(attack.window * attack.every):
        state.step[:] = k
        state = attack.step(ask, state)
    assert (ask.left == 1000 - attack.window * (attack.every + 1)).all()
    assert bool((state.sideways > 0.01).all()) is grows
    assert bool((state.inward > 0.01).all()) is grows


@pytest.mark.parametrize("kind", [BoundaryAttack, SurFree])
def test_every_query_is_used_and_none_too_many(kind):
    x, y = digits(6)
    ball = LpBall.uniform(Norm.L2, 1.0, 6, dtype=x.dtype).unbounded()
    out = run(kind(queries=133), Problem.of(x, y, ball), net())
    at_clean = out.distance == 0
    assert (out.ledger.queries[~at_clean] == 133).all()


def test_low_frequencies_keep_sizes_and_come_back():
    shape = (3, 40, 24)
    low = band(shape, 0.5)
    assert low == (3, 20, 16)
    given = torch.randn(2, *low, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    image = from_band(given, shape)
    assert image.shape == (2, *shape)
    assert torch.allclose(image.flatten(1).norm(dim=1), given.flatten(1).norm(dim=1))
    assert torch.allclose(to_band(image, low), given)
