"""ZOO, One pixel, SimBA, SPSA and Bandits: their pieces against closed forms, and their query counts."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from scipy.fft import dct
from torch import Tensor, nn

from holdfast.attacks.attack import Attack
from holdfast.attacks.engine import Settings, run
from holdfast.attacks.evasion.soft.bandits import Bandits, _primal
from holdfast.attacks.evasion.soft.one_pixel import OnePixel, _folded, _three_others
from holdfast.attacks.evasion.soft.simba import SimBA, _cosines, _ring
from holdfast.attacks.evasion.soft.spsa import SPSA
from holdfast.attacks.evasion.soft.zoo import ZOO, _adam_at, _importance
from holdfast.core.draws import Draws
from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.core.problem import Problem
from holdfast.core.sets import LpBall
from holdfast.core.threat import Access, Norm
from holdfast.judge.archive import Keep
from holdfast.judge.inquiry import Inquiry
from holdfast.numerics.distance import contains
from holdfast.numerics.project import linf_bounds
from holdfast.numerics.zeroth import Coordinates

METHODS: list[tuple[Attack[Any, Any], Norm, float]] = [
    (ZOO(queries=203), Norm.L2, 1e-6),
    (OnePixel(queries=203), Norm.L0, 2.0),
    (SimBA(queries=203), Norm.L2, 1e-6),
    (SimBA(queries=203, basis="pixels"), Norm.LINF, 1e-6),
    (SPSA(queries=203), Norm.LINF, 1e-6),
    (Bandits(queries=203), Norm.L2, 1e-6),
    (Bandits(queries=203), Norm.LINF, 1e-6),
]


def model_of(shape: tuple[int, ...], classes: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    d = int(np.prod(shape))
    return (
        nn.Sequential(nn.Flatten(), nn.Linear(d, 24), nn.Tanh(), nn.Linear(24, classes)).double().requires_grad_(False)
    )


def points(model: nn.Module, shape: tuple[int, ...], n: int = 6) -> tuple[Tensor, Tensor]:
    x = torch.rand(n, *shape, generator=torch.Generator().manual_seed(3)).double()
    return x, model(x).argmax(1)


def ball(norm: Norm, eps: float, n: int, **more: Any) -> LpBall:
    return LpBall.uniform(norm, eps, n, dtype=torch.float64, **more)


def bound(problem: Problem, method: str) -> Problem:
    """The problem with draws, as an engine binds them."""
    return replace(problem, draws=Draws(0, method).of(problem.ids, problem.round))


@pytest.mark.parametrize(("attack", "norm", "eps"), METHODS)
def test_queries_are_counted_exactly(attack: Attack[Any, Any], norm: Norm, eps: float) -> None:
    """A hopeless search asks exactly what it may, and the model sees exactly that."""
    x, _ = points(model_of((1, 8, 8)), (1, 8, 8))
    constant = model_of((1, 8, 8))
    next(m for m in reversed(list(constant)) if isinstance(m, nn.Linear)).weight.zero_()
    rows: list[int] = []

    def counting(batch: Tensor) -> Tensor:
        rows.append(len(batch))
        return constant(batch)

    y = constant(x).argmax(1)
    out = run(attack, Problem.of(x, y, ball(norm, eps, len(x))), counting, clean=constant(x).detach())
    assert out.ledger.queries.tolist() == [203] * len(x)
    assert out.ledger.backwards.sum() == 0
    assert sum(rows) == 203 * len(x)


@pytest.mark.parametrize(("attack", "norm", "eps"), METHODS)
@pytest.mark.parametrize("grid", [None, Fraction(1, 255)])
def test_asks_only_points_of_the_box_and_the_grid(
    attack: Attack[Any, Any], norm: Norm, eps: float, grid: Fraction | None
) -> None:
    model = model_of((3, 5, 5))
    x, _ = points(model, (3, 5, 5), 1)
    if grid is not None:
        x = (x * 255).round() / 255
    y = model(x).argmax(1)
    widest = 4.0 if norm is Norm.L0 else 0.1
    problem = Problem.of(x, y, ball(norm, widest, 1, grid=grid))
    asked: list[Tensor] = []

    def noting(batch: Tensor) -> Tensor:
        asked.append(batch)
        return model(batch)

    run(attack, problem, noting, clean=model(x).detach(), keep=Keep.NEAREST)
    every = torch.cat(asked)
    many = np.zeros(len(every), dtype=np.int64)
    free = problem.select(many).set.unbounded()
    assert bool(contains(free, every, x[many]).all())
    if norm is Norm.LINF or isinstance(attack, (SimBA, OnePixel, Bandits)):
        assert bool(contains(problem.set.select(torch.from_numpy(many)), every, x[many]).all())
    assert bool((every != x).any())


# ZOO


def test_symmetric_differences_tend_to_the_gradient() -> None:
    torch.manual_seed(1)
    net = model_of((12,))
    x = torch.rand(3, 12).double()
    which = torch.tensor([[0, 5, 11], [1, 2, 3], [11, 10, 9]])

    def f(z: Tensor) -> Tensor:
        return net(z.flatten(0, 1)).log_softmax(1)[:, 1].view(z.shape[:2])

    z = x.clone().requires_grad_()
    true = torch.autograd.grad(f(z.unsqueeze(1)).sum(), z)[0].gather(1, which)
    errors = [(Coordinates(h).partials(f, x, which) - true).abs().max().item() for h in (0.4, 0.1, 1e-3)]
    assert errors[2] < 1e-6
    # the error of a symmetric difference falls with the square of the step
    assert errors[1] < errors[0] / 8


def test_each_coordinate_has_its_own_time() -> None:
    """Coordinate 0 moves thrice, coordinate 2 once: each as Adam (Kingma & Ba 2015) moves a number of its own."""
    grads = {0: [1.0, -0.5, 2.0], 2: [3.0]}
    zero = torch.zeros(1, 3).double()
    u, first, second, times = zero, zero, zero, zero
    rate = torch.full((1, 1), 0.1, dtype=torch.float64)
    for k, g in [(0, 1.0), (2, 3.0), (0, -0.5), (0, 2.0)]:
        u, first, second, times = _adam_at(
            torch.tensor([[k]]), torch.tensor([[g]], dtype=torch.float64), rate, u, first, second, times
        )
    assert times.tolist() == [[3, 0, 1]]
    for k, gs in grads.items():
        p = m = v = 0.0
        for t, g in enumerate(gs, start=1):
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            p -= 0.1 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)) ** 0.5 + 1e-8)
        assert u[0, k].item() == pytest.approx(p, rel=1e-12)
    assert u[0, 1].item() == 0


def test_zoo_comes_near_the_least_distance_of_an_affine_model() -> None:
    torch.manual_seed(0)
    model = nn.Linear(9, 2).double().requires_grad_(False)
    x = torch.full((5, 9), 0.5).double() + 0.02 * torch.arange(5).view(-1, 1)
    y = model(x).argmax(1)
    gap = model(x).gather(1, y.view(-1, 1)).squeeze(1) - model(x).gather(1, 1 - y.view(-1, 1)).squeeze(1)
    best = gap / (model.weight[0] - model.weight[1]).norm()
    # steps count in the box's width: where the optimum lies well inside, a wide box only makes the steps coarse
    out = run(ZOO(queries=2000), Problem.of(x, y, ball(Norm.L2, float("inf"), 5, low=0.0, high=1.0)), model)
    assert bool(out.found.all())
    ratio = out.distance / best
    assert bool((ratio >= 1).all())
    assert ratio.median() < 1.15


def test_zoo_grows_its_space_alike_for_every_slot() -> None:
    model = model_of((1, 20, 20))
    x, y = points(model, (1, 20, 20), 5)
    attack = ZOO(queries=300, spaces=(5, 10, 20), searches=2)
    assert [s.shape((1, 20, 20))[1] for s in attack._spaces((1, 20, 20))] == [5, 10, 20]
    levels = attack._level((1, 20, 20), np.arange(40), 3)
    assert set(levels.tolist()) == {0, 1, 2}
    assert bool((np.diff(levels) >= 0).all())
    problem = Problem.of(x, y, ball(Norm.L2, float("inf"), 5))
    whole = run(attack, problem, model, keep=Keep.NEAREST)
    single = run(attack, problem, model, keep=Keep.NEAREST, settings=Settings(slots=2))
    assert bool(whole.found.any())
    torch.testing.assert_close(whole.distance, single.distance, rtol=1e-9, atol=1e-9)


def test_importance_follows_the_change_of_a_region() -> None:
    u = torch.zeros(1, 1, 16, 16)
    assert bool((_importance(u) == 1).all())
    u[0, 0, 2, 3] = -1
    weight = _importance(u)[0, 0]
    assert weight[2, 2] == weight[3, 3] == weight.max() > 10 * weight[8, 8] > 0


def test_zoo_refuses_spaces_that_shrink() -> None:
    x = torch.rand(1, 1, 8, 8).double()
    problem = Problem.of(x, torch.zeros(1, dtype=torch.int64), ball(Norm.L2, 1.0, 1))
    with pytest.raises(UsageError, match="must grow"):
        ZOO(spaces=(8, 4)).check(problem)


# One pixel


class Planted(nn.Module):
    """Class 1 as soon as one colour of one pixel is high and another is low; the scores tell how near it is."""

    def forward(self, x: Tensor) -> Tensor:
        pixel = x[:, :, 11, 4]
        hot = pixel[:, 0] - pixel[:, 2] - 0.6
        near = x[:, 0, 9:14, 2:7].mean((1, 2)) - 0.5  # a hint in the neighbourhood
        score = 8 * hot + near
        return torch.stack([-score, score], dim=1)


def test_finds_a_planted_pixel() -> None:
    x = torch.full((4, 3, 16, 16), 0.5).double()
    y = torch.zeros(4, dtype=torch.int64)
    out = run(OnePixel(queries=6000), Problem.of(x, y, ball(Norm.L0, 3.0, 4)), Planted())
    assert bool(out.found.all())
    changed = (out.x != x).any(1)
    assert changed.flatten(1).sum(1).tolist() == [1] * 4
    assert bool(changed[:, 11, 4].all())


def test_eps_counts_features_and_buys_pixels() -> None:
    model = model_of((3, 6, 6))
    x, y = points(model, (3, 6, 6), 4)
    eps = torch.tensor([0.0, 2.0, 3.0, 7.0]).double()
    problem = Problem.of(x, y, ball(Norm.L0, 1.0, 4).with_eps(eps))
    assert OnePixel()._pixels(problem).tolist() == [0, 0, 1, 2]
    assert OnePixel(pixels=1)._pixels(problem).tolist() == [0, 0, 1, 1]
    out = run(OnePixel(queries=300), problem, model, keep=Keep.NEAREST)
    assert not bool(out.found[:2].any())
    assert bool((out.distance[out.found] <= eps[out.found]).all())


def test_reaches_the_best_single_feature() -> None:
    """Brute force over one feature of a linear model, at its two extreme values."""
    torch.manual_seed(4)
    model = nn.Linear(40, 3).double().requires_grad_(False)
    x = torch.rand(20, 40).double()
    y = model(x).argmax(1)
    breakable = torch.zeros(20, dtype=torch.bool)
    for k in range(40):
        for value in (0.0, 1.0):
            z = x.clone()
            z[:, k] = value
            breakable |= model(z).argmax(1) != y
    out = run(OnePixel(queries=2000), Problem.of(x, y, ball(Norm.L0, 1.0, 20)), model)
    assert torch.equal(out.found, breakable)
    assert 0 < int(breakable.sum()) < 20


def test_children_come_from_three_others() -> None:
    u = torch.rand(3, 7, 3, generator=torch.Generator().manual_seed(0))
    a, b, c = _three_others(u)
    own = torch.arange(7).expand(3, 7)
    four = torch.stack([own, a, b, c]).sort(dim=0).values
    assert bool((four.diff(dim=0) > 0).all())
    assert int(four.max()) < 7
    genes = torch.tensor([[-0.2, 1.3, 1.4, -0.5]])
    torch.testing.assert_close(_folded(genes), torch.tensor([[0.2, 0.7, 1.0, 0.0]]))


def test_one_pixel_refuses_an_endless_box() -> None:
    x = torch.rand(1, 5).double()
    with pytest.raises(UnsupportedError, match="finite edges"):
        OnePixel().check(Problem.of(x, torch.zeros(1).long(), ball(Norm.L0, 1.0, 1, high=float("inf"))))


# SimBA


@pytest.mark.parametrize("length", [1, 2, 7, 28])
def test_the_cosines_are_orthonormal(length: int) -> None:
    table = _cosines(length)
    torch.testing.assert_close(table @ table.T, torch.eye(length).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(table, torch.from_numpy(dct(np.eye(length), norm="ortho", axis=0)))


def test_low_frequencies_come_first_and_none_twice() -> None:
    assert _ring(32).tolist() == [0] * 4 + list(range(1, 29))
    assert _ring(224)[:35].tolist() == [0] * 28 + [1] * 7
    model = model_of((2, 8, 8))
    x, y = points(model, (2, 8, 8), 2)
    problem = bound(Problem.of(x, y, ball(Norm.L2, 1.0, 2)), "simba")
    ask: Any = Inquiry.of(model, problem).oracle(Access.SOFT_LABEL).on(problem)
    attack = SimBA()
    order = attack.start(ask).order.long()
    assert bool((order.sort(1).values == torch.arange(128)).all())
    assert not torch.equal(order[0], order[1])
    ring = torch.maximum(order % 64 // 8, order % 8)
    assert bool((ring.diff(dim=1) >= 0).all())
    every = torch.stack([attack._direction(problem, which).flatten(1) for which in order.T], dim=1)
    torch.testing.assert_close(every[0] @ every[0].T, torch.eye(128).double(), rtol=0, atol=1e-12)


def test_simba_ends_at_the_best_corner_of_a_linear_model() -> None:
    torch.manual_seed(0)
    model = nn.Linear(16, 2).double().requires_grad_(False)
    x = torch.full((6, 16), 0.5).double() + torch.linspace(-0.05, 0.05, 6).double().view(-1, 1)
    y = model(x).argmax(1)
    ball_ = ball(Norm.LINF, 0.35, 6)
    low, high = linf_bounds(ball_, x)
    corner = torch.where((model.weight[1 - y] - model.weight[y]) > 0, high, low)
    breakable = model(corner).argmax(1) != y
    # 16 directions, at most two queries each
    found = run(SimBA(queries=33), Problem.of(x, y, ball_), model)
    assert torch.equal(found.found, breakable)
    assert 0 < int(breakable.sum()) < 6


# SPSA and Bandits


def test_spsa_follows_adam_on_a_linear_model() -> None:
    """With far more directions than features, the first steps are Adam's on the true gradient: its signs."""
    torch.manual_seed(2)
    model = nn.Linear(4, 2).double().requires_grad_(False)
    x = torch.full((2, 4), 0.5).double()
    y = model(x).argmax(1)
    problem = bound(Problem.of(x, y, ball(Norm.LINF, 0.1, 2)), "spsa")
    ask: Any = Inquiry.of(model, problem).oracle(Access.SOFT_LABEL).on(problem)
    attack = SPSA(queries=100_000, directions=400, rate=0.25)
    state = attack.step(ask, attack.start(ask))
    way = (model.weight[1 - y] - model.weight[y]).sign()
    torch.testing.assert_close(state.x - x, 0.025 * way, rtol=0, atol=1e-6)
    # few queries: as many steps, with fewer directions
    assert [SPSA(queries=q).estimator(problem).q for q in (25_700, 2_000, 10)] == [128, 10, 1]


