"""Auto-PGD and FGSM against closed forms and the paper's own schedule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from holdfast.attacks.attack import Attack, State
from holdfast.attacks.engine import Settings, run
from holdfast.attacks.evasion.white.apgd_ce import APGDCE
from holdfast.attacks.evasion.white.apgd_dlr import APGDDLR
from holdfast.attacks.evasion.white.apgd_t import APGDT
from holdfast.attacks.evasion.white.fgsm import FGSM
from holdfast.attacks.families.auto_pgd import AutoPGD, AutoPGDState, checkpoints
from holdfast.core.draws import Draws
from holdfast.core.errors import UnsupportedError
from holdfast.core.problem import Problem
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.judge.asks import WhiteBoxAsk
from holdfast.judge.inquiry import Inquiry
from holdfast.judge.oracles import WhiteBoxOracle
from holdfast.numerics.affine import affine_optimum
from holdfast.numerics.distance import between, contains

NORMS = [Norm.L1, Norm.L2, Norm.LINF]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def affine(classes: int, d: int = 40, n: int = 16, seed: int = 0) -> tuple[nn.Linear, Tensor, Tensor]:
    """A float64 linear classifier, points well inside and on the edges of the box, and its own labels."""
    g = torch.Generator().manual_seed(seed)
    model = nn.Linear(d, classes).double().requires_grad_(False)
    with torch.no_grad():
        model.weight.copy_(torch.randn(classes, d, generator=g))
        model.bias.zero_()
    x = torch.rand(n, d, generator=g).double().mul(1.4).sub(0.2).clamp(0, 1)
    return model, x, model(x).argmax(1)


def ball_of(norm: Norm, eps: Tensor) -> LpBall:
    return replace(LpBall.uniform(norm, 1.0, len(eps), dtype=torch.float64), eps=eps)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 32), nn.Tanh(), nn.Linear(32, 6)).double().requires_grad_(False)


def points(model: nn.Module, n: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    x = torch.rand(n, 12, generator=torch.Generator().manual_seed(seed)).double()
    return x, model(x).argmax(1)


def test_checkpoints_of_100_steps_are_the_papers() -> None:
    assert checkpoints(100) == (22, 41, 57, 70, 80, 87, 93, 99)


@pytest.mark.parametrize("steps", [1, 2, 5, 10, 40, 1000])
def test_checkpoints_rise_and_stay_below_the_steps(steps: int) -> None:
    found = checkpoints(steps)
    assert list(found) == sorted(set(found))
    assert all(0 < k < steps for k in found)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("attack", "classes"),
    [(APGDCE(), 2), (APGDDLR(), 2), (APGDT(targets=5), 6)],
    ids=["APGD-CE", "APGD-DLR", "APGD-T"],
)
def test_reaches_the_least_distance_of_an_affine_model_and_never_beats_it(
    attack: AutoPGD, classes: int, norm: Norm
) -> None:
    # Untargeted losses are held to two classes: with more, the class that they head for need not be the nearest.
    model, x, y = affine(classes)
    least = affine_optimum(norm, model.weight, model.bias, x, y, torch.tensor(0.0), torch.tensor(1.0)).distance
    # l1 is held to its card, the median: steps of whole features leave a tail. l2 and linf are held to every sample.
    slack = attack.card.affine_ratio[norm] if norm is Norm.L1 else 1.001
    near = run(attack, Problem.of(x, y, ball_of(norm, least * slack)), model)
    assert near.found.double().mean() > 0.5 if norm is Norm.L1 else bool(near.found.all())
    below = run(attack, Problem.of(x, y, ball_of(norm, least * (1 - 1e-6))), model)
    assert not bool(below.found.any())


@pytest.mark.parametrize("norm", NORMS)
def test_targeted_reaches_the_target_of_a_two_class_model(norm: Norm) -> None:
    model, x, y = affine(classes=2)
    least = affine_optimum(norm, model.weight, model.bias, x, y, torch.tensor(0.0), torch.tensor(1.0)).distance
    found = run(APGDDLR(), Problem.of(x, y, ball_of(norm, least * 1.05), target=1 - y), model)
    assert bool(found.found.all())
    assert bool((model(found.x).argmax(1) == 1 - y).all())


@dataclass
class Watch:
    """Keeps what an attack's states were."""

    states: list[AutoPGDState] = field(default_factory=list)


