"""What a model answers is read or refused in words, whoever asks; what it raises is its own fault, but for want of memory."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from holdfast.core.criterion import AllOf, Criterion, Misclassified, RegressionMargin, Targeted, WithDetector
from holdfast.core.errors import DataError, ModelError, UsageError
from holdfast.core.problem import Problem
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.judge.asking import ModelFault, ask, check_classes, fit_for_autograd, scores_of


def _raising(fault: BaseException) -> nn.Module:
    class Raises(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise fault

    return Raises()


@pytest.mark.parametrize("fault", [ValueError("a\n  b"), SystemExit(3), AssertionError()])
def test_whatever_a_model_raises_is_its_fault_in_one_line_with_its_cause(fault: BaseException) -> None:
    with pytest.raises(ModelFault, match=type(fault).__name__) as raised:
        ask(_raising(fault), torch.zeros(1))
    assert "\n" not in str(raised.value)
    assert raised.value.__cause__ is fault


def test_a_long_complaint_of_a_model_is_cut() -> None:
    with pytest.raises(ModelFault) as raised:
        ask(_raising(ValueError("x" * 5000)), torch.zeros(1))
    assert len(str(raised.value)) == len("ValueError: ") + 300


@pytest.mark.parametrize("fault", [UsageError("ours"), torch.OutOfMemoryError("full"), KeyboardInterrupt()])
def test_our_own_errors_want_of_memory_and_the_user_s_end_are_no_fault_of_a_model(fault: BaseException) -> None:
    with pytest.raises(type(fault)) as raised:
        ask(_raising(fault), torch.zeros(1))
    assert raised.value is fault


def test_a_model_that_writes_into_its_input_writes_into_a_copy() -> None:
    x = torch.zeros(2, 2)
    assert ask(lambda given: given.add_(1), x).sum() == 4
    assert not x.any()


@pytest.mark.parametrize(("kind", "least"), [(torch.float64, -1e30), (torch.float32, -1e30), (torch.float16, -65504.0)])
def test_a_class_that_can_never_be_has_a_finite_score_unless_an_interface_hides_it(
    kind: torch.dtype, least: float
) -> None:
    answer = torch.tensor([[0.5, -torch.inf]], dtype=kind)
    read = scores_of(answer, 1, Misclassified())
    assert read.dtype is kind
    assert torch.equal(read, torch.tensor([[0.5, least]], dtype=kind))
    assert torch.equal(scores_of(answer, 1, Misclassified(), hides=True), answer)


def test_whole_numbers_and_yes_and_no_are_scores_of_the_default_type() -> None:
    for answer in (torch.tensor([[0, 3]]), torch.tensor([[False, True]]), torch.tensor([[0, 1]], dtype=torch.uint8)):
        read = scores_of(answer, 1, Misclassified())
        assert read.dtype is torch.get_default_dtype()
        assert torch.equal(read, answer.to(read.dtype))


def test_a_sparse_answer_is_filled_up() -> None:
    answer = torch.tensor([[0.0, 3.0], [1.0, 0.0]])
    assert torch.equal(scores_of(answer.to_sparse(), 2, Misclassified()), answer)


def test_a_regression_may_answer_a_number_or_a_column() -> None:
    numbers = torch.tensor([1.0, 2.0, 3.0])
    for answer in (numbers, numbers.unsqueeze(1)):
        assert torch.equal(scores_of(answer, 3, RegressionMargin(0.5)), numbers.unsqueeze(1))


@pytest.mark.parametrize(
    ("answer", "criterion", "why"),
    [
        (SimpleNamespace(logits=torch.zeros(2, 3)), Misclassified(), r"SimpleNamespace .*FromHF\(model\)"),
        (SimpleNamespace(logits=None), Misclassified(), "SimpleNamespace .*wrap it to return its logits$"),
        (torch.zeros(2, 3, dtype=torch.complex64), Misclassified(), "complex numbers; give one that answers with real"),
        (torch.zeros(2), Misclassified(), r"single output, \(2,\) for 2 inputs.*OneLogit"),
        (torch.zeros(2, 1), Misclassified(), r"single output, \(2, 1\) for 2 inputs.*OneLogit"),
        (torch.zeros(1, 2), Misclassified(), r"single output, \(1, 2\) for 2 inputs"),
        (torch.zeros(3, 1), Misclassified(), r"must answer \(n, classes\), got \(3, 1\) for 2 inputs"),
        (torch.zeros(3, 3), Misclassified(), r"must answer \(n, classes\), got \(3, 3\) for 2 inputs"),
        (torch.zeros(2, 3, 1), Misclassified(), r"must answer \(n, classes\), got \(2, 3, 1\)"),
        (torch.zeros(2, 1, 1), Misclassified(), r"must answer \(n, classes\), got \(2, 1, 1\)"),
        (torch.zeros(3), RegressionMargin(0.5), r"must answer \(n, classes\), got \(3, 1\) for 2 inputs"),
        (torch.zeros(2, 3), AllOf(Misclassified()), r"must answer \(n, domains, classes\), got \(2, 3\) for 2 inputs"),
        (
            torch.zeros(3, 2, 3),
            AllOf(Misclassified()),
            r"must answer \(n, domains, classes\), got \(3, 2, 3\) for 2 inputs",
        ),
    ],
)
def test_what_the_criterion_cannot_read_is_refused_with_its_shape(
    answer: object, criterion: Criterion, why: str
) -> None:
    with pytest.raises(ModelError, match=why):
        scores_of(answer, 2, criterion)


def test_two_classes_and_domains_are_read_as_they_are() -> None:
    two, domains = torch.rand(2, 2), torch.rand(2, 4, 3)
    assert torch.equal(scores_of(two, 2, Misclassified()), two)
    assert torch.equal(scores_of(domains, 2, AllOf(Misclassified())), domains)


def _problem(y: list[int], criterion: Criterion, target: list[int] | None = None) -> Problem:
    ball = LpBall.uniform(Norm.LINF, 0.1, len(y))
    goal = None if target is None else torch.tensor(target)
    return Problem.of(torch.full((len(y), 2), 0.5), torch.tensor(y), ball, criterion=criterion, target=goal)


@pytest.mark.parametrize(
    ("y", "criterion", "target", "columns"),
    [
        ([0, 2], Misclassified(), None, 3),
        ([0, 2], WithDetector(Misclassified()), None, 4),
        ([0, 1], Targeted(), [2, 2], 3),
        ([7, 9], RegressionMargin(0.5), None, 1),
        ([0, 1], Misclassified(), None, 2),
    ],
)
def test_labels_and_targets_up_to_the_last_class_are_served(
    y: list[int], criterion: Criterion, target: list[int] | None, columns: int
) -> None:
    check_classes(_problem(y, criterion, target), columns)


@pytest.mark.parametrize(
    ("y", "criterion", "target", "columns", "why"),
    [
        ([1, 3], Misclassified(), None, 3, "up to 3 and the model has 3 classes, 0 to 2; do they count from 1"),
        ([0, 3], Misclassified(), None, 3, "up to 3 and the model has 3 classes, 0 to 2$"),
        ([1, 4], Misclassified(), None, 3, "up to 4 and the model has 3 classes, 0 to 2$"),
        ([0, 3], WithDetector(Misclassified()), None, 4, "up to 3 and the model has 3 classes"),
        ([0, 1], Targeted(), [1, 3], 3, "targets go up to 3, beyond the model's 3 classes, 0 to 2"),
    ],
)
def test_labels_and_targets_beyond_the_last_class_are_refused(
    y: list[int], criterion: Criterion, target: list[int] | None, columns: int, why: str
) -> None:
    with pytest.raises(DataError, match=why):
        check_classes(_problem(y, criterion, target), columns)


def test_no_samples_have_no_label_beyond_the_last_class() -> None:
    check_classes(_problem([7], Misclassified()).select(np.arange(0)), 3)


def test_a_detector_beside_one_class_leaves_no_decision() -> None:
    with pytest.raises(ModelError, match="a detector beside a model of 1 class leaves no decision"):
        check_classes(_problem([0], WithDetector(Misclassified())), 2)


def test_what_was_made_in_inference_mode_is_copied_for_autograd_and_nothing_else_is() -> None:
    assert fit_for_autograd(nn.BatchNorm1d(2)) is None
    assert fit_for_autograd(lambda x: x) is None
    with torch.inference_mode():
        made = nn.BatchNorm1d(2)
        copies = fit_for_autograd(made)
    assert copies is not None
    assert set(copies) == {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    assert not any(t.is_inference() for t in copies.values())
    one_buffer = nn.Linear(2, 2)
    with torch.inference_mode():
        one_buffer.register_buffer("scale", torch.ones(1))
    mixed = fit_for_autograd(one_buffer)
    assert mixed is not None
    assert set(mixed) == {"weight", "bias", "scale"}
