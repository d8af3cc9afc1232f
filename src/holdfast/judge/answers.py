"""A model's answers to many rows: in micro-batches, in the form that is expected, without the rows that it fails on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from holdfast.core.errors import ModelError, UnsupportedError
from holdfast.core.problem import Problem
from holdfast.judge.asking import Model, ModelFault, ask, check_classes, fit_for_autograd, scores_of
from holdfast.judge.rows import reads_freely
from holdfast.models.queries_only import answers_gradients

__all__ = ["Answers", "Question"]

Rows = Tensor | slice
Question = Callable[[Rows], tuple[Tensor, ...]]
"""Asks the model about some of the rows: their scores, and what else is wanted of each."""


class Answers:
    """What a model answers about the samples of a problem.

    Attributes:
        failed: (n,) bool: samples on which the model raised.
        fault: what it raised first.
    """

    def __init__(self, model: Model, problem: Problem, micro_batch: int, precision: torch.dtype | None) -> None:
        """Answers of a model.

        Args:
            model: x (m, \\*features) -> scores (m, K), or (m, domains, K) where the criterion is about domains.
            problem: says what is a score, and which labels there are.
            micro_batch: rows sent through the model at once.
            precision: autocast dtype, or None.
        """
        self._model, self._problem, self._precision = model, problem, precision
        self._micro_batch = micro_batch
        self._hides = not answers_gradients(model)
        self._parameters = fit_for_autograd(model)
        self._form: tuple[int, ...] | None = None  # of one row of scores, once the model has answered
        self._dtype = problem.x.dtype
        self.failed = torch.zeros(len(problem), dtype=torch.bool, device=problem.x.device)
        self.fault: str | None = None

    def at(self, weights: Mapping[str, Tensor]) -> Answers:
        """Those of the same model with some parameters replaced; what failed is shared."""
        other = copy.copy(self)
        other._parameters = weights
        return other

    def admit(self, scores: Tensor) -> None:
        """Notes the form of the first answer, and refuses labels that it has no class for, and other forms after it."""
        form = tuple(scores.shape[1:])
        if self._form is None:
            check_classes(self._problem, scores.shape[-1])
            self._form, self._dtype = form, scores.dtype
        elif form != self._form:
            raise ModelError(
                f"the model gives a row of shape {self._form} for some inputs and of shape {form} for others; give one whose "
                "classes are always the same"
            )

    def scores(self, x: Tensor) -> Tensor:
        """Scores (m, K) of x, in the type of x where a precision was given.

        Raises:
            ModelFault: the model raised.
        """
        answer = ask(self._called, x)
        scores = scores_of(answer, len(x), self._problem.criterion, hides=self._hides)
        if self._precision is not None:
            scores = scores.to(x.dtype)
        self.admit(scores)
        return scores

    def exact_scores(self, x: Tensor) -> Tensor:
        """Scores of x in the model's own precision."""
        return scores_of(ask(self._model, x), len(x), self._problem.criterion, hides=self._hides)

    def _called(self, x: Tensor) -> Tensor:
        if self._parameters is not None:
            if not isinstance(self._model, nn.Module):
                raise UnsupportedError("weight perturbations need a PyTorch module")
            return torch.func.functional_call(self._model, dict(self._parameters), (x,))
        if self._precision is None:
            return self._model(x)
        with torch.autocast(x.device.type, dtype=self._precision):
            return self._model(x)

    def of(
        self, x: Tensor, index: Tensor, question: Question, *forms: tuple[int, ...], only: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Asks about rows in micro-batches.

        Args:
            x: (m, \\*features).
            index: (m,) whose rows they are.
            question: what is asked.
            forms: of one row of what is told beside the scores, for rows without an answer.
            only: (m,) bool: the rows to ask about, all if None; the others come back as zeros.

        Raises:
            ModelError: the model raised on every row that it was ever asked.
        """
        every = only is None or (reads_freely(x) and bool(only.all()))
        rows = None if only is None or every else only.nonzero().squeeze(-1)
        if rows is None:
            todo: list[Rows] = [slice(k, k + self._micro_batch) for k in range(0, len(x), self._micro_batch)]
        else:  # no model need take an empty batch
            todo = list(rows.split(self._micro_batch)) if len(rows) else []
        parts = [part for at in todo for part in self._served(x, index, question, at, forms)]
        if not parts:
            parts = [self._blank(0, x, forms, 0.0)]
        joined = parts[0] if len(parts) == 1 else tuple(torch.cat(p) for p in zip(*parts, strict=True))
        if rows is None:
            return joined
        return tuple(t.new_zeros((len(x), *t.shape[1:])).index_copy_(0, rows, t) for t in joined)

    def _served(
        self, x: Tensor, index: Tensor, question: Question, at: Rows, forms: tuple[tuple[int, ...], ...]
    ) -> list[tuple[Tensor, ...]]:
        """The answers to some rows. Where the model raises, each half is asked by itself, down to the rows that it fails on:
        those are no answer, their samples are failed, and the others keep theirs.

        Raises:
            ModelError: it raised on every row that it was ever asked.
        """
        try:
            return [question(at)]
        except ModelFault as fault:
            rows = torch.arange(len(x), device=x.device)[at]
            if len(rows) > 1:
                if self._form is None:  # nothing ever went well: one row shows whether anything can
                    self._try(question, rows[:1], fault, len(rows))
                before, self._micro_batch = self._micro_batch, min(self._micro_batch, (len(rows) + 1) // 2)
                parts = [p for half in rows.tensor_split(2) for p in self._served(x, index, question, half, forms)]
                if bool(self.failed[index[rows]].any()):  # it was not their number
                    self._micro_batch = before
                return parts
            if self._form is None:
                raise self.named(fault, 1) from fault.__cause__
            self.failed[index[rows]] = True
            self.fault = self.fault or str(fault)
            return [self._blank(1, x, forms, float("nan"))]

    def _try(self, question: Question, row: Tensor, fault: ModelFault, rows: int) -> None:
        try:
            question(row)
        except ModelFault:
            raise self.named(fault, rows) from fault.__cause__

    def _blank(self, rows: int, x: Tensor, forms: tuple[tuple[int, ...], ...], value: float) -> tuple[Tensor, ...]:
        form = self._form or (2,)
        scores = torch.full((rows, *form), value, dtype=self._dtype, device=x.device)
        return scores, *(torch.zeros((rows, *form), dtype=x.dtype, device=x.device) for form in forms)

    def named(self, fault: ModelFault, rows: int) -> ModelError:
        """What is said of a fault on rows of the data."""
        form = tuple(self._problem.x.shape[1:])
        return ModelError(
            f"the model fails on the data: {rows} inputs of shape {form} raise {fault}; check the shape and type that it "
            "expects, or see holdfast doctor"
        )
