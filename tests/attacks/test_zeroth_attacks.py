"""The zeroth-order attacks: exact queries, and the limits in which each is a method with a known answer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from holdfast.attacks.common.space import Bilinear, Decoder, Tiles
from holdfast.attacks.engine import run
from holdfast.attacks.evasion.soft.autozoom import AutoZOOM
from holdfast.attacks.evasion.soft.finite_differences import FiniteDifferences
from holdfast.attacks.evasion.soft.nes import NES
from holdfast.attacks.evasion.soft.zo_admm import ZOADMM
from holdfast.attacks.evasion.soft.zo_ngd import ZONGD
from holdfast.attacks.evasion.soft.zo_signsgd import ZOSignSGD
from holdfast.attacks.evasion.soft.zo_svrg import ZOSVRG
from holdfast.attacks.evasion.white.pgd import PGD
from holdfast.core.draws import Draws
from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.core.problem import Problem
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.judge.asks import SoftLabelAsk
from holdfast.numerics.affine import affine_optimum
from holdfast.numerics.zeroth import Coordinates, Estimator
from holdfast.testing.toys import AffineModel, affine_digits, digits

EVERY = [ZOSignSGD(), NES(), ZONGD(), FiniteDifferences(), AutoZOOM(), ZOSVRG(), ZOADMM()]


def problem_of(norm: Norm, eps: float, n: int = 8) -> Problem:
    x, y = digits(n)
    return Problem.of(x, y, LpBall.uniform(norm, eps, n, dtype=torch.float64))


@pytest.mark.parametrize("attack", EVERY, ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("queries", [1, 30, 150])
def test_queries_are_counted_exactly(attack: Any, queries: int) -> None:
    rows = 0
    model = affine_digits()

    def counting(batch: Tensor) -> Tensor:
        nonlocal rows
        rows += len(batch)
        return model(batch)

    small = replace(attack, queries=queries)
    problem = problem_of(attack.card.norms[-1], 1e-6)
    out = run(small, problem, counting, clean=model(problem.x).detach(), seed=0)
    assert rows == int(out.ledger.queries.sum())
    assert (out.ledger.queries <= queries).all()
    assert out.ledger.backwards.sum() == 0


def test_signsgd_with_many_directions_takes_the_steps_of_iterated_fgsm() -> None:
    model = affine_digits()
    problem = problem_of(Norm.LINF, 0.01, 3)
    many = ZOSignSGD(queries=3 * 6002, q=6000, relative_step=0.3, patience=0)
    exact = PGD(steps=3, relative_step=0.3, random_start=False, loss="margin")
    zeroth, white = [], []
    for attack, seen in ((many, zeroth), (exact, white)):
        run(attack, problem, _Watched(model, seen), seed=0, clean=model(problem.x).detach())
    # The last rows that each asked are its iterate. Signs differ only where the gradient is nearly 0.
    way = torch.stack([model.weight.detach()[k] for k in problem.y]).view_as(problem.x)
    ours, theirs = zeroth[-1][-3:] - problem.x, white[-1][-3:] - problem.x
    strong = way.abs() > 0.3 * way.abs().amax((1, 2, 3), keepdim=True)
    assert float((ours.sign() == theirs.sign())[strong & (theirs != 0)].double().mean()) > 0.95


class _Watched(nn.Module):
    def __init__(self, model: nn.Module, seen: list[Tensor]) -> None:
        super().__init__()
        self.model, self.seen = model, seen

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        return self.model(x)


def test_finite_differences_of_single_features_are_fgsm() -> None:
    model = affine_digits()
    x, y = digits(40)
    problem = Problem.of(x, y, LpBall.uniform(Norm.LINF, 0.05, len(x), dtype=torch.float64))
    out = run(FiniteDifferences(group=1, steps=10, queries=2000, h=1e-4), problem, model)
    white = run(PGD(steps=10, random_start=False, loss="margin"), problem, model)
    assert 5 < int(out.found.sum()) < len(x)
    assert int((out.found != white.found).sum()) <= 1
    whole = run(FiniteDifferences(group=1, steps=1, queries=2000), problem, model)
    assert (whole.ledger.queries[~whole.found] == 130).all()  # the clean input, 2 d, the step


def test_components_must_fit() -> None:
    with pytest.raises(UsageError, match="do not fit"):
        FiniteDifferences(components=torch.zeros(3, 7)).check(problem_of(Norm.LINF, 0.1))


def test_no_correction_at_the_anchor() -> None:
    attack, problem = ZOSVRG(), problem_of(Norm.L2, 1.0, 4)
    problem = replace(problem, draws=Draws(0, "zo_svrg").of(np.arange(4)))
    w = torch.randn(64, generator=torch.Generator().manual_seed(0)).double()

    def f(v: Tensor) -> Tensor:
        return (v.flatten(2) @ w).sin()

    state = attack.start(SoftLabelAsk(None, problem))  # type: ignore[arg-type]  # which asks nothing
    state = replace(state, value=f(state.anchor.unsqueeze(1))[:, 0])
    at_anchor, _ = attack.correction(f, problem, state)
    assert float(at_anchor.abs().max()) < 1e-9
    sizes = []
    for far in (1e-3, 1e-1):  # the noise of the correction grows with the way from the anchor
        moved = replace(state, v=state.v + far)
        sizes.append(float(attack.correction(f, problem, moved)[0].norm()))
    assert sizes[0] < 0.1 * sizes[1]


@dataclass(frozen=True)
class ExactADMM(ZOADMM):
    """Every coordinate's difference instead of random directions: the white-box limit."""

    def estimator(self, problem: Problem) -> Estimator:
        return Coordinates(1e-5)


