"""The pre-flight of a verb: what it warns of, what it refuses, and what it asks of whom."""

import pytest
import torch
from torch import Tensor, nn

from holdfast.core.errors import DataError
from holdfast.core.threat import ThreatModel
from holdfast.data.dataset import Dataset
from holdfast.models.http import HttpModel
from holdfast.models.queries_only import QueriesOnly
from holdfast.session import ModelSpec, open_session
from holdfast.session.look import answers_vary, is_randomised, look, look_at, look_at_all

THREAT = ThreatModel.of("linf", "0.1")
X = torch.rand(60, 2, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > X[:, 1]).long()
DATA = Dataset.of(X, Y)


class Sides(nn.Module):
    """Right on all of the data, or wrong; with a dropout of nothing, which tells its mode."""

    def __init__(self, sign: float = 1.0) -> None:
        super().__init__()
        self.sign, self.drop, self.scale = sign, nn.Dropout(0.0), nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.sign * self.scale * x.flip(1))


class Noisy(Sides):
    """Answers otherwise each time, in training mode alone or always."""

    def __init__(self, *, always: bool) -> None:
        super().__init__()
        self.always = always

    def forward(self, x: Tensor) -> Tensor:
        noisy = self.always or self.training
        return super().forward(x) + (torch.rand(len(x), 2) if noisy else 0.0)


def test_a_model_that_is_right_and_in_evaluation_mode_is_warned_of_nothing():
    assert look_at(Sides().eval(), DATA, THREAT) == []
    assert look(open_session(Sides().eval(), (X, Y), THREAT)) == []


def test_a_warning_says_what_is_wrong_and_what_to_do():
    (said,) = look_at(Sides().train(), DATA, THREAT)
    assert said.startswith("warning: the model is in training mode. ")
    assert "eval()" in said


def test_a_model_worse_than_guessing_is_refused_unless_it_is_wanted_or_untrained():
    wrong = Sides(-1.0).eval()
    session = open_session(wrong, (X, Y), THREAT)
    with pytest.raises(DataError, match="--anyway goes on all the same"):
        look_at(wrong, DATA, THREAT)
    with pytest.raises(DataError, match="--anyway goes on all the same"):
        look(session)
    for warned in (look_at(wrong, DATA, THREAT, anyway=True), look(session, anyway=True)):
        assert any(said.startswith("warning: ") for said in warned)
    assert look_at(wrong, DATA, THREAT, trained=False) == look(session, trained=False) == []
    assert look_at(wrong.train(), DATA, THREAT, trained=False) == []


class OfLevels(nn.Module):
    """Was trained on levels from 0 to 255, and is right on three quarters of the rows that are given as shares of 1."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.flatten(1)[:, 0], x.flatten(1)[:, 1]
        score = torch.where(second > 0.5, first, 255 * first) - 127.5
        return torch.stack([-score, score], 1)


def test_a_slip_in_the_preprocessing_is_warned_of_but_for_a_model_whose_accuracy_says_nothing():
    x = torch.rand(200, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    data = Dataset.of(x, (x[:, 0, 0, 0] > 0.5).long())
    (said,) = look_at(OfLevels().eval(), data, THREAT)
    assert said.startswith("warning: the preprocessing seems to be off. ")
    assert "--normalise" in said
    assert look_at(OfLevels().eval(), data, THREAT, trained=False) == []


def test_what_is_worth_knowing_and_needs_nothing_is_no_warning():
    assert look_at(Sides().eval(), Dataset.of(X, Y, notes=("it was cut",)), THREAT) == []


def test_an_api_is_not_asked_and_its_data_are_looked_at():
    api = HttpModel("https://here.example/predict", classes=2, max_queries=1)  # who asked it would fail
    assert look_at(api, DATA, THREAT, classes=2) == []
    beyond = Dataset.of(X, Y + 3)
    with pytest.raises(DataError, match="the pre-flight found"):
        look_at(api, beyond, THREAT, classes=2)


def test_the_classes_of_an_api_are_those_that_the_session_was_told():
    session = open_session(
        ModelSpec(model="https://here.example/predict", classes=2, max_queries=1), (X, Y + 3), THREAT
    )
    with pytest.raises(DataError, match="the pre-flight found"):
        look(session)


def test_of_several_models_each_is_looked_at_and_named_where_it_is_refused():
    good, bad = Sides().eval(), Sides(-1.0).eval()
    one = look_at(good.train(), DATA, THREAT)
    assert look_at_all({"a": good, "b": good}, DATA, THREAT) == 2 * one
    with pytest.raises(DataError, match=r"^second: the pre-flight found"):
        look_at_all({"first": good.eval(), "second": bad}, DATA, THREAT)
    assert len(look_at_all({"first": good, "second": bad}, DATA, THREAT, anyway=True)) >= 1


def test_a_model_is_randomised_if_it_is_in_its_evaluation_mode():
    assert answers_vary(Noisy(always=True), X)
    assert not answers_vary(Noisy(always=False).train(), X)
    assert is_randomised(open_session(Noisy(always=True), (X, Y), THREAT))
    assert not is_randomised(open_session(Noisy(always=False).train(), (X, Y), THREAT))


def test_a_model_that_can_only_be_asked_is_not_asked_whether_it_is_randomised():
    class Counted(QueriesOnly):
        asked = 0

        def ask(self, x):
            self.asked += 1
            return x

    model = Counted("00" * 32, "a function", "it is one")
    assert not is_randomised(open_session(model, (X, Y), THREAT))
    assert model.asked == 0
