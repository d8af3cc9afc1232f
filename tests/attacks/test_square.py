"""Square: its budget, its windows, its independence of the batch, and what it does with thin answers."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from holdfast.attacks.attack import State
from holdfast.attacks.engine import Settings, run
from holdfast.attacks.evasion.soft.square import Square, SquareState, _extent, _pyramid
from holdfast.core.problem import Problem
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.judge.asks import SoftLabelAsk
from holdfast.numerics.distance import between, contains
from holdfast.numerics.project import linf_bounds

NORMS = [Norm.L1, Norm.L2, Norm.LINF]
EPS = {Norm.L1: 6.0, Norm.L2: 1.0, Norm.LINF: 0.12}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def model_of(shape: tuple[int, ...], classes: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    d = int(np.prod(shape))
    return (
        nn.Sequential(nn.Flatten(), nn.Linear(d, 24), nn.Tanh(), nn.Linear(24, classes)).double().requires_grad_(False)
    )


def points(model: nn.Module, shape: tuple[int, ...], n: int = 12) -> tuple[Tensor, Tensor]:
    x = torch.rand(n, *shape, generator=torch.Generator().manual_seed(3)).double()
    return x, model(x).argmax(1)


def ball(norm: Norm, n: int, scale: float = 1.0) -> LpBall:
    return LpBall.uniform(norm, EPS[norm] * scale, n, dtype=torch.float64)


def test_windows_of_autoattack() -> None:
    square = Square(queries=5000)
    model = model_of((1, 28, 28))
    x, y = points(model, (1, 28, 28), 1)
    problem = Problem.of(x, y, ball(Norm.LINF, 1))
    sizes, level = square._window(problem, np.array([0, 4, 5, 24, 25, 99, 249, 499, 999, 1999, 2999, 3999, 4998]))
    assert [a for a, _ in sizes] == [25, 18, 13, 9, 6, 4, 3, 2, 2, 1]
    # the paper's 10, 50, 200, ... of 10,000 queries are 5, 25, 100, ... of 5,000
    assert level.tolist() == [0, 0, 1, 1, 2, 2, 3, 4, 5, 6, 7, 8, 9]


def test_extents_fit_strips_and_odd_windows() -> None:
    assert _extent(0.8, 1, 100, odd=False) == (1, 80)
    assert _extent(0.8, 1, 100, odd=True) == (1, 80)
    assert _extent(0.8, 4, 64, odd=False) == (4, 51)
    assert _extent(0.001, 1, 100, odd=False) == (1, 1)
    assert _extent(0.3, 32, 32, odd=True) == (19, 19)
    assert _extent(0.8, 2, 2, odd=True) == (2, 2)


def test_pyramid_is_the_papers() -> None:
    height = _pyramid(Norm.L2, 3, 3)
    ratio = height / height[0, 0]
    assert ratio[0].tolist() == pytest.approx([1, 1, 1])
    assert ratio[1, 1].item() == pytest.approx((1 + 1 / 4) / (1 / 4))
    assert height.square().sum().item() == pytest.approx(1)
    steep = _pyramid(Norm.L1, 3, 3)
    assert (steep[1, 1] / steep[0, 0]).item() == pytest.approx((1 + 1 / 16) / (1 / 16))
    assert steep.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("queries", [1, 2, 60])
def test_queries_are_counted_exactly(queries: int, known: bool) -> None:
    model = model_of((1, 8, 8))
    x, y = points(model, (1, 8, 8))
    problem = Problem.of(x, y, ball(Norm.LINF, len(x), 1e-6))
    rows: list[int] = []

    def counting(batch: Tensor) -> Tensor:
        rows.append(len(batch))
        return model(batch)

    clean = model(x).detach() if known else None
    found = run(Square(queries=queries), problem, counting, clean=clean)
    assert found.ledger.queries.tolist() == [queries] * len(x)
    assert found.ledger.backwards.sum() == 0
    # One query an iteration and one for the start; the class count of a model that was never asked is one row, free.
    assert sum(rows) == queries * len(x) + (0 if known else int(queries >= 1 and rows[0] == 1))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(3, 8, 8), (30,), (5, 12)])
def test_asks_only_points_of_the_set(norm: Norm, shape: tuple[int, ...]) -> None:
    model = model_of(shape)
    x, y = points(model, shape, 4)
    problem = Problem.of(x, y, ball(norm, 4, 0.01))
    asked: list[Tensor] = []

    def noting(batch: Tensor) -> Tensor:
        asked.append(batch)
        return model(batch)

    run(Square(queries=80), problem, noting, clean=model(x).detach())
    for batch in asked:
        assert bool(contains(problem.set, batch, x).all())
    radius = float(problem.set.eps[0])
    assert bool((between(norm, asked[-1], x) > 0.5 * radius).all())


@pytest.mark.parametrize("norm", NORMS)
def test_same_result_whatever_the_slots(norm: Norm) -> None:
    model = model_of((3, 8, 8))
    x, y = points(model, (3, 8, 8), 7)
    problem = Problem.of(x, y, ball(norm, 7, 3.0))
    runs = [run(Square(queries=40), problem, model, settings=Settings(slots=k)) for k in (1, 3, 256)]
    for other in runs[1:]:
        assert torch.equal(runs[0].found, other.found)
        assert torch.equal(runs[0].ledger.queries, other.ledger.queries)
        torch.testing.assert_close(runs[0].x, other.x, rtol=0, atol=1e-9)
    assert 0 < int(runs[0].found.sum()) < 7


class Watched(Square):
    values: list[Tensor]

    def step(self, ask: SoftLabelAsk, state: State) -> State:
        after = super().step(ask, state)
        assert isinstance(after, SquareState)
        self.values.append(after.value)
        return after


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("top_k", [None, 1, 2])
@pytest.mark.parametrize("aimed", [False, True])
def test_incumbent_only_improves_whatever_the_answer_shows(norm: Norm, top_k: int | None, aimed: bool) -> None:
    model = model_of((1, 8, 8))
    x, y = points(model, (1, 8, 8))
    problem = Problem.of(x, y, ball(norm, len(x), 0.2), target=(y + 1) % 4 if aimed else None)
    attack = Watched(queries=60)
    object.__setattr__(attack, "values", [])
    run(attack, problem, model, top_k=top_k)
    values = [v for v in attack.values if len(v) == len(attack.values[0])]
    assert all(bool(v.isfinite().all()) for v in values)
    assert all(bool((b >= a).all()) for a, b in pairwise(values))
    assert bool((values[-1] > values[0]).any())


@pytest.mark.parametrize("top_k", [1, 2])
def test_thin_answers_still_guide_the_search(top_k: int) -> None:
    model = model_of((1, 8, 8))
    x, y = points(model, (1, 8, 8), 40)
    problem = Problem.of(x, y, ball(Norm.LINF, 40))
    full, thin = run(Square(queries=150), problem, model), run(Square(queries=150), problem, model, top_k=top_k)
    assert int(thin.found.sum()) >= 0.8 * int(full.found.sum()) > 0


def test_finds_the_best_corner_of_a_linear_model() -> None:
    torch.manual_seed(0)
    model = nn.Linear(16, 2).double().requires_grad_(False)
    x = torch.full((6, 16), 0.5).double()
    x += torch.linspace(-0.05, 0.05, 6).double().view(-1, 1)
    y = model(x).argmax(1)
    ball_ = LpBall.uniform(Norm.LINF, 0.3, 6, dtype=torch.float64)
    low, high = linf_bounds(ball_, x)
    way = (model.weight[1 - y] - model.weight[y]) > 0
    corner = torch.where(way, high, low)
    breakable = model(corner).argmax(1) != y
    found = run(Square(queries=600), Problem.of(x, y, ball_), model)
    assert torch.equal(found.found, breakable)


def test_a_mask_is_respected() -> None:
    model = model_of((1, 8, 8))
    x, y = points(model, (1, 8, 8))
    mask = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    mask[..., :4, :] = True
    for norm in NORMS:
        masked = LpBall.uniform(norm, 2 * EPS[norm], len(x), mask=mask, dtype=torch.float64)
        found = run(Square(queries=100), Problem.of(x, y, masked), model)
        assert int(found.found.sum()) > 0
        assert torch.equal(found.x[..., 4:, :], x[..., 4:, :])
