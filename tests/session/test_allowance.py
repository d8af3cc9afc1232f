"""What an attack may ask: no more than the threat allows and the model answers, and of an API no more than its share."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from holdfast.core.errors import BudgetError, UsageError
from holdfast.core.problem import Problem
from holdfast.core.registry import card
from holdfast.core.sets import LpBall
from holdfast.core.threat import Access, Goal, Norm, ThreatModel
from holdfast.judge.ledger import Budget
from holdfast.judge.referee import Referee
from holdfast.models.http import HttpModel
from holdfast.models.queries_only import QueriesOnly
from holdfast.session import ModelSpec, open_session
from holdfast.session.allowance import JUDGED, allowance, candidates, check_access, given_access

DATA = (torch.tensor([[0.0, 0.5], [1.0, 0.25]]), [0, 1])
THREAT = ThreatModel.of("l2", "0.1")


class Asked(QueriesOnly):
    """Scores that are the inputs."""

    def __init__(self) -> None:
        super().__init__("00" * 32, "a function", "nobody knows its insides", 2)

    def ask(self, x):
        return x


class Labels(Asked):
    """Labels alone."""

    def ask(self, x):
        return x.argmax(1)


def test_what_may_be_asked_is_what_the_model_gives():
    assert given_access(open_session(nn.Linear(2, 2), DATA, THREAT)) is Access.WHITE_BOX
    assert given_access(open_session(Asked(), DATA, THREAT)) is Access.SOFT_LABEL
    assert given_access(open_session(ModelSpec(model=Labels(), answers="labels"), DATA, THREAT)) is Access.HARD_LABEL


def test_an_attack_that_asks_more_than_a_model_gives_is_told_those_that_ask_less():
    labels = open_session(ModelSpec(model=Labels(), answers="labels"), DATA, THREAT)
    check_access(labels, card("hopskipjump"))
    with pytest.raises(UsageError, match=r"only asked for labels .nobody knows its insides.; these work") as refused:
        check_access(labels, card("square"))
    listed = str(refused.value).partition("these work: ")[2].split(", ")
    assert "hopskipjump" in listed
    assert "square" not in listed
    scores = open_session(Asked(), DATA, THREAT)
    check_access(scores, card("square"))
    with pytest.raises(UsageError, match="only asked for scores"):
        check_access(scores, card("pgd"))


def test_a_threat_that_allows_less_than_an_attack_asks_refuses_it_on_any_model():
    strict = ThreatModel(norm=Norm.L2, eps=THREAT.eps, access=Access.SOFT_LABEL)
    session = open_session(nn.Linear(2, 2), DATA, strict)
    check_access(session, card("square"))
    with pytest.raises(UsageError, match=r"and the threat allows .*; these work: ") as refused:
        check_access(session, card("pgd"))
    assert "square" in str(refused.value).partition("these work: ")[2].split(", ")


def test_a_model_that_answers_labels_alone_and_is_said_to_give_scores_is_found_out():
    session = open_session(Labels(), DATA, THREAT)
    with pytest.raises(UsageError, match="a function answers labels alone; say so with --answers labels"):
        check_access(session, card("square"))


def test_candidates_are_named_as_on_the_command_line():
    serve = Norm.LINF, Goal.UNTARGETED, Access.WHITE_BOX
    assert candidates(*serve, ["APGD-CE", "pgd"]) == ["apgd_ce", "pgd"]
    assert "surrogate_transfer" not in candidates(*serve)
    assert "deepfool" not in candidates(Norm.L0, *serve[1:])
    assert set(candidates(*serve[:2], Access.HARD_LABEL)) < set(candidates(*serve[:2], Access.SOFT_LABEL))


def of_api(most, queries=None):
    api = HttpModel("https://here.example/predict", classes=2, max_queries=most)
    return open_session(api, DATA, THREAT, queries=queries)


@pytest.mark.parametrize(
    ("most", "session", "own", "queries", "says"),
    [
        (2 * (JUDGED + 10), None, None, 10, "48 gives each of 2 samples 10 queries; Toy has no limit of its own"),
        (2 * (JUDGED + 10) + 1, None, None, 10, "49 gives each of 2 samples 10 queries"),
        (2 * (JUDGED + 10), 10, None, 10, "Toy may send 48 rows at most; --max-queries 48 allows them"),
        (2 * (JUDGED + 10), 11, None, 10, "each of 2 samples 10 queries; Toy would use up to 11"),
        (2 * (JUDGED + 10), None, 11, 10, "Toy would use up to 11"),
        (2 * (JUDGED + 10), 7, 4, 4, "Toy may send 36 rows at most"),
        (2 * (JUDGED + 10), 4, 7, 4, "Toy may send 36 rows at most"),
        (2 * (JUDGED + 1), None, None, 1, "each of 2 samples 1 queries"),
    ],
)
def test_an_api_is_asked_the_least_of_the_share_the_session_s_limit_and_the_attack_s_own(
    most, session, own, queries, says
):
    budget, told = allowance(of_api(most, session), SimpleNamespace(queries=own), "Toy")
    assert budget == Budget(queries=queries)
    assert says in told


def test_a_budget_that_the_referee_alone_would_use_up_is_refused_with_one_that_is_enough():
    with pytest.raises(BudgetError, match=r"--max-queries 29 leaves no query for 2 samples, 14 rows .*allow 228"):
        allowance(of_api(2 * JUDGED + 1), object(), "Toy")


def test_a_model_that_runs_here_is_asked_as_often_as_the_session_says():
    for queries in (None, 7):
        session = open_session(nn.Linear(2, 2), DATA, THREAT, queries=queries)
        assert allowance(session, SimpleNamespace(queries=3), "Toy") == (Budget(queries=queries), "")


def test_what_is_kept_for_the_referee_is_the_most_that_it_asks_about_one_claim():
    seen = []

    def never(x):
        seen.append(len(x))
        return torch.tensor([[1.0, 0.0]]).expand(len(x), 2)

    x = torch.tensor([[0.5, 0.5]])
    problem = Problem.of(x, torch.tensor([0]), LpBall.uniform(Norm.LINF, 0.25, 1))
    judged = Referee(never, batch=of_api(1).referee().batch, exact=False).judge(problem, x + 0.125)
    assert not judged.holds.any()
    assert sum(seen) == judged.forwards == JUDGED
