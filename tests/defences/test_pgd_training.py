"""PGD adversarial training: the inner search stays inside and helps; the result withstands an attack it never saw."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.attacks.engine import run
from holdfast.attacks.evasion.white.pgd import PGD
from holdfast.core.draws import Draws
from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.core.problem import Problem
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.data.load import load_data
from holdfast.defences.adversarial_training.pgd_training import PGDTraining
from holdfast.models.zoo import digits_cnn, digits_mlp
from holdfast.numerics.distance import contains
from holdfast.training.batch import Batch
from holdfast.training.draws import BatchDraws
from holdfast.training.loop import fit
from holdfast.training.settings import TrainingSettings


def batch(n: int = 32) -> Batch:
    data = load_data("digits:train").head(n)
    ids = torch.arange(n)
    draws = BatchDraws.of(Draws(0, "training"), ids.numpy(), epoch=1, batch=0)
    return Batch(x=data.x, y=data.y, ids=ids, draws=draws)


def trained() -> nn.Module:
    torch.manual_seed(0)
    model = digits_mlp()
    fit(
        model, load_data("digits:train"), lambda m, b: F.cross_entropy(m(b.x), b.y), settings=TrainingSettings(epochs=4)
    )
    return model


@pytest.mark.parametrize(("norm", "eps"), [(Norm.LINF, "1/10"), (Norm.L2, "1/2"), (Norm.L1, "2")])
def test_the_inner_search_stays_inside_and_raises_the_loss_with_its_steps(norm: Norm, eps: str) -> None:
    model, b = trained(), batch()
    ball = LpBall.uniform(norm, Fraction(eps), len(b.x))

    def loss(steps: int) -> float:
        found = PGDTraining(norm=norm, eps=Fraction(eps), steps=steps).worst(model, b)
        assert bool(contains(ball, found, b.x).all())
        with torch.no_grad():
            return float(F.cross_entropy(model(found), b.y))

    with torch.no_grad():
        clean = float(F.cross_entropy(model(b.x), b.y))
    assert clean < loss(1) < loss(10)


def test_the_inner_search_sees_evaluation_mode_and_touches_nothing() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.Dropout(), nn.Linear(32, 10))
    model[3].eval()  # a mode of its own must be put back, not overwritten
    modes: list[bool] = []
    model[2].register_forward_hook(lambda *_: modes.append(model[2].training))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    PGDTraining(steps=3).worst(model, batch())
    assert modes == [False] * 3
    assert [m.training for m in model] == [True, True, True, False, True]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_the_loss_trains_the_parameters_in_training_mode() -> None:
    model = digits_mlp()
    modes: list[bool] = []
    model.register_forward_hook(lambda *_: modes.append(model.training))
    PGDTraining(steps=2).loss(model, batch()).backward()
    assert modes == [False, False, True]
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters())


def test_hardening_gains_twenty_points_on_the_digits() -> None:
    train, test = load_data("digits:train"), load_data("digits:test").head(200)
    attack = PGD(steps=40, loss="margin")  # another loss and more steps than the training's own search

    def robust(model: nn.Module) -> float:
        problem = Problem.of(test.x, test.y, LpBall.uniform(Norm.LINF, 0.1, len(test)))
        return 1 - float(run(attack, problem, model).found.double().mean())

    torch.manual_seed(0)
    model = digits_cnn()
    fit(model, train, lambda m, b: F.cross_entropy(m(b.x), b.y), settings=TrainingSettings(epochs=6))
    before = robust(model)
    defence = PGDTraining(eps=Fraction(1, 10), steps=7)
    fit(model, train, defence.loss, score=defence.score, settings=TrainingSettings(epochs=12, rate=0.01))
    with torch.no_grad():
        clean = float((model(test.x).argmax(1) == test.y).double().mean())
    assert robust(model) >= before + 0.2
    assert clean >= 0.9


def test_a_sample_counts_as_right_only_if_both_answers_are() -> None:
    def right(model: nn.Module) -> Tensor:
        return PGDTraining(steps=1).score(model, batch())

    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.one_hot(torch.full((len(x),), 3), 10).float() + 0 * x.flatten(1).sum(1, keepdim=True)

    assert torch.equal(right(Constant()), batch().y == 3)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="no l0 form"):
        PGDTraining(norm=Norm.L0)
    with pytest.raises(UsageError):
        PGDTraining(eps=Fraction(0))
