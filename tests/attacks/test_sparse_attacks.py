"""Sigma-zero, JSMA and the l0 form of PGD: exactness, their parts against brute force, and order on a real network."""

import sys
from dataclasses import replace

import pytest
import torch

from holdfast.attacks.engine import run
from holdfast.attacks.evasion.white.jsma import JSMA, best_pair
from holdfast.attacks.evasion.white.pgd import PGD
from holdfast.attacks.evasion.white.sigma_zero import SigmaZero
from holdfast.core.errors import UnsupportedError
from holdfast.core.problem import Problem
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.numerics.affine import affine_optimum
from holdfast.testing.toys import AffineModel, affine_digits, digits


def minimal(x, y, low=0.0, high=1.0, **more):
    ball = LpBall.uniform(Norm.L0, 1.0, len(x), low, high, dtype=x.dtype).unbounded()
    return Problem.of(x, y, ball, **more)


@pytest.mark.parametrize("attack", [SigmaZero(steps=200), SigmaZero(steps=200, search=0), JSMA(targets=9, steps=20)])
def test_the_fewest_features_of_an_affine_model(attack):
    model, (x, y) = affine_digits(), digits(30)
    edges = torch.zeros(()), torch.ones(())
    best = affine_optimum(Norm.L0, model.weight.detach(), model.bias.detach(), x, y, *edges).distance
    out = run(attack, minimal(x, y), model)
    ratio = (out.distance / best)[best > 0]
    assert out.found.all()
    assert ratio.min() >= 1 - 1e-6
    assert ratio.median() == 1
    assert ratio.mean() <= 1.1


def test_a_wider_box_scaled_back_gives_the_same_features():
    model, (x, y) = affine_digits(), digits(10)
    wide = AffineModel(model.weight.detach() / 255, model.bias.detach())
    attack = SigmaZero(steps=60)
    small, large = run(attack, minimal(x, y), model), run(attack, minimal(255 * x, y, 0.0, 255.0), wide)
    assert torch.equal(small.distance, large.distance)
    assert torch.allclose(255 * small.x, large.x)


def test_the_threshold_alone_keeps_it_sparse():
    """Without it (tau held at 0) Adam moves every feature that has a gradient."""
    model, (x, y) = affine_digits(), digits(10)
    plain = SigmaZero(steps=60, search=0)
    loose = run(replace(plain, tau=0.0, tau_step=0.0), minimal(x, y), model)
    assert run(plain, minimal(x, y), model).distance.median() < 0.5 * loose.distance.median()


def test_the_best_pair_is_that_of_brute_force():
    generator = torch.Generator().manual_seed(0)
    toward, against = torch.randn(20, 2, 9, generator=generator).unbind(1)
    free = torch.rand(20, 9, generator=generator) < 0.8
    p, q, gain = best_pair(toward, against, free, 9)
    for row in range(20):
        best = -1.0
        for i in range(9):
            for j in range(i + 1, 9):
                a, b = toward[row, i] + toward[row, j], against[row, i] + against[row, j]
                if free[row, i] and free[row, j] and a > 0 and b > 0:
                    best = max(best, float(a * b))
        alone = [float(toward[row, i] * against[row, i]) for i in range(9) if free[row, i] and toward[row, i] > 0]
        best = max([best, *(v for v in alone if v > 0)])
        assert free[row, p[row]]
        assert free[row, q[row]]
        if best > 0:
            assert float(gain[row]) == pytest.approx(best, rel=1e-5)


def test_nothing_is_picked_where_nothing_is_free():
    _, _, gain = best_pair(torch.ones(1, 3), torch.ones(1, 3), torch.zeros(1, 3, dtype=torch.bool), 128)
    assert gain.item() == -float("inf")


def test_a_saliency_step_moves_two_pixels_to_the_edge():
    model, (x, y) = affine_digits(), digits(8)
    one = run(JSMA(steps=2, targets=1, search=0), minimal(x, y), model)
    changed = one.x != x
    assert (changed.flatten(1).sum(1) <= 2).all()
    assert ((one.x == 0) | (one.x == 1))[changed].all()


@pytest.mark.parametrize("attack", [SigmaZero(), JSMA()])
def test_a_box_without_edges_is_refused(attack):
    x, y = digits(2)
    with pytest.raises(UnsupportedError, match="finite"):
        run(attack, minimal(x, y, float("-inf"), float("inf")), affine_digits())


@pytest.mark.shared
def test_order_of_the_l0_attacks_on_an_adversarially_trained_network(shared_data, monkeypatch):
    """Measured on 32 samples: sigma-zero 8 features, JSMA 36, and PGD breaks a third of them with 16."""
    monkeypatch.syspath_prepend(str(shared_data))
    sys.modules.pop("zoo", None)
    import zoo

    model, (x, y) = zoo.load("mnist_lenet5_advtrained"), zoo.images("mnist", "test")
    x, y = x[:12], y[:12]
    sigma = run(SigmaZero(steps=150), minimal(x, y), model)
    assert sigma.found.all()
    assert sigma.distance.median() <= 12
    jsma = run(JSMA(targets=1), minimal(x, y), model)
    assert sigma.distance.median() < jsma.distance.median()
    budget = LpBall.uniform(Norm.L0, 16.0, len(x))
    pgd = run(PGD(), Problem.of(x, y, budget), model)
    assert 1 <= pgd.found.sum() <= (sigma.distance <= 16).sum()
