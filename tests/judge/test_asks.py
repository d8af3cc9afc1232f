"""An ask knows its samples: whose row a point is, the grid, the criterion, and who was answered."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from holdfast.core.criterion import RegressionMargin
from holdfast.core.problem import Problem
from holdfast.core.sets import LpBall
from holdfast.core.threat import Access, Norm
from holdfast.judge.archive import Keep
from holdfast.judge.asks import ScoreAnswer
from holdfast.judge.inquiry import Inquiry
from holdfast.judge.ledger import Budget


class Seen(nn.Module):
    """Two scores of two features, and every input that it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.inputs.append(x.detach().clone())
        return torch.stack([x[:, 0], 2 * x[:, 1]], 1)


def _problem(grid: Fraction | None = None) -> Problem:
    x = torch.tensor([[0.75, 0.25], [0.25, 0.75], [1.0, 0.0]])
    return Problem.of(x, torch.tensor([0, 1, 0]), LpBall.uniform(Norm.L2, 9.0, 3, grid=grid))


@pytest.mark.parametrize(
    ("access", "has", "lacks"),
    [
        (
            Access.HARD_LABEL,
            ("labels", "adversarial"),
            ("scores", "losses", "clean", "gradient", "jacobian", "features"),
        ),
        (Access.SOFT_LABEL, ("scores", "losses", "clean"), ("gradient", "jacobian", "features", "with_weights")),
        (Access.WHITE_BOX, ("scores", "gradient", "jacobian", "features", "with_weights"), ()),
    ],
)
def test_an_ask_has_no_method_beyond_its_access(access: Access, has: tuple[str, ...], lacks: tuple[str, ...]) -> None:
    p = _problem()
    ask = Inquiry.of(Seen(), p).oracle(access).on(p)
    for one in (ask, ask.at(np.array([1])), ask.as_given):
        assert all(hasattr(one, name) for name in has)
        assert not any(hasattr(one, name) for name in lacks)


def test_several_points_a_sample_are_answered_as_if_each_were_asked_alone() -> None:
    p = _problem()
    inquiry = Inquiry.of(Seen(), p, Keep.NEAREST)
    ask = inquiry.oracle(Access.WHITE_BOX).on(p)
    points = torch.rand(3, 4, 2, generator=torch.Generator().manual_seed(0))
    many, scored, labelled = ask.gradient(points), ask.scores(points), ask.labels(points)
    assert inquiry.ledger.forwards.tolist() == [12, 12, 12]
    assert inquiry.ledger.backwards.tolist() == [4, 4, 4]
    for j in range(4):
        one = ask.gradient(points[:, j])
        for name in ("x", "scores", "value", "grad", "adversarial", "margin", "unsure", "answered"):
            assert torch.equal(getattr(many, name)[:, j], getattr(one, name)), name
        assert torch.equal(scored.losses()[:, j], one.value.double())
        assert torch.equal(labelled.adversarial[:, j], ask.adversarial(points[:, j]))


def test_an_ask_at_some_rows_is_about_those_samples_whatever_their_order() -> None:
    p = _problem()
    ask = Inquiry.of(Seen(), p, Keep.NEAREST).oracle(Access.SOFT_LABEL).on(p)
    points = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    some = ask.at(np.array([2, 1, 1, 0]))  # labels 0, 1, 1, 0
    assert some.adversarial(points).tolist() == [True, False, True, False]
    assert torch.equal(some.clean, ask.clean[[2, 1, 1, 0]])


def test_points_without_an_answer_are_never_adversarial_and_have_no_loss() -> None:
    p = _problem()
    ask = Inquiry.of(Seen(), p, Keep.NEAREST, budget=Budget(queries=3)).oracle(Access.SOFT_LABEL).on(p)
    points = torch.tensor([[0.0, 1.0]] * 4).expand(3, 4, 2)
    answer = ask.scores(points)
    assert answer.answered.sum(1).tolist() == [3, 3, 3]
    assert ask.left.tolist() == [0, 0, 0]
    assert answer.adversarial.tolist() == [[True] * 3 + [False], [False] * 4, [True] * 3 + [False]]
    assert torch.equal(answer.losses().isnan(), ~answer.answered)
    assert not ask.adversarial(points[:, 0]).any()


