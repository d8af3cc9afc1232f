"""A session asks what its model can be asked, refuses the rest by name, and poses the problem that the threat is."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from holdfast.core.errors import ModelError, UsageError
from holdfast.core.threat import Goal, Norm, ThreatModel
from holdfast.data.table import Table
from holdfast.models.http import HttpModel
from holdfast.models.queries_only import QueriesOnly
from holdfast.models.wrap import Normalisation
from holdfast.session import ModelSpec, open_session

THREAT = ThreatModel.of("linf", "0.1")
X, Y = torch.tensor([[0.0, 0.5], [1.0, 0.25], [0.5, 0.5]]), [0, 1, 1]
COLUMNS = Table.of({"columns": {"age": {"high": 4, "type": "integer"}, "sex": {"immutable": True}}})


class Asked(QueriesOnly):
    """Answers what it is told to."""

    def __init__(self, answer) -> None:
        super().__init__("00" * 32, "a function", "nobody knows its insides", 3)
        self.answer = answer

    def ask(self, x):
        return self.answer(x)


def of_scores(answer, **more):
    return open_session(ModelSpec(model=Asked(answer), **more), (X, Y), THREAT)


def an_api():
    return open_session(HttpModel("https://here.example/predict", classes=3, max_queries=1), (X, Y), THREAT)


def test_a_model_that_can_only_be_asked_has_no_module_and_says_why():
    for session, why in (
        (of_scores(lambda x: x), "a function can only be asked .nobody knows its insides.: no bound"),
        (of_scores(lambda x: x, normalise=Normalisation((0.5,), (0.5,))), "nobody knows its insides"),
        (an_api(), "https://here.example/predict can only be asked .it is a prediction API."),
    ):
        assert not session.differentiable
        with pytest.raises(UsageError, match=why):
            _ = session.module
    module = nn.Linear(2, 2)
    assert open_session(module, (X, Y), THREAT).module is module


def test_labels_alone_are_told_from_scores_by_every_row_and_a_failure_is_left_to_the_look():
    labels = of_scores(lambda x: np.array([1] * len(x)))
    with pytest.raises(UsageError, match="answers labels alone; say so with --answers labels"):
        labels.check_answers()
    of_scores(lambda x: np.array([1] * len(x)), answers="labels").check_answers()
    of_scores(lambda x: np.concatenate([x, x[:, :1]], 1)).check_answers()
    of_scores(lambda x: np.zeros((2, 2, 2, 2))).check_answers()  # a ModelError is the pre-flight's to tell
    an_api().check_answers()  # not asked
    open_session(nn.Linear(2, 2), (X, Y), THREAT).check_answers()


def test_the_referee_asks_in_float64_where_it_can_votes_where_it_must_and_fills_no_batch_of_an_api():
    session = open_session(nn.Linear(2, 2), (X, Y), THREAT)
    assert session.referee().runs == ("batch 64", "batch 1", "float64")
    assert replace(session, randomised=True).referee().runs == ("25 fresh draws at batch 64",)
    assert of_scores(lambda x: x).referee().runs == ("batch 64", "batch 1")
    assert an_api().referee().batch == 1


class Trained(nn.Module):
    """Has four classes in training mode, and three in evaluation mode."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x), 4 if self.training else 3)


def test_classes_are_counted_in_evaluation_mode_and_must_be_those_that_were_declared():
    model = Trained().train()
    assert open_session(model, (X, Y), THREAT).classes == 3
    assert model.training
    assert open_session(ModelSpec(model=model, classes=3), (X, Y), THREAT).classes == 3
    with pytest.raises(UsageError, match="--classes 4, and the model has 3; leave --classes out"):
        _ = open_session(ModelSpec(model=model, classes=4), (X, Y), THREAT).classes
    assert an_api().classes == 3  # and not asked


class Weighty(nn.Module):
    """So many parameters."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(count))


@pytest.mark.parametrize(
    ("features", "weights", "heavy"),
    [(3071, 999_999, False), (3072, 1, True), (1, 1_000_000, True)],
)
def test_a_model_is_heavy_by_its_inputs_or_by_its_weights(features, weights, heavy):
    session = open_session(Weighty(weights), (torch.zeros(2, features), [0, 1]), THREAT)
    assert session.heavy is heavy
    assert not replace(session, device=torch.device("cuda")).heavy  # an accelerator takes more
    assert an_api().heavy


def test_a_problem_is_that_of_the_threat_at_its_size_or_at_another_of_each_sample():
    threat = ThreatModel.of("l2", "0.5", low=-1.0, high=2.0)
    session = open_session(nn.Linear(2, 2), (X, Y), threat)
    rows = np.array([2, 0])
    own = session.problem(rows)
    assert torch.equal(own.x, X[[2, 0]])
    assert own.y.tolist() == [1, 0]
    assert (own.set.norm, own.set.eps.tolist()) == (Norm.L2, [0.5, 0.5])
    assert [float(edge) for edge in (own.set.lower, own.set.upper)] == [-1.0, 2.0]
    assert session.problem(rows, torch.tensor([0.25, 1.0])).set.eps.tolist() == [0.25, 1.0]
    assert session.problem(rows, 0.125).set.eps.tolist() == [0.125, 0.125]
    assert own.target.tolist() == [-1, -1]
    targeted = replace(session, threat=ThreatModel(norm=Norm.L2, eps=Fraction(1, 2), goal=Goal.TARGETED))
    assert targeted.problem(np.arange(3)).target.tolist() == [1, 0, 0]  # the class after, and after the last the first


def test_a_column_that_cannot_change_does_not_and_whole_numbers_are_those_of_the_table():
    session = open_session(ModelSpec(model=nn.Linear(2, 2), table=COLUMNS), (X * torch.tensor([4.0, 1.0]), Y), THREAT)
    mask = session.problem(session.ids).set.mask
    assert mask is not None
    assert mask.expand(3, 2).tolist() == [[True, False]] * 3
    assert session.grid == COLUMNS.grid
    plain = ThreatModel.of("linf", "0.1", grid="1/4")
    assert open_session(nn.Linear(2, 2), (X, Y), plain).grid == Fraction(1, 4)


def test_other_data_must_have_the_shape_of_the_attacked_ones():
    session = open_session(nn.Linear(2, 2), (X, Y), THREAT)
    assert session.problem_of((X[:2], [1, 0])).y.tolist() == [1, 0]
    with pytest.raises(UsageError, match=r"has inputs of shape \(3,\), the attacked data of shape \(2,\)"):
        session.problem_of((torch.zeros(2, 3), [0, 1]))


class Wide(nn.Module):
    """Is recorded as another function than it runs above 3 and below -1, within the range of the data."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            return self.net(x)
        return torch.where((x > 3.0) | (x < -1.0), 0.0, self.net(x))


@pytest.mark.parametrize(("low", "high"), [(-2.0, 1.0), (0.0, 4.0)])
def test_a_graph_of_all_inputs_is_compared_on_their_whole_range(low, high):
    session = open_session(Wide(), (X, Y), ThreatModel.of("linf", "0.1", low=low, high=high))
    assert session.graph is session.believed.graph  # around the samples nothing differs
    with pytest.raises(ModelError, match="runs otherwise than it was recorded"):
        session.graph_of_all_inputs()
    tame = open_session(Wide(), (X, Y), ThreatModel.of("linf", "0.1", low=-1.0, high=3.0))
    assert tame.graph_of_all_inputs().held_against == "the module itself"