def watched(attack: AutoPGD, watch: Watch) -> AutoPGD:
    """The attack, with its states after each step kept."""

    class Watched(type(attack)):  # type: ignore[misc]
        def step(self, ask: WhiteBoxAsk, state: State) -> State:
            after = super().step(ask, state)
            watch.states.append(after)
            return after

    return Watched(**{name: getattr(attack, name) for name in ("steps", "restarts", "rho")})


@pytest.mark.parametrize("norm", [Norm.L2, Norm.LINF])
def test_best_loss_never_falls_and_steps_halve_only_at_checkpoints(norm: Norm) -> None:
    model = network()
    x, y = points(model, 20)
    watch = Watch()
    problem = Problem.of(x, y, LpBall.uniform(norm, 1e-3, 20, dtype=torch.float64))
    run(watched(APGDCE(), watch), problem, model)
    states = watch.states
    assert len(states) == 100
    assert bool((states[0].size == 2).all())
    for k, (before, after) in enumerate(pairwise(states), start=1):
        assert bool((after.best_loss >= before.best_loss).all())
        fell = after.size != before.size
        assert bool((after.size[fell] == before.size[fell] / 2).all())
        assert k in checkpoints(100) or not bool(fell.any())
    assert bool((states[-1].size < 2).any())


def test_l1_form_shrinks_its_radius_in_three_stages() -> None:
    model = network()
    x, y = points(model, 20)
    watch = Watch()
    problem = Problem.of(x, y, LpBall.uniform(Norm.L1, 1e-3, 20, dtype=torch.float64))
    run(watched(APGDCE(), watch), problem, model)
    for k, state in enumerate(watch.states):
        radius = 3e-3 if k < 30 else 2e-3 if k < 60 else 1e-3
        assert bool(contains(problem.set.with_eps(radius), state.x, x).all())
        assert bool((state.size >= 0.1).all() and (state.size <= 1).all())
    assert bool((watch.states[-1].support < 12).any())


def test_costs_one_backward_a_step_and_one_forward_more() -> None:
    model, x, y = affine(classes=4)
    tiny = ball_of(Norm.LINF, torch.full((len(x),), 1e-9, dtype=torch.float64))
    found = run(APGDCE(steps=10), Problem.of(x, y, tiny), model, clean=model(x).detach())
    assert found.ledger.backwards.tolist() == [10] * len(x)
    assert found.ledger.forwards.tolist() == [11] * len(x)


def test_targets_are_the_nearest_classes_one_a_round() -> None:
    model, x, y = affine(classes=6)
    seen: dict[int, Tensor] = {}

    class Noting(APGDT):
        def aim(self, ask: WhiteBoxAsk) -> Tensor:
            aims = super().aim(ask)
            seen[int(ask.problem.round[0])] = aims
            return aims

    tiny = ball_of(Norm.LINF, torch.full((len(x),), 1e-9, dtype=torch.float64))
    run(Noting(steps=1), Problem.of(x, y, tiny), model)
    order = model(x).argsort(1, descending=True)
    assert sorted(seen) == list(range(9))
    for k in range(9):  # 5 other classes: rounds 5 to 8 start again from the nearest
        assert torch.equal(seen[k], order[:, 1 + k % 5])


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("attack", [APGDDLR(steps=20), APGDT(steps=20)], ids=lambda a: a.card.title)
def test_few_classes_fall_back_on_the_margin(attack: AutoPGD, classes: int) -> None:
    model, x, y = affine(classes=classes)
    least = affine_optimum(Norm.LINF, model.weight, model.bias, x, y, torch.tensor(0.0), torch.tensor(1.0)).distance
    found = run(attack, Problem.of(x, y, ball_of(Norm.LINF, least * 1.2)), model)
    assert bool(found.found.all())


def test_apgd_t_refuses_a_targeted_problem_by_name() -> None:
    model, x, y = affine(classes=4)
    problem = Problem.of(x, y, ball_of(Norm.LINF, torch.full((len(x),), 0.1).double()), target=(y + 1) % 4)
    with pytest.raises(UnsupportedError, match="APGD-T"):
        run(APGDT(), problem, model)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("make", [APGDCE, APGDT], ids=["ce", "t"])
