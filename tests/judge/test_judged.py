"""From an outcome to a statement: only what the referee upholds counts, and what a clean input is already is no success."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from holdfast.core.cost import Cost
from holdfast.core.problem import Problem
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.judge.judged import judged
from holdfast.judge.ledger import Ledger
from holdfast.judge.outcome import Outcome
from holdfast.judge.referee import Referee


class Threshold(nn.Module):
    """Class 1 where the first feature exceeds 0.5."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x):
        value = (x.flatten(1)[:, 0] - 0.5) * self.weight
        return torch.stack([torch.zeros_like(value), value], 1)


def _claims(starts, ends, claimed):
    x, to = (torch.tensor(values).view(-1, 1) for values in (starts, ends))
    problem = Problem.of(x, torch.zeros(len(x), dtype=torch.int64), LpBall.uniform(Norm.LINF, 0.2, len(x)))
    found = torch.tensor(claimed)
    ledger = Ledger(len(x), x.device)
    ledger.forwards += 3
    ledger.queries[0] = 2
    outcome = Outcome(
        x=to, found=found, distance=torch.where(found, (to - x).abs().squeeze(1).double(), torch.inf),
        found_at=torch.full((len(x),), 5), low_margin=torch.zeros(len(x), dtype=torch.float64), ledger=ledger, slots=1,
    )  # fmt: skip
    return problem, outcome


@pytest.fixture
def five():
    """Broken; wrong as it is; short of the edge; out of the set; nothing claimed."""
    return _claims([0.4, 0.6, 0.4, 0.4, 0.4], [0.55, 0.6, 0.45, 0.65, 0.4], [True, True, True, True, False])


def test_every_claim_ends_in_one_place(five):
    done = judged(Referee(Threshold()), *five)
    assert done.broken.tolist() == [True, False, False, False, False]
    assert done.clean_wrong.tolist() == [False, True, False, False, False]
    assert done.marginal.tolist() == [False, False, True, False, False]
    assert done.rejected.tolist() == [False, False, False, True, False]
    assert done.distance.isfinite().tolist() == [True, True, False, False, False]
    assert done.claimed_distance.isfinite().tolist() == [True, True, True, True, False]
    assert done.prediction.tolist() == [1, 1, 0, 1, -1]
    assert done.found_at.tolist() == [5, 5, 5, 5, -1]
    assert done.success == 1 / 4  # the second sample is no merit of the attack
    assert done.cost == Cost(15, 0, 2)
    assert done.judging.forwards > 0
    assert done.arithmetics == ("float32", "float64")


def test_claims_about_clean_inputs_can_be_left_out(five):
    problem, outcome = five
    done = judged(Referee(Threshold()), problem, outcome.away_from_clean())
    assert done.broken.tolist() == [True, False, False, False, False]
    assert not done.clean_wrong.any()


def test_the_witness_is_the_one_that_the_referee_moved():
    problem, outcome = _claims([0.4], [0.5], [True])  # on the edge: the first class wins a tie
    done = judged(Referee(Threshold()), problem, outcome)
    assert done.broken.tolist() == [True]
    assert float(done.x) > 0.5
    assert float(done.distance) == pytest.approx(float(done.x.double() - problem.x.double()))


def test_nothing_claimed_asks_nobody():
    problem, outcome = _claims([0.4], [0.55], [False])
    done = judged(Referee(lambda x: 1 / 0), problem, outcome)
    assert done.judging == Cost()
    assert done.success == 0
    assert done.x is not outcome.x
    assert torch.equal(done.x, outcome.x)


def test_a_model_that_cannot_be_asked_in_float64_is_not_said_to_hold_there(five):
    problem, outcome = five
    done = judged(
        Referee(Threshold().half()), replace(problem, x=problem.x.half()), replace(outcome, x=outcome.x.half())
    )
    assert done.arithmetics == ("float16",)
