"""Serving, ledger and archive, each by itself, and what an inquiry makes of the three."""

import pytest
import torch
from torch import nn

from holdfast.attacks.engine import Run, run
from holdfast.attacks.evasion.soft.square import Square
from holdfast.attacks.evasion.transfer.surrogate_transfer import SurrogateTransfer
from holdfast.attacks.evasion.white.pgd import PGD
from holdfast.core.cost import Cost
from holdfast.core.criterion import Misclassified
from holdfast.core.errors import ModelError, UsageError
from holdfast.core.problem import Problem
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.judge.archive import Archive, Keep, VotingArchive
from holdfast.judge.inquiry import Inquiry
from holdfast.judge.ledger import Budget, Ledger
from holdfast.judge.serving import ServedModel
from holdfast.numerics.distance import contains
from holdfast.testing.toys import digits, net


class Plain:
    def see(self, scores, at):
        pass

    def told(self, scores, at):
        return scores


class Choosy(nn.Module):
    """Raises where the first feature of any row is above 0.5."""

    def forward(self, x):
        if (x[:, 0] > 0.5).any():
            raise RuntimeError("too much")
        return torch.stack([x[:, 0], x[:, 1]], 1)


def _line(*values, eps=1.0):
    x = torch.tensor(values, dtype=torch.float64).view(-1, 1)
    return Problem.of(x, torch.zeros(len(x), dtype=torch.int64), LpBall.uniform(Norm.LINF, eps, len(x), -9, 9))


def _scores(margins):
    """Two classes; the sample is adversarial where the margin is negative."""
    margins = torch.tensor(margins, dtype=torch.float64)
    return torch.stack([margins, torch.zeros_like(margins)], 1)


@pytest.mark.parametrize("micro_batch", [1, 2, 5])
def test_a_served_model_tells_the_rows_that_it_fails_on_and_answers_the_others(micro_batch):
    served = ServedModel(Choosy(), Misclassified(), micro_batch=micro_batch)
    x = torch.tensor([[0.1, 0.0], [0.9, 0.0], [0.2, 0.3], [0.8, 0.0], [0.3, 0.1]])
    reply = served.scores(x, reader=Plain())
    assert reply.raised.tolist() == [False, True, False, True, False]
    assert torch.equal(reply.scores[~reply.raised], x[~reply.raised])
    assert reply.scores[reply.raised].isnan().all()
    assert "too much" in served.fault
    assert served.scores(x[:1], reader=Plain()).raised is None


def test_a_served_model_that_fails_on_all_is_an_error():
    with pytest.raises(ModelError, match="too much"):
        ServedModel(Choosy(), Misclassified(), micro_batch=4).scores(torch.ones(3, 2), reader=Plain())


def test_a_ledger_charges_in_the_order_asked_and_leaves_settled_samples_out():
    ledger = Ledger(3, torch.device("cpu"), Budget(queries=2))
    index = torch.tensor([0, 0, 0, 1, 2])
    settled = torch.tensor([False, False, True])
    answered = ledger.charge(index, backwards=1, settled=settled, queries=True)
    assert answered.tolist() == [True, True, False, True, False]
    assert ledger.queries.tolist() == [2, 1, 0]
    assert ledger.backwards.tolist() == [2, 1, 0]
    assert ledger.left().tolist() == [0, 1, 2]
    assert ledger.total == Cost(3, 3, 3)
    assert (ledger + ledger).total == Cost(6, 6, 6)
    assert ledger.spread(torch.tensor([4, 0, 2]), 5).queries.tolist() == [1, 0, 0, 0, 2]


def test_an_archive_keeps_the_nearest_feasible_row_and_the_first_one_ends_it():
    problem = _line(0.0, 0.0)
    x = torch.tensor([[0.9], [0.5], [0.7], [2.0]], dtype=torch.float64)
    index = torch.tensor([0, 0, 1, 1])
    for keep, after in ((Keep.NEAREST, 0.25), (Keep.FIRST, 0.5)):
        archive, ledger = Archive(problem, keep), Ledger(2, problem.x.device)
        archive.record(x, index, _scores([-1.0, -1.0, 1.0, -1.0]), ledger=ledger)
        assert archive.distance.tolist() == [0.5, float("inf")]  # the last row holds, but lies outside of the set
        archive.record(torch.tensor([[0.25]]).double(), torch.tensor([0]), _scores([-1.0]), ledger=ledger)
        assert archive.distance.tolist() == [after, float("inf")]
        assert archive.low_margin.tolist() == [-1.0, -1.0]


