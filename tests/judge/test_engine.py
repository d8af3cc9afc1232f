"""The engine and the inquiry: what is charged, kept, refilled, interrupted and continued."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.attacks.attack import Attack, State
from holdfast.attacks.engine import Run, Settings, run
from holdfast.attacks.evasion.soft.square import Square
from holdfast.attacks.evasion.white.eot_pgd import EotPGD
from holdfast.attacks.evasion.white.pgd import PGD
from holdfast.core.cards import Card
from holdfast.core.errors import BudgetError, UnsupportedError
from holdfast.core.problem import Problem
from holdfast.core.sets import LpBall
from holdfast.core.threat import Access, Formulation, Norm
from holdfast.judge.archive import Keep
from holdfast.judge.asks import HardLabelAsk
from holdfast.judge.inquiry import Inquiry
from holdfast.judge.ledger import Budget
from holdfast.judge.oracles import WhiteBoxOracle
from holdfast.judge.units import ScoreUnits


class Counting(nn.Module):
    """Counts the rows that really pass."""

    def __init__(self, inner: nn.Module, fail_above: int | None = None):
        super().__init__()
        self.inner, self.rows, self.fail_above = inner, 0, fail_above

    def forward(self, x):
        if self.fail_above is not None and len(x) > self.fail_above:
            raise torch.OutOfMemoryError("pretended")
        self.rows += len(x)
        return self.inner(x)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 4)).double().eval()


@pytest.fixture
def problem(model):
    x = torch.rand(40, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = model(x).argmax(1)
    return Problem.of(x, y, LpBall.uniform(Norm.LINF, 0.08, 40, dtype=torch.float64))


def test_ledger_equals_the_rows_that_passed(model, problem):
    counting = Counting(model)
    out = run(PGD(steps=7, restarts=2), problem, counting, settings=Settings(slots=9))
    assert 0 < int(out.found.sum()) < 40
    assert counting.rows == int(out.ledger.forwards.sum()) == int(out.ledger.queries.sum())
    assert int(out.ledger.backwards.max()) == 14


@pytest.mark.parametrize("slots", [1, 3, 7, 40])
@pytest.mark.parametrize("every", [1, 3])
def test_result_does_not_depend_on_slots_or_on_how_often_one_looks(model, problem, slots, every):
    base = run(PGD(steps=6, restarts=3), problem, model)
    out = run(PGD(steps=6, restarts=3), problem, model, settings=Settings(slots=slots, check_every=every))
    assert torch.equal(base.found, out.found)
    assert torch.allclose(base.x, out.x, atol=1e-12)
    assert torch.equal(base.ledger.forwards, out.ledger.forwards)


class Silent(nn.Module):
    """Has no answer where the first feature is large."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x).masked_fill(x[:, :1] > 0.9, torch.nan)


@pytest.fixture
def as_on_an_accelerator(monkeypatch):
    """Nothing is decided by values that would have to be waited for."""
    for module in ("archive", "rows", "serving", "units"):
        monkeypatch.setattr(f"holdfast.judge.{module}.reads_freely", lambda _: False)


@pytest.mark.parametrize("attack", [PGD(steps=6, restarts=2), Square(queries=60), EotPGD(steps=3, draws=2)])
@pytest.mark.parametrize("silent", [False, True])
def test_what_is_found_is_the_same_where_reading_costs(model, problem, request, attack, silent):
    asked = Silent(model) if silent else model
    base = run(attack, problem, asked)
    request.getfixturevalue("as_on_an_accelerator")
    out = run(attack, problem, asked)
    for name in ("found", "x", "distance", "found_at", "low_margin", "unusable", "no_answer_at"):
        assert torch.equal(getattr(base, name), getattr(out, name)), name
    assert bool(base.no_answer_at.isfinite().any()) is silent
    if silent:
        known = base.no_answer_at.isfinite()
        assert torch.equal(base.no_answer[known], out.no_answer[known])


def test_an_ask_of_no_rows_is_answered_where_reading_costs(model, problem, as_on_an_accelerator):
    inquiry = Inquiry.of(Silent(model), problem)
    inquiry.logits(problem.x, problem.rows)
    scores, answered = inquiry.logits(problem.x[:0], problem.rows[:0])
    assert (scores.shape, answered.shape) == ((0, 4), (0,))
    assert not inquiry.archive.found.any()