def test_same_result_whatever_the_slots(make: Callable[..., AutoPGD], norm: Norm) -> None:
    model = network()
    x, y = points(model, 7)
    eps = {Norm.L1: 0.8, Norm.L2: 0.3, Norm.LINF: 0.1}[norm]
    problem = Problem.of(x, y, LpBall.uniform(norm, eps, len(x), dtype=torch.float64))
    runs = [run(make(steps=10), problem, model, settings=Settings(slots=k)) for k in (1, 3, 256)]
    for other in runs[1:]:
        assert torch.equal(runs[0].found, other.found)
        assert torch.equal(runs[0].ledger.forwards, other.ledger.forwards)
        torch.testing.assert_close(runs[0].x, other.x, rtol=0, atol=1e-9)
    assert 0 < int(runs[0].found.sum()) < len(x)


@pytest.mark.parametrize("attack", [APGDCE(steps=20), FGSM(), FGSM(steps=40)], ids=["apgd", "fgsm", "iterated"])
def test_asks_only_valid_values_of_a_gridded_set_and_still_moves(attack: Attack[WhiteBoxOracle, Any]) -> None:
    # Driven by hand: what the engine passes on of a grid is the engine's own affair.
    model, x, _ = affine(classes=4)
    model, x = model.float(), (x * 255).round().float() / 255
    ball = LpBall.uniform(Norm.LINF, Fraction(20, 255), len(x), grid=Fraction(1, 255))
    asked: list[Tensor] = []

    def noting(batch: Tensor) -> Tensor:
        asked.append(batch.detach().clone())
        return model(batch)

    problem = Problem.of(x, model(x).argmax(1), ball)
    problem = replace(problem, draws=Draws(0, "test").of(problem.ids))
    inquiry = Inquiry.of(noting, problem, clean=model(x))
    ask = WhiteBoxOracle(inquiry).on(problem)
    state = attack.start(ask)
    for k in range(attack.iterations):
        state = replace(attack.step(ask, state), step=np.full(len(x), k + 1))
    attack.finalize(ask, state)
    assert len(asked) == attack.iterations + 1
    assert all(bool(contains(ball, batch, x).all()) for batch in asked)
    # FGSM in 40 steps of half a grid step gets as far as in one.
    assert bool((between(Norm.LINF, asked[-1], x) > 19 / 255).all())
    assert int(inquiry.archive.found.sum()) > 3


@pytest.mark.parametrize("steps", [1, 7])
def test_fgsm_linf_is_exact_on_two_classes(steps: int) -> None:
    model, x, y = affine(classes=2)
    least = affine_optimum(Norm.LINF, model.weight, model.bias, x, y, torch.tensor(0.0), torch.tensor(1.0)).distance
    assert bool(run(FGSM(steps=steps), Problem.of(x, y, ball_of(Norm.LINF, least * (1 + 1e-9))), model).found.all())
    assert not bool(run(FGSM(steps=steps), Problem.of(x, y, ball_of(Norm.LINF, least * (1 - 1e-9))), model).found.any())


@pytest.mark.parametrize("norm", [Norm.L1, Norm.L2])
def test_fgsm_is_exact_where_the_box_is_far(norm: Norm) -> None:
    model, x, y = affine(classes=2)
    x = x * 0.02 + 0.49
    y = model(x).argmax(1)
    wide = replace(ball_of(norm, torch.ones(len(x)).double()), lower=torch.tensor(-99.0), upper=torch.tensor(99.0))
    edges = wide.lower, wide.upper
    least = affine_optimum(norm, model.weight, model.bias, x, y, *edges).distance
    assert bool(run(FGSM(), Problem.of(x, y, wide.with_eps(least * (1 + 1e-9))), model).found.all())
    assert not bool(run(FGSM(), Problem.of(x, y, wide.with_eps(least * (1 - 1e-9))), model).found.any())


def test_fgsm_asks_once_and_checks_once() -> None:
    model, x, y = affine(classes=2)
    tiny = ball_of(Norm.LINF, torch.full((len(x),), 1e-9).double())
    found = run(FGSM(), Problem.of(x, y, tiny), model, clean=model(x).detach())
    assert found.ledger.forwards.tolist() == [2] * len(x)
    assert found.ledger.backwards.tolist() == [1] * len(x)


def test_stage_of_the_l1_form_copes_with_few_steps() -> None:
    for steps in (1, 2, 3, 10):
        stage, made = APGDCE(steps=steps)._stage(np.arange(steps))
        assert stage[-1] == 2
        assert (made >= 0).all()
