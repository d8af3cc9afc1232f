"""DeepFool, FAB and FAB-T: exactness on affine models, cost, and published figures."""

import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from holdfast.attacks.common.boundary import nearest_plane, tighten
from holdfast.attacks.engine import run
from holdfast.attacks.evasion.white.deepfool import DeepFool
from holdfast.attacks.evasion.white.fab import FAB
from holdfast.attacks.evasion.white.fab_t import FABT
from holdfast.core.criterion import RegressionMargin
from holdfast.core.errors import UnsupportedError
from holdfast.core.problem import Problem
from holdfast.core.sets import LpBall
from holdfast.core.threat import Access, Norm
from holdfast.judge.archive import Keep
from holdfast.judge.inquiry import Inquiry
from holdfast.numerics.affine import affine_optimum
from holdfast.testing.toys import AffineModel, affine_digits, digits, net

BOTH = [(DeepFool, norm) for norm in (Norm.L2, Norm.LINF)] + [
    (kind, norm) for kind in (FAB, FABT) for norm in (Norm.L1, Norm.L2, Norm.LINF)
]


def minimal(norm, x, y, target=None):
    return Problem.of(x, y, LpBall.uniform(norm, 1.0, len(x), dtype=x.dtype).unbounded(), target=target)


@pytest.mark.parametrize(("kind", "norm"), BOTH)
def test_exact_on_an_affine_model_in_the_box(kind, norm):
    model, (x, y) = affine_digits(), digits(30)
    out = run(kind(), minimal(norm, x, y), model)
    best = affine_optimum(
        norm, model.weight.detach(), model.bias.detach(), x, y, torch.zeros(()), torch.ones(())
    ).distance
    ratio = (out.distance / best)[best > 0]
    assert out.found.all()
    assert ratio.min() >= 1 - 1e-6
    assert ratio.median() <= 1.002
    assert ratio.max() <= 1.01


@pytest.mark.parametrize(("kind", "norm"), BOTH)
def test_targeted_is_exact_on_two_affine_classes(kind, norm):
    whole, (x, _) = affine_digits(), digits(30)
    model = AffineModel(whole.weight.detach()[:2], whole.bias.detach()[:2])
    y = model(x).argmax(1)
    out = run(kind(), minimal(norm, x, y, target=1 - y), model)
    edges = torch.zeros(()), torch.ones(())
    best = affine_optimum(norm, model.weight.detach(), model.bias.detach(), x, y, *edges, target=1 - y).distance
    ratio = out.distance / best
    assert ratio.min() >= 1 - 1e-6
    assert ratio.max() <= 1.01


@pytest.mark.parametrize(("kind", "norm"), BOTH)
def test_targeted_passes_every_class_in_the_way(kind, norm):
    model, (x, y) = affine_digits(), digits(60)
    target = (y + 1 + torch.arange(60) % 8) % 10
    out = run(kind(), minimal(norm, x, y, target=target), model)
    edges = torch.zeros(()), torch.ones(())
    bound = affine_optimum(norm, model.weight.detach(), model.bias.detach(), x, y, *edges, target=target).distance
    assert torch.equal(model(out.x).argmax(1), target)
    ratio = (out.distance / bound)[bound > 0]
    assert ratio.min() >= 1 - 1e-6
    assert ratio.median() <= 1.002  # for most, no third class is in the way
    assert ratio.max() <= 1.8


@pytest.mark.parametrize("kind", [FAB, FABT])
def test_targeted_fab_costs_one_backward_a_step_of_one_round(kind):
    x, y = digits(8)
    out = run(kind(steps=7), minimal(Norm.L2, x, y, target=(y + 1) % 10), net())
    assert (out.ledger.backwards == 7).all()


def test_targeted_deepfool_is_seldom_nearer_than_fab():
    x, y = digits(30)
    fool, fab = (run(kind(), minimal(Norm.L2, x, y, target=(y + 3) % 10), net()) for kind in (DeepFool, FAB))
    assert fool.found.all()
    assert fab.found.all()
    assert fab.distance.median() <= fool.distance.median()
    assert (fab.distance <= 1.001 * fool.distance).double().mean() >= 0.8


def test_the_plane_that_the_box_hides_is_not_nearest():
    x = torch.tensor([[0.5, 0.0], [0.5, 0.5]])
    normal = torch.tensor([[[1.0, 0.0], [0.1, -9.0]]]).expand(2, -1, -1)
    gap = torch.tensor([[0.4, 0.2]]).expand(2, -1)
    assert nearest_plane(Norm.L2, x, gap, normal, torch.zeros(()), torch.ones(())).tolist() == [0, 1]