def test_restarts_are_only_made_for_samples_that_stand(model, problem):
    one, three = (run(PGD(steps=6, restarts=r), problem, model) for r in (1, 3))
    assert (three.found >= one.found).all()
    assert torch.equal(three.ledger.forwards[one.found], one.ledger.forwards[one.found])


def test_interrupted_and_continued(model, problem):
    whole = run(PGD(steps=6, restarts=2), problem, model, settings=Settings(slots=8))
    job = Run(PGD(steps=6, restarts=2), problem, model, settings=Settings(slots=8))
    rounds = 0
    while not job.advance(steps=1):
        rounds += 1
    assert rounds > 10
    assert torch.equal(job.outcome().x, whole.x)


def test_out_of_memory_halves_the_slots_and_changes_nothing(model, problem):
    whole = run(PGD(steps=5), problem, model)
    out = run(PGD(steps=5), problem, Counting(model, fail_above=11), settings=Settings(slots=40))
    assert out.slots == 10
    assert torch.allclose(whole.x, out.x, atol=1e-12)


@pytest.mark.parametrize("limit", [1, 2, 5, 9])
def test_query_budget_is_never_exceeded(model, problem, limit):
    counting = Counting(model)
    out = run(PGD(steps=20), problem, counting, budget=Budget(queries=limit))
    assert int(out.ledger.queries.max()) <= limit
    assert counting.rows == int(out.ledger.queries.sum())


def test_pass_budget_counts_both_ways(model, problem):
    out = run(PGD(steps=20), problem, model, budget=Budget(passes=10))
    assert int((out.ledger.forwards + out.ledger.backwards).max()) <= 10


def test_a_budget_of_nothing_is_refused():
    with pytest.raises(BudgetError, match="at least 1"):
        Budget(queries=0)


def test_model_and_global_random_state_are_untouched(model, problem):
    model.train()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    run(PGD(steps=3), problem, model)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert model[2].weight.grad is None
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(state, torch.get_rng_state())


def test_clean_errors_are_witnesses_at_distance_0(model, problem):
    wrong = replace(problem, y=(problem.y + 1) % 4)
    out = run(PGD(steps=3), wrong, model)
    assert out.found.all()
    assert torch.equal(out.distance, torch.zeros(40, dtype=torch.float64))
    assert torch.equal(out.x, wrong.x)


def test_zero_eps_finds_nothing(model, problem):
    out = run(PGD(steps=3), replace(problem, set=problem.set.with_eps(0.0)), model)
    assert not out.found.any()


