"""An ask knows its samples: whose row a point is, the grid, the criterion, and who was answered."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from holdfast.core.problem import Problem
from holdfast.core.sets import LpBall
from holdfast.core.threat import Access, Norm
from holdfast.judge.archive import Keep
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