def test_one_lucky_draw_of_two_upholds_no_witness_and_no_answer_withdraws_none():
    problem = _line(0.0, 0.0, 0.0, 0.0)
    archive = VotingArchive(problem, Keep.FIRST, votes=3)
    votes, index = [-1.0, -1.0, 1.0], torch.arange(4).repeat_interleave(3)
    x = torch.full((12, 1), 0.5, dtype=torch.float64)
    archive.record(x, index, _scores(votes * 4), ledger=Ledger(4, problem.x.device))
    assert archive.found.all()
    assert archive.doubtful.tolist() == [0, 1, 2, 3]  # one vote of three spoke against each
    draws = _scores([[-1.0, 1.0], [-1.0, -1.0], [1.0, 1.0], [-1.0, -1.0]]).permute(0, 2, 1)
    answered = torch.tensor([[True, True], [True, True], [False, False], [True, False]])
    archive.upholds(torch.arange(4), draws, answered)
    assert archive.found.tolist() == [False, True, True, True]
    assert archive.witness[0].equal(problem.x[0])
    assert archive.found_at[0] == -1


def test_an_archive_asks_for_the_confidence_that_it_was_opened_with():
    problem, x, index = _line(0.0), torch.tensor([[0.5]], dtype=torch.float64), torch.tensor([0])
    for confidence, found in ((0.0, True), (1.0, True), (1.5, False)):
        archive = Archive(problem, Keep.NEAREST, confidence=confidence)
        archive.record(x, index, _scores([-1.0]), ledger=Ledger(1, problem.x.device))
        assert archive.found.tolist() == [found]


def test_what_is_asked_about_a_surrogate_is_no_query_and_leaves_no_witness():
    problem = _line(0.0)
    inquiry = Inquiry.of(lambda x: torch.cat([-x, x], 1), problem, None)
    inquiry.logits(problem.x + 1, problem.rows)
    assert inquiry.ledger.total == Cost(forwards=1)
    assert not inquiry.outcome(1).found.any()
    assert torch.equal(inquiry.best(problem.rows)[0], problem.x)


def test_the_last_iterate_is_kept_as_it_is_and_judged_by_nobody():
    x, y = digits(6)
    problem = Problem.of(x, y, LpBall.uniform(Norm.LINF, 0.05, 6, dtype=x.dtype))
    job = Run(SurrogateTransfer(steps=4), problem, net(), keep=Keep.LAST, seed=3)
    job.advance()
    outcome = job.outcome()
    assert job.attacked is None
    assert not outcome.found.any()
    assert contains(problem.set, outcome.x, x).all()
    assert ((outcome.x - x).abs().flatten(1).amax(1) > 0.02).all()
    assert outcome.ledger.queries.tolist() == [0] * 6
    one_by_one = run(SurrogateTransfer(steps=4), problem, net(), keep=Keep.LAST, seed=3)
    assert torch.equal(one_by_one.x, outcome.x)


def test_the_last_iterate_is_in_the_units_of_the_data():
    x, y = digits(4)
    wide = Problem.of(255 * x, y, LpBall.uniform(Norm.LINF, 8.0, 4, 0.0, 255.0, dtype=x.dtype))
    model = net()
    outcome = run(PGD(steps=3), wide, lambda z: model(z / 255), keep=Keep.LAST)
    assert contains(wide.set, outcome.x, wide.x).all()
    assert ((outcome.x - wide.x).abs().flatten(1).amax(1) > 1).all()


def test_a_budget_of_queries_and_a_last_iterate_do_not_go_together():
    with pytest.raises(UsageError, match="passes"):
        run(Square(queries=9), _line(0.0), lambda x: torch.cat([-x, x], 1), keep=Keep.LAST)