def test_the_archive_keeps_the_nearest_feasible_row_and_ignores_the_others(model, problem):
    index = torch.arange(40).repeat(12)
    rows = torch.rand(480, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        wrong = model(rows).argmax(1) != problem.y[index]
    away = (rows - problem.x[index]).abs().amax(1)
    assert away.min() > 0.08
    inside, unbounded = (
        Inquiry.of(model, p, Keep.NEAREST) for p in (problem, replace(problem, set=problem.set.unbounded()))
    )
    for half in torch.arange(480).chunk(2):  # what comes later may be nearer or not
        for inquiry in (inside, unbounded):
            inquiry.logits(rows[half], index[half])
    assert not inside.archive.found.any()
    nearest, turn = away.masked_fill(~wrong, torch.inf).view(12, 40).min(0)
    met = nearest.isfinite()
    assert met.any()
    assert not met.all()
    assert (turn[met] < 6).any()
    assert (turn[met] >= 6).any()
    assert torch.equal(unbounded.archive.found, met)
    assert torch.equal(unbounded.archive.distance, nearest)
    assert torch.equal(unbounded.archive.witness[met], rows.view(12, 40, 12)[turn, torch.arange(40)][met])


def test_an_index_may_repeat_and_its_budget_is_shared_in_order(model, problem):
    inquiry = Inquiry.of(model, problem, budget=Budget(queries=2))
    index = torch.tensor([5, 3, 5, 5, 3])
    _, answered = inquiry.labels(problem.x[index], index)
    assert answered.tolist() == [True, True, True, False, True]
    _, answered = inquiry.labels(problem.x[index], index)
    assert not answered.any()
    assert int(inquiry.ledger.queries.sum()) == 4


def test_micro_batches_change_nothing(model, problem):
    whole, split = Inquiry.of(model, problem), Inquiry.of(model, problem, micro_batch=7)
    loss = lambda s, y: s.gather(1, y[:, None]).squeeze(1)  # noqa: E731
    a = whole.gradient(problem.x, problem.rows, loss, problem.y)
    b = split.gradient(problem.x, problem.rows, loss, problem.y)
    assert torch.allclose(a.grad, b.grad)
    classes = torch.tensor([[0, 2]]).expand(40, 2)
    ja, jb = whole.jacobian(problem.x, problem.rows, classes), split.jacobian(problem.x, problem.rows, classes)
    assert torch.allclose(ja.grad, jb.grad)
    assert int(whole.ledger.backwards[0]) == 3


def test_access_is_a_type(model, problem):
    inquiry = Inquiry.of(model, problem)
    hard, soft = inquiry.oracle(Access.HARD_LABEL), inquiry.oracle(Access.SOFT_LABEL)
    assert not any(hasattr(hard, name) for name in ("log_probs", "logits", "gradient", "jacobian", "clean"))
    assert not any(hasattr(soft, name) for name in ("logits", "gradient", "jacobian"))


def test_top_k_hides_the_rest(model, problem):
    inquiry = Inquiry.of(model, problem, units=ScoreUnits(problem, 2, needed=False))
    log_p, _ = inquiry.log_probs(problem.x, problem.rows)
    assert ((log_p > -np.inf).sum(1) == 2).all()


def test_weights_replaced_leave_the_model_alone(model, problem):
    oracle = Inquiry.of(model, problem).oracle(Access.WHITE_BOX)
    assert isinstance(oracle, WhiteBoxOracle)
    zero = oracle.at({k: torch.zeros_like(v) for k, v in model.named_parameters()})
    scores, _ = zero.logits(problem.x, problem.rows)
    assert (scores == 0).all()
    assert (oracle.logits(problem.x, problem.rows)[0] != 0).any()


def test_features_are_counted(model, problem):
    inquiry = Inquiry.of(model, problem)
    features, _ = inquiry.features(problem.x, problem.rows, "1")
    assert features.shape == (40, 24)
    assert int(inquiry.ledger.forwards.sum()) == 40


def test_not_a_number_is_no_witness(problem):
    class Nan(nn.Module):
        def forward(self, x):
            return torch.full((len(x), 4), float("nan"), dtype=x.dtype)

    assert not run(PGD(steps=2), problem, Nan()).found.any()


@pytest.mark.parametrize(("past", "counts"), [(1e-17, False), (1e-14, True)])
def test_what_rounding_decides_is_no_witness(past, counts):
    def model(x):  # the margin is x - 1 to the last bit
        return torch.cat([torch.ones_like(x), x], 1)

    x = torch.zeros(1, 1, dtype=torch.float64)
    problem = Problem.of(x, torch.tensor([0]), LpBall.uniform(Norm.LINF, 2.0, 1, high=3.0, dtype=torch.float64))
    inquiry = Inquiry.of(lambda x: model(x) + torch.tensor([0.0, past]), problem, Keep.NEAREST)
    inquiry.logits(torch.nextafter(torch.ones(1, 1).double(), torch.tensor(2.0).double()), problem.rows)
    assert bool(inquiry.archive.found[0]) is counts


def test_precision_is_confirmed(model, problem):
    single = replace(problem, x=problem.x.float(), set=LpBall.uniform(Norm.LINF, 0.08, 40))
    out = run(PGD(steps=5), single, model.float(), settings=Settings(precision=torch.bfloat16))
    with torch.no_grad():
        labels = model.float()(out.x).argmax(1)
    assert (labels[out.found] != single.y[out.found]).all()


@dataclass(frozen=True)
class _Peeks(Attack[HardLabelAsk, State]):
    card: ClassVar[Card] = Card(
        title="Peeks", rows=(), paper="", section="", summary="", access=Access.HARD_LABEL,
        formulation=Formulation.BUDGET, norms=(Norm.LINF,),
    )  # fmt: skip
    iterations = 1

    def start(self, ask):
        return State.at(ask.problem.x)

    def step(self, ask, state):
        ask.gradient(state.x)
        return state


def test_an_attack_cannot_reach_beyond_its_card(model, problem):
    with pytest.raises(AttributeError, match="gradient"):
        run(_Peeks(), problem, model)


def test_a_norm_that_the_card_lacks_is_refused_in_words(model, problem):
    with pytest.raises(UnsupportedError, match="has no l2 form"):
        run(_Peeks(), replace(problem, set=replace(problem.set, norm=Norm.L2)), model)