def test_the_model_is_only_shown_valid_points_unless_the_grid_is_left_out_by_name() -> None:
    model, p = Seen(), _problem(Fraction(1, 4))
    ask = Inquiry.of(model, p, Keep.NEAREST).oracle(Access.WHITE_BOX).on(p)
    off = p.x + torch.tensor([-0.3, 0.3])
    off = off.clamp(0, 1)
    asked = ask.gradient(off).x
    ask.scores(torch.stack([off, p.x], 1))
    ask.jacobian(off, torch.zeros(3, 1, dtype=torch.int64))
    ask.labels(off)
    assert all(torch.equal(x * 4, (x * 4).round()) for x in model.inputs)
    assert torch.equal(asked, ask.valid(off))
    assert not torch.equal(asked, off)
    model.inputs.clear()
    assert torch.equal(ask.as_given.gradient(off).x, off)
    assert torch.equal(model.inputs[0], off)


def test_a_loss_reads_what_belongs_to_each_sample_and_may_head_for_another_target() -> None:
    p = _problem()
    ask = Inquiry.of(Seen(), p, Keep.NEAREST, micro_batch=100).oracle(Access.WHITE_BOX).on(p)
    read: list[list[float]] = []

    def loss(scores: Tensor, y: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        read.append([*y.tolist(), *target.tolist(), *weight.tolist()])
        return weight * scores.gather(1, target.unsqueeze(1)).squeeze(1)

    g = ask.gradient(
        p.x.unsqueeze(1).expand(3, 2, 2), loss, torch.tensor([1.0, 2.0, 3.0]), target=torch.tensor([1, 0, 1])
    )
    assert read == [[0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3]]
    assert g.grad[:, 0].tolist() == [[0.0, 2.0], [2.0, 0.0], [0.0, 6.0]]


def _answer(scores: list[list[float]], y: list[int], answered: list[bool]) -> ScoreAnswer:
    x = torch.zeros(len(y), 2)
    problem = Problem.of(x, torch.tensor(y), LpBall.uniform(Norm.L2, 1.0, len(y)))
    return ScoreAnswer(problem=problem, x=x, scores=torch.tensor(scores), answered=torch.tensor(answered))


def test_what_rounding_decides_is_not_adversarial_and_its_doubt_is_a_few_units_of_the_two_scores() -> None:
    unit = 2.0**-23
    answer = _answer([[3.0, 1.0], [1.0, 1.0 + unit], [1.0, 2.0]], [0, 0, 0], [True, True, True])
    assert answer.margin.tolist() == [2.0, -unit, -1.0]
    assert answer.adversarial.tolist() == [False, False, True]
    torch.testing.assert_close(answer.unsure, 4 * unit * torch.tensor([4.0, 2.0 + unit, 3.0]))


def test_losses_are_float64_and_those_of_the_loss_that_is_given() -> None:
    answer = _answer([[3.0, 1.0], [0.5, 2.0]], [0, 0], [True, True])
    for losses, wanted in (
        (answer.losses(), [-2.0, 1.5]),
        (answer.losses(lambda scores, *_: scores[:, 1]), [1.0, 2.0]),
    ):
        assert losses.dtype is torch.float64
        assert losses.tolist() == wanted
    p = _problem()
    ask = Inquiry.of(Seen(), p, Keep.NEAREST).oracle(Access.WHITE_BOX).on(p)
    assert ask.losses(p.x, lambda scores, *_: scores[:, 0]).tolist() == [0.75, 0.25, 1.0]


def test_a_number_far_from_its_truth_is_not_adversarial_where_there_was_no_answer() -> None:
    """Of a regression the zeros that stand for no answer would break the model."""
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    problem = Problem.of(x, torch.tensor([5.0, 5.0]), LpBall.uniform(Norm.L2, 9.0, 2), criterion=RegressionMargin(0.5))
    ask = (
        Inquiry.of(lambda x: x[:, :1], problem, Keep.NEAREST, budget=Budget(queries=1))
        .oracle(Access.SOFT_LABEL)
        .on(problem)
    )
    answer = ask.scores(x.unsqueeze(1).expand(2, 2, 2))
    assert answer.answered.tolist() == [[True, False]] * 2
    assert answer.adversarial.tolist() == [[True, False]] * 2


def test_several_points_a_sample_are_put_on_the_grid_of_their_own_sample() -> None:
    x = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.5, 0.5]])
    ball = LpBall.uniform(Norm.L2, 9.0, 3, grid=Fraction(1, 4))
    p = Problem.of((x * 4).round() / 4, torch.tensor([0, 1, 0]), ball)
    ask = Inquiry.of(Seen(), p, Keep.NEAREST).oracle(Access.HARD_LABEL).on(p)
    points = torch.rand(3, 5, 2, generator=torch.Generator().manual_seed(1))
    many = ask.valid(points)
    assert not torch.equal(many, points)
    for j in range(5):
        assert torch.equal(many[:, j], ask.valid(points[:, j]))