def test_admm_with_exact_gradients_reaches_the_optimum_of_an_affine_model() -> None:
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 5, generator=g).double()
    model = AffineModel(weight, torch.zeros(2).double())
    x = 0.5 + 0.05 * torch.randn(6, 5, generator=g).double()
    y = model(x).argmax(1)
    edges = torch.zeros(()).double(), torch.ones(()).double()
    best = affine_optimum(Norm.L2, weight, torch.zeros(2).double(), x, y, *edges).distance
    ball = LpBall(norm=Norm.L2, eps=torch.full_like(best, torch.inf), lower=edges[0], upper=edges[1])
    problem = Problem.of(x, y, ball)
    out = run(ExactADMM(queries=4000), problem, model, seed=0)
    assert bool(out.found.all())
    assert float((out.distance / best).max()) < 1.02


@pytest.mark.parametrize("attack", [ZOADMM(), ZOSVRG(), AutoZOOM()], ids=lambda a: type(a).__name__)
def test_more_queries_come_nearer(attack: Any) -> None:
    model, problem = affine_digits(), problem_of(Norm.L2, float("inf"))
    few, many = (run(replace(attack, queries=q), problem, model, seed=0) for q in (300, 3000))
    assert bool(many.found.all())
    assert float(many.distance.median()) < float(few.distance.median())


def test_the_partial_information_mode_ends_at_its_budget_and_keeps_the_target() -> None:
    model = affine_digits()
    x, y = digits(60)
    starts = torch.stack([x[y == k][-1] for k in range(10)])
    x, y = x[:6], y[:6]
    target = (y + 1) % 10
    problem = Problem.of(x, y, LpBall.uniform(Norm.LINF, 0.4, 6, dtype=torch.float64), target=target)
    out = run(NES(queries=4000, starts=starts), problem, model, top_k=2, seed=0)
    assert int(out.found.sum()) >= 4
    assert torch.equal(model(out.x[out.found]).argmax(1), target[out.found])
    with pytest.raises(UnsupportedError, match="targets"):
        NES(starts=starts).check(problem_of(Norm.LINF, 0.1))


def test_spaces() -> None:
    u = torch.rand(2, 3, 4, 4)
    assert Tiles(4).lift(u, (3, 8, 8)).unique().numel() == u.unique().numel()
    assert Bilinear(4).shape((3, 8, 2)) == (3, 4, 2)
    assert Bilinear(4).shape((30,)) == (30,)
    decoder = Decoder(nn.Linear(5, 12).requires_grad_(False), (5,))
    assert decoder.lift(torch.zeros(2, 5), (12,)).shape == (2, 12)
    with pytest.raises(UsageError, match="makes"):
        decoder.lift(torch.zeros(2, 5), (13,))
    problem = problem_of(Norm.L2, float("inf"), 4)
    lift = nn.Linear(20, 64).double().requires_grad_(False)
    space = Decoder(lambda z: lift(z).view(-1, 1, 8, 8), (20,))
    assert bool(run(AutoZOOM(queries=600, space=space), problem, affine_digits(), seed=0).found.any())
