"""HopSkipJump: the normal it estimates, the starts it finds, what it asks, and how near it comes."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.attacks.engine import Settings, run
from holdfast.attacks.evasion.hard.hopskipjump import HopSkipJump, HopSkipJumpState
from holdfast.core.draws import Draws
from holdfast.core.problem import Problem
from holdfast.core.sets import LpBall
from holdfast.core.threat import Access, Norm
from holdfast.judge.archive import Keep
from holdfast.judge.inquiry import Inquiry
from holdfast.numerics.affine import affine_optimum
from holdfast.testing.toys import AffineModel, affine_digits, digits, net


def minimal(norm, x, y, **more):
    return Problem.of(x, y, LpBall.uniform(norm, 1.0, len(x), dtype=x.dtype).unbounded(), **more)


def test_the_angle_to_the_true_normal_falls():
    d = 32
    w = torch.randn(d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = AffineModel(torch.stack([torch.zeros(d).double(), w]), torch.tensor([0.0, -0.5 * float(w.sum())]).double())
    x = torch.full((1, d), 0.5, dtype=torch.float64)  # on the boundary
    problem = minimal(Norm.L2, x, torch.tensor([0]))
    problem = Problem(**{**vars(problem), "draws": Draws(0, "hopskipjump").of(problem.ids)})
    attack, angles = HopSkipJump(), []
    for count in (50, 500, 20_000):
        ask = Inquiry.of(model, problem, Keep.NEAREST).oracle(Access.HARD_LABEL).on(problem)
        state = HopSkipJumpState.at(x, over=torch.zeros(1, dtype=torch.bool), blocks=np.zeros(1, dtype=np.int64))
        normal, blocks = attack._normal(ask, state, np.array([count]), torch.tensor([1e-3]).double())
        assert blocks[0] == -(-count // 64)
        angles.append(float(torch.rad2deg(torch.acos((normal @ w / w.norm()).clamp(max=1)))))
    assert angles[0] > angles[1] > angles[2]
    assert angles[2] < 5


@pytest.mark.parametrize(("norm", "ratio"), [(Norm.L2, 1.05), (Norm.LINF, 1.1)])
def test_near_the_optimum_of_an_affine_model(norm, ratio):
    model, (x, y) = affine_digits(), digits(40)
    out = run(HopSkipJump(queries=10_000), minimal(norm, x, y), model)
    best = affine_optimum(
        norm, model.weight.detach(), model.bias.detach(), x, y, torch.zeros(()), torch.ones(())
    ).distance
    factor = (out.distance / best)[best > 0]
    assert out.found.all()
    assert factor.min() >= 1 - 1e-6
    assert factor.median() <= ratio


def test_more_queries_come_nearer():
    x, y = digits(12)
    medians = [
        float(run(HopSkipJump(queries=q), minimal(Norm.L2, x, y), net()).distance.median()) for q in (300, 1500, 5000)
    ]
    assert medians[0] > medians[1] > medians[2]


def test_several_starts_are_nearer_than_one():
    x, y = digits(60)
    one, many = (
        run(HopSkipJump(queries=3000, candidates=c), minimal(Norm.L2, x, y), affine_digits()).distance.mean()
        for c in (1, 50)
    )
    assert many < one


def test_the_rows_of_a_call_are_bounded():
    largest = 0

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            nonlocal largest
            largest = max(largest, len(x))
            return self.net(x)

    x, y = digits(4)
    run(HopSkipJump(queries=3000), minimal(Norm.L2, x, y), Watched(), settings=Settings(micro_batch=10**6))
    assert largest <= 4 * 64


def test_a_target_is_reached_from_a_given_start():
    x, y = digits(60)
    with torch.no_grad():
        right = net().eval()(x).argmax(1) == y
    net().train()
    starts = torch.stack([x[right & (y == k)][0] for k in range(10)])
    few, label = x[:10], y[:10]
    target = (label + 3) % 10
    out = run(HopSkipJump(queries=2000, starts=starts), minimal(Norm.L2, few, label, target=target), net())
    assert out.found.all()
    far = (starts[target] - few).flatten(1).norm(dim=1)
    assert (out.distance < far).all()


def test_a_sample_without_a_start_ends_early_and_unbroken():
    model = AffineModel(torch.zeros(3, 4).double(), torch.tensor([1.0, 0.0, 0.0]).double())
    x = torch.full((2, 4), 0.5, dtype=torch.float64)
    out = run(HopSkipJump(tries=10), minimal(Norm.L2, x, torch.tensor([0, 0])), model)
    assert not out.found.any()
    assert (out.ledger.queries == 11).all()


def test_starts_reach_further_where_the_box_has_no_edges():
    model = AffineModel(torch.tensor([[0.0], [1.0]]).double(), torch.tensor([0.0, -40.0]).double())  # crosses at 40
    x = torch.zeros(3, 1, dtype=torch.float64)
    infinite = torch.tensor(torch.inf, dtype=torch.float64)
    ball = LpBall(norm=Norm.L2, eps=torch.full((3,), torch.inf, dtype=torch.float64), lower=-infinite, upper=infinite)
    out = run(HopSkipJump(queries=400), Problem.of(x, torch.zeros(3, dtype=torch.int64), ball), model)
    assert out.found.all()
    assert (out.distance - 40).abs().max() < 1


@pytest.mark.shared
@pytest.mark.slow
def test_no_worse_than_sign_opt_on_its_network(shared_data):
    """Sign-OPT, median l2 after 4,000 queries: 1.54 over 100 images (the authors' logs)."""
    sys.path.insert(0, str(shared_data))
    import zoo

    model, (x, y) = zoo.load("sign_opt_mnist_cnn"), zoo.images("mnist", "test", 10)
    out = run(HopSkipJump(queries=4000), minimal(Norm.L2, x, y), model)
    assert out.found.all()
    assert out.distance.median() <= 1.54
    assert (out.ledger.queries <= 4000).all()