def test_an_ask_that_takes_points_as_given_still_does_at_some_rows_and_with_other_weights() -> None:
    p = _problem(Fraction(1, 4))
    net = nn.Linear(2, 2)
    ask = Inquiry.of(net, p, Keep.NEAREST).oracle(Access.WHITE_BOX).on(p)
    off = torch.tensor([[0.6, 0.3]])
    rows = np.array([1])
    zero = {name: torch.zeros_like(value) for name, value in net.named_parameters()}
    for given in (ask.as_given.at(rows), ask.as_given.with_weights(zero).at(rows), ask.at(rows).as_given):
        assert torch.equal(given.scores(off).x, off)
    for snapped in (ask.at(rows), ask.with_weights(zero).at(rows)):
        assert torch.equal(snapped.scores(off).x, torch.tensor([[0.5, 0.5]]))  # toward the clean (0.25, 0.75)


def test_an_ask_with_other_weights_asks_them_and_charges_the_same_ledger() -> None:
    p, net = _problem(), nn.Linear(2, 2)
    inquiry = Inquiry.of(net, p, Keep.NEAREST)
    ask = inquiry.oracle(Access.WHITE_BOX).on(p)
    ones = {name: torch.ones_like(value) for name, value in net.named_parameters()}
    assert torch.equal(ask.with_weights(ones).scores(p.x).scores, (p.x.sum(1, keepdim=True) + 1).expand(3, 2))
    assert inquiry.ledger.forwards.tolist() == [1, 1, 1]
    torch.testing.assert_close(ask.scores(p.x).scores, net(p.x).detach())


class Named(nn.Module):
    """Two scores, by a layer of that name."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@pytest.mark.parametrize("what", ["labels", "scores", "gradient", "jacobian", "features"])
def test_what_is_asked_at_some_rows_is_charged_to_them(what: str) -> None:
    p = _problem()
    inquiry = Inquiry.of(Named(), p, Keep.NEAREST, budget=Budget(queries=7))
    whole = inquiry.oracle(Access.WHITE_BOX).on(p)
    ask, x = whole.at(np.array([2, 1, 2])), torch.full((3, 2), 0.5)
    more = {"jacobian": (torch.zeros(3, 1, dtype=torch.int64),), "features": ("layer",)}.get(what, ())
    getattr(ask, what)(x, *more)
    assert inquiry.ledger.forwards.tolist() == [0, 1, 2]
    assert whole.left.tolist() == [7, 6, 5]
    assert ask.left.tolist() == [5, 6, 5]


def test_the_nearest_witness_at_some_rows_is_theirs() -> None:
    p = _problem()
    whole = Inquiry.of(Seen(), p, Keep.NEAREST).oracle(Access.HARD_LABEL).on(p)
    broken = torch.tensor([[0.75, 0.75], [0.25, 0.75], [1.0, 0.75]])  # the second is as it was and no witness
    whole.labels(broken)
    witness, distance = whole.at(np.array([2, 1])).best
    assert torch.equal(witness, broken[[2, 1]])
    assert distance.tolist() == [0.75, float("inf")]


@pytest.mark.parametrize(
    ("access", "what"),
    [
        (Access.HARD_LABEL, "labels"),
        (Access.SOFT_LABEL, "scores"),
        *((Access.WHITE_BOX, what) for what in ("scores", "gradient", "jacobian", "features")),
    ],
)
def test_every_question_is_about_valid_points_and_its_answer_says_which(access: Access, what: str) -> None:
    p, seen = _problem(Fraction(1, 4)), Seen()
    model = nn.Sequential(seen, nn.Identity())
    ask = Inquiry.of(model, p, Keep.NEAREST).oracle(access).on(p)
    off = p.x + torch.tensor([-0.1, 0.1])
    off = off.clamp(0, 1)
    more = {"jacobian": (torch.zeros(3, 1, dtype=torch.int64),), "features": ("1",)}.get(what, ())
    answer = getattr(ask, what)(off, *more)
    assert what == "features" or torch.equal(answer.x, ask.valid(off))
    assert all(torch.equal(x, ask.valid(off)) for x in seen.inputs)
    assert seen.inputs