def test_tighten_finds_the_crossing_of_a_curved_margin():
    class Curved(nn.Module):
        def forward(self, x):
            return torch.stack([torch.zeros_like(x[:, 0]), x[:, 0] ** 3 - 0.027], dim=1)  # crosses at 0.3

    x, y = torch.zeros(1, 1, dtype=torch.float64), torch.tensor([0])
    problem = minimal(Norm.LINF, x, y)
    inquiry = Inquiry.of(Curved(), problem, Keep.NEAREST)
    end = torch.ones(1, dtype=torch.float64)
    tighten(inquiry.oracle(Access.WHITE_BOX).on(problem), lambda t: t.view(1, 1), end, torch.tensor([-0.973]), 20)
    assert 0.3 <= inquiry.archive.distance.item() < 0.35


def test_deepfool_takes_the_overshoot_out_of_the_distance():
    x, y = digits(30)
    with_search = run(DeepFool(), minimal(Norm.L2, x, y), net())
    without = run(DeepFool(search=0), minimal(Norm.L2, x, y), net())
    assert (with_search.distance <= without.distance).all()
    assert with_search.distance.median() < without.distance.median()


def test_deepfool_costs_a_few_passes():
    x, y = digits(30)
    out = run(DeepFool(), minimal(Norm.LINF, x, y), net())
    assert out.found.all()
    assert out.ledger.forwards.double().mean() < 20
    assert out.ledger.backwards.double().mean() < 60


def test_fab_t_costs_two_forwards_and_one_backward_a_step():
    x, y = digits(8)
    ball = LpBall.uniform(Norm.LINF, 1e-4, 8, dtype=x.dtype)  # out of reach, so that nobody leaves early
    out = run(FABT(steps=20), Problem.of(x, y, ball), net(), keep=Keep.FIRST)
    open_ = ~out.found
    assert (out.ledger.backwards[open_] == 9 * 20).all()
    assert (out.ledger.forwards[open_] <= 1 + 9 * (2 * 20 + 3)).all()
    assert (out.ledger.forwards[open_] >= 1 + 9 * 2 * 20).all()


def test_fab_t_has_no_more_rounds_than_rivals():
    model = nn.Linear(2, 2).double()
    x = torch.rand(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = model(x).argmax(1)
    out = run(FABT(steps=7), minimal(Norm.L2, x, y), model)
    assert (out.ledger.backwards == 7).all()


@pytest.mark.parametrize("kind", [FAB, pytest.param(FABT, marks=pytest.mark.slow)])
def test_within_a_budget_fab_breaks_what_its_least_distances_say(kind):
    x, y = digits(30)
    free = run(kind(), minimal(Norm.LINF, x, y), net())
    eps = float(free.distance.median())
    held = run(kind(), Problem.of(x, y, LpBall.uniform(Norm.LINF, eps, 30, dtype=x.dtype)), net(), keep=Keep.FIRST)
    assert torch.equal(held.found, free.distance <= eps)
    assert held.ledger.forwards.sum() < free.ledger.forwards.sum()


def test_restarts_are_random_and_never_worse():
    x, y = digits(20)
    once = run(FAB(steps=10), minimal(Norm.L2, x, y), net())
    thrice = run(FAB(steps=10, restarts=3), minimal(Norm.L2, x, y), net())
    assert (thrice.distance <= once.distance).all()
    assert (thrice.distance < once.distance).any()


def test_a_random_start_needs_no_finite_box():
    x, y = digits(6)
    ball = replace(
        LpBall.uniform(Norm.L2, 1.0, 6, dtype=x.dtype), lower=torch.tensor(-torch.inf), upper=torch.tensor(torch.inf)
    )
    out = run(FAB(steps=5, restarts=2), Problem.of(x, y, ball.unbounded()), net())
    assert out.found.all()
    assert out.x.isfinite().all()


@pytest.mark.parametrize("kind", [DeepFool, FAB, FABT])
def test_a_criterion_without_class_boundaries_is_refused(kind):
    x = torch.zeros(2, 3)
    problem = Problem.of(x, torch.zeros(2), LpBall.uniform(Norm.L2, 1.0, 2), criterion=RegressionMargin(0.1))
    with pytest.raises(UnsupportedError, match="RegressionMargin"):
        kind().check(problem)


@pytest.mark.shared
@pytest.mark.slow
def test_published_medians_of_the_mnist_network(shared_data):
    """Published: FAB (20 steps) linf 0.112, l2 1.423 (advertorch, 10,000 images); here the first 100."""
    sys.path.insert(0, str(shared_data))
    import zoo

    model, (x, y) = zoo.load("mnist_lenet5_clean"), zoo.images("mnist", "test", 100)
    for norm, published in ((Norm.LINF, 0.112), (Norm.L2, 1.423)):
        out = run(FAB(steps=20), minimal(norm, x, y), model)
        assert out.found.all()
        assert out.distance[out.distance > 0].median() <= 1.03 * published