def test_the_prior_of_bandits_is_the_exponentiated_gradient() -> None:
    """In linf, tanh(atanh(v) + rate g) is the update of the paper on (v + 1) / 2."""
    g = torch.linspace(-2, 2, 9).double()
    v = torch.linspace(-0.9, 0.9, 9).double()
    p = (v + 1) / 2
    up, down = p * torch.exp(0.7 * g), (1 - p) * torch.exp(-0.7 * g)
    torch.testing.assert_close(_primal(Norm.LINF, v.atanh() + 0.7 * g), 2 * up / (up + down) - 1)
    assert torch.equal(_primal(Norm.L2, v + 0.7 * g), v + 0.7 * g)


@pytest.mark.parametrize("norm", [Norm.LINF, Norm.L2])
def test_the_prior_of_bandits_turns_to_the_gradient(norm: Norm) -> None:
    torch.manual_seed(0)
    model = nn.Linear(20, 2).double().requires_grad_(False)
    x = torch.full((3, 20), 0.5).double()
    y = model(x).argmax(1)
    problem = bound(Problem.of(x, y, ball(norm, 1e-3, 3)), "bandits")
    ask: Any = Inquiry.of(model, problem).oracle(Access.SOFT_LABEL).on(problem)
    attack = Bandits(queries=2000)
    state = attack.start(ask)
    for k in range(200):
        state = replace(attack.step(ask, state), step=np.full(3, k + 1))
    true = model.weight[1 - y] - model.weight[y]
    cosine = torch.cosine_similarity(_primal(norm, state.dual), true, dim=1)
    assert bool((cosine > 0.7).all()), cosine
