"""OPT, Sign-OPT and RayS: g and its derivatives in closed form, what each piece asks, and how near each comes."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from holdfast.attacks.engine import run
from holdfast.attacks.evasion.hard.opt import OPT
from holdfast.attacks.evasion.hard.rays import RayS, _flip
from holdfast.attacks.evasion.hard.sign_opt import SignOPT
from holdfast.attacks.families.direction_search import bracket, narrow, turned, way
from holdfast.core.draws import Draws
from holdfast.core.problem import Problem
from holdfast.core.sets import LpBall
from holdfast.core.threat import Access, Norm
from holdfast.judge.archive import Keep
from holdfast.judge.inquiry import Inquiry
from holdfast.numerics.affine import affine_optimum
from holdfast.numerics.distance import contains, difference, distance
from holdfast.testing.toys import AffineModel, Counting, affine_digits, digits, net

D = 24


def minimal(norm, x, y, **more):
    return Problem.of(x, y, LpBall.uniform(norm, 1.0, len(x), dtype=x.dtype).unbounded(), **more)


def numbers(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plane(norm, n=3):
    """A model with one plane, g(unit) = gap / <w, unit>; samples below it in a box so wide that it does not count."""
    w, x = numbers(0, D), 0.1 * numbers(1, n, D)
    model = AffineModel(torch.stack([torch.zeros(D).double(), w]), torch.tensor([0.0, -2.0]).double())
    ball = LpBall.uniform(norm, 1.0, n, -50.0, 50.0, dtype=torch.float64).unbounded()
    problem = Problem.of(x, torch.zeros(n, dtype=torch.int64), ball)
    problem = replace(problem, draws=Draws(0, "test").of(problem.ids))
    inquiry = Inquiry.of(model, problem, Keep.NEAREST)
    unit = w.sign() * numbers(2, n, D).abs()
    unit = unit / distance(norm, unit).view(-1, 1)
    return w, problem, inquiry, unit, (2.0 - x @ w) / (unit @ w)


@pytest.mark.parametrize("norm", [Norm.L2, Norm.LINF])
@pytest.mark.parametrize("off", [0.6, 0.999, 1.001, 1.7])
def test_g_is_the_closed_form_on_a_plane(norm, off):
    _, problem, inquiry, unit, g = plane(norm)
    ask = inquiry.oracle(Access.HARD_LABEL).on(problem)
    low, high = bracket(ask, unit, off * g, 0.01 * g, outward=True)
    assert (low < g).all()
    assert (high >= g).all()
    low, high = narrow(ask, unit, low, high, 1e-6 * g)
    assert (high >= g * (1 - 1e-12)).all()
    assert (high - g <= 1e-6 * g).all()
    assert torch.allclose(distance(norm, way(problem, unit, high) - problem.x), high)


def test_a_guess_that_is_not_adversarial_costs_one_query_inward():
    _, problem, inquiry, unit, g = plane(Norm.L2)
    low, high = bracket(inquiry.oracle(Access.HARD_LABEL).on(problem), unit, 0.9 * g, 0.01 * g, outward=False)
    assert high.isinf().all()
    assert torch.equal(low, 0.9 * g)
    assert inquiry.ledger.queries.tolist() == [1, 1, 1]


def test_each_sample_asks_what_its_own_interval_needs():
    _, problem, inquiry, unit, g = plane(Norm.L2)
    low = g - torch.tensor([0.5, 0.1, 0.1]).double()
    high = g + torch.tensor([0.5, 0.1, float("inf")]).double()
    narrow(inquiry.oracle(Access.HARD_LABEL).on(problem), unit, low, high, torch.tensor([1 / 64, 0.11, 0.01]).double())
    assert inquiry.ledger.queries.tolist() == [6, 1, 0]


@pytest.mark.parametrize("norm", [Norm.L2, Norm.LINF])
def test_a_label_is_the_sign_of_the_derivative_of_g(norm):
    w, problem, inquiry, unit, g = plane(norm)
    turn = torch.full_like(g, 1e-3)
    ask, agree = inquiry.oracle(Access.HARD_LABEL).on(problem), []
    for k in range(40):
        new = turned(problem, unit, g, numbers(k + 10, *unit.shape), turn)
        falls = new @ w - unit @ w  # g = gap / <w, unit>
        agree.append(SignOPT().weigh(ask, new, g, turn) == falls.sign())
    assert torch.stack(agree).all()
    assert inquiry.ledger.queries.tolist() == [40] * 3


def test_a_measured_distance_is_the_difference_of_g():
    w, problem, inquiry, unit, g = plane(Norm.L2)
    turn = torch.full_like(g, 1e-3)
    new = turned(problem, unit, g, numbers(5, *unit.shape), turn)
    gain = OPT().weigh(inquiry.oracle(Access.HARD_LABEL).on(problem), new, g, turn)
    true = (g - (2.0 - problem.x @ w) / (new @ w)) / (g * turn)
    assert (gain - true).abs().max() <= 2 / 500


@pytest.mark.parametrize(("kind", "directions"), [(OPT, 400), (SignOPT, 4000)])
def test_the_estimate_approaches_the_gradient_of_g(kind, directions):
    w, problem, inquiry, unit, g = plane(Norm.L2)
    # g's gradient on the sphere is along w, less its part along the direction itself.
    true = w - (unit @ w).view(-1, 1) * unit
    angles = []
    for count in (directions // 16, directions):
        attack = kind(directions=count, queries=10**6)
        ask = inquiry.oracle(Access.HARD_LABEL).on(problem)
        state = replace(attack.start(ask), x=way(problem, unit, g * (1 + 1e-9)))
        better = attack.estimate(ask, state, g, np.full(3, count))
        angles.append(torch.nn.functional.cosine_similarity(better, true))
    assert (angles[1] > angles[0]).all()
    assert (angles[1] > 0.95).all()


@pytest.mark.parametrize("norm", [Norm.L2, Norm.LINF])
def test_turned_directions_stay_in_the_box_and_of_size_1(norm):
    x, _ = digits(6)
    mask = torch.rand(1, *x.shape[1:], generator=torch.Generator().manual_seed(0)) < 0.7
    ball = LpBall.uniform(norm, 1.0, 6, dtype=torch.float64, mask=mask).unbounded()
    problem = Problem.of(x, torch.zeros(6, dtype=torch.int64), ball)
    start = way(problem, numbers(0, *x.shape), torch.full((6,), 0.1).double())
    delta = difference(start, x)
    reach = distance(norm, delta)
    unit = turned(problem, delta / reach.view(-1, 1, 1, 1), reach, numbers(1, *x.shape), torch.full((6,), 0.3).double())
    assert torch.allclose(distance(norm, unit), torch.ones(6).double())
    assert (unit.masked_select(~mask.expand_as(unit)) == 0).all()
    assert (((unit > 0) & (x == 1)) | ((unit < 0) & (x == 0))).sum() == 0
    assert contains(ball, way(problem, unit, reach), x).all()


@pytest.mark.parametrize(
    ("kind", "norm", "ratio"),
    [(OPT, Norm.L2, 1.1), (OPT, Norm.LINF, 1.25), (SignOPT, Norm.L2, 1.05), (SignOPT, Norm.LINF, 1.2)],
)
def test_near_the_optimum_of_an_affine_model(kind, norm, ratio):
    model, (x, y) = affine_digits(), digits(16)
    out = run(kind(queries=3000), minimal(norm, x, y), model)
    edges = torch.zeros(()), torch.ones(())
    best = affine_optimum(norm, model.weight.detach(), model.bias.detach(), x, y, *edges).distance
    factor = (out.distance / best)[best > 0]
    assert out.found.all()
    assert factor.min() >= 1 - 1e-6
    assert factor.median() <= ratio


def test_queries_are_counted_exactly_and_never_exceeded():
    x, y = digits(4)
    x = Counting.mark(x)
    mask = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    mask[0, 0, 0, 0] = False
    ball = LpBall.uniform(Norm.L2, 1.0, 4, dtype=torch.float64, mask=mask).unbounded()
    for attack in (OPT(queries=700), SignOPT(queries=700)):
        model = Counting(net(), 4)
        out = run(attack, Problem.of(x, y, ball), model)
        assert torch.equal(model.rows, out.ledger.queries)
        assert (out.ledger.queries <= 700).all()
        assert out.found.all()


def test_a_target_is_reached_from_a_given_start():
    x, y = digits(60)
    with torch.no_grad():
        right = net().eval()(x).argmax(1) == y
    net().train()
    starts = torch.stack([x[right & (y == k)][0] for k in range(10)])
    few, target = x[:6], (y[:6] + 3) % 10
    out = run(SignOPT(queries=1000, starts=starts), minimal(Norm.L2, few, y[:6], target=target), net())
    assert out.found.all()
    assert (out.distance < (starts[target] - few).flatten(1).norm(dim=1)).all()


def test_rays_finds_the_signs_of_the_weights():
    w = numbers(3, 32)
    bias = torch.stack([torch.zeros(()).double(), -1.0 - 0.5 * w.sum()])
    model = AffineModel(torch.stack([torch.zeros(32).double(), w]), bias)
    x = torch.full((2, 32), 0.5, dtype=torch.float64) + 0.02 * numbers(4, 2, 32)
    problem = minimal(Norm.LINF, x, torch.zeros(2, dtype=torch.int64))
    out = run(RayS(queries=5000, tolerance=1e-5), problem, model)
    best = (1.0 + 0.5 * w.sum() - x @ w) / w.abs().sum()  # in the inside of the box
    assert (out.distance >= best - 1e-12).all()
    assert (out.distance <= best * 1.002).all()
    heavy = w.abs() > 0.05  # a smaller weight moves the boundary by less than is measured
    assert torch.equal((out.x - x).sign()[:, heavy], w.sign()[heavy].expand(2, -1))
    assert (out.ledger.queries < 5000).all()  # it ends where no flip helps


def test_rays_flips_ever_smaller_blocks_of_the_free_features():
    mask = torch.tensor([[True, False, True, True, True, True]])
    ball = LpBall.uniform(Norm.LINF, 1.0, 1, mask=mask)
    problem = Problem.of(torch.full((1, 6), 0.5), torch.tensor([0]), ball)
    model = AffineModel(torch.zeros(2, 6), torch.tensor([1.0, 0.0]))
    state = RayS().start(Inquiry.of(model, problem).oracle(Access.HARD_LABEL).on(problem))
    seen = []
    for _ in range(12):
        sign, last, level, block = _flip(state)
        seen.append("".join("x" if s < 0 else "." for s in sign[0].tolist()))
        state = replace(state, level=level, block=block)
        if last:
            break
    whole = [
        "x.xxxx",
        "x.xx..",
        "....xx",
        "x.x...",
        "...xx.",
        ".....x",
        "x.....",
        "..x...",
        "...x..",
        "....x.",
        ".....x",
    ]
    assert seen == whole


def test_rays_asks_one_query_a_step_and_bisects_what_holds():
    model = AffineModel(
        torch.tensor([[0.0], [-1.0]]).double(), torch.tensor([0.0, 0.3]).double()
    )  # adversarial below 0.3
    x = torch.full((1, 1), 0.8, dtype=torch.float64)
    out = run(RayS(queries=40, tolerance=1e-3), minimal(Norm.LINF, x, torch.tensor([0])), model)
    assert 0 <= float(out.distance) - 0.5 <= 1e-3
    # The clean pass, the first flip, ten halvings of 1 to below 0.001, and then one rejected flip of each hierarchy.
    assert 12 <= int(out.ledger.queries) <= 15


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "logged"), [(OPT, 3.66), (SignOPT, 1.54)])
def test_no_worse_than_the_logs_on_their_network(shared_data, kind, logged):
    """Median l2 after 4,000 queries over 100 images in the authors' logs; half of them do here."""
    sys.path.insert(0, str(shared_data))
    import zoo

    model, (x, y) = zoo.load("sign_opt_mnist_cnn"), zoo.images("mnist", "test", 10)
    out = run(kind(queries=2500), minimal(Norm.L2, x, y), model)
    assert out.found.all()
    assert out.distance.median() <= logged


@pytest.mark.shared
@pytest.mark.slow
def test_rays_needs_no_more_queries_than_published(shared_data):
    """MNIST at linf 0.3: a median of 47 queries and every image, on the authors' network."""
    sys.path.insert(0, str(shared_data))
    import zoo

    model, (x, y) = zoo.load("sign_opt_mnist_cnn"), zoo.images("mnist", "test", 40)
    out = run(RayS(queries=1500), Problem.of(x, y, LpBall.uniform(Norm.LINF, 0.3, 40)), model)
    assert out.found.all()
    assert out.found_at.double().median() <= 47
