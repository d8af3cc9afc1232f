"""A model as it is served to whoever asks: rows in, scores, gradients and features out. It knows no samples.

Rows go through the model in micro-batches. What the model fails on is found out row by row and told, and the others are
answered all the same.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from holdfast.core.criterion import Criterion
from holdfast.core.errors import ModelError, UnsupportedError, UsageError
from holdfast.judge.asking import Model, ModelFault, ask, fit_for_autograd, scores_of
from holdfast.judge.gradients import input_gradient
from holdfast.judge.rows import reads_freely
from holdfast.models.queries_only import answers_gradients

__all__ = ["GradientReply", "JacobianReply", "Reply", "Rows", "ScoreReader", "ServedModel"]

Rows = Tensor | slice
"""Which of the rows of a question a micro-batch holds."""


class ScoreReader(Protocol):
    """Reads the scores of a micro-batch on behalf of whoever asks: it knows whose rows they are."""

    def see(self, scores: Tensor, at: Rows) -> None:
        """Is shown scores (m, ...) before anything is made of them, and may refuse them."""
        ...

    def told(self, scores: Tensor, at: Rows) -> Tensor:
        """Scores in the units that losses read; differentiable."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What a model answers to rows.

    Attributes:
        scores: (m, K), or (m, domains, K) where the criterion is about domains; 0 for rows that were not asked, NaN for those
            that the model raised on.
        raised: (m,) bool the rows that the model raised on; None where it raised on none.
    """

    scores: Tensor
    raised: Tensor | None


@dataclass(frozen=True, kw_only=True, slots=True)
class GradientReply(Reply):
    """The same with a loss (m,) and its gradient (m, \\*features), both 0 for rows without an answer."""

    value: Tensor
    grad: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class JacobianReply(Reply):
    """The same with the gradients (m, k, \\*features) of k logits, 0 for rows without an answer."""

    grad: Tensor


class ServedModel:
    """A model behind a counter that hands out answers to rows, in the form and the precision that is expected.

    Attributes:
        model: x (m, \\*features) -> scores (m, K), or (m, domains, K) where the criterion is about domains.
        fault: what it raised first; None if nothing.
    """

    def __init__(
        self, model: Model, criterion: Criterion, *, micro_batch: int, precision: torch.dtype | None = None
    ) -> None:
        """Serves a model.

        Args:
            model: the model.
            criterion: says what an answer must look like.
            micro_batch: rows sent through the model at once.
            precision: autocast dtype; None is full precision.
        """
        self.model, self.precision = model, precision
        self.fault: str | None = None
        self._criterion, self._micro_batch = criterion, micro_batch
        self._hides = not answers_gradients(model)
        self._parameters = fit_for_autograd(model)
        self._form: tuple[int, ...] | None = None  # of one row of scores, once the model has answered
        self._dtype: torch.dtype | None = None

    @property
    def differentiable(self) -> bool:
        """It answers with gradients, and not to queries alone."""
        return not self._hides

    def at(self, weights: Mapping[str, Tensor]) -> ServedModel:
        """The same model with some parameters replaced; the model itself is not touched."""
        other = copy.copy(self)
        other._parameters = weights
        return other

    def admit(self, scores: Tensor) -> None:
        """Notes the form of the first answer, and refuses other forms after it."""
        form = tuple(scores.shape[1:])
        if self._form is None:
            self._form, self._dtype = form, scores.dtype
        elif form != self._form:
            raise ModelError(
                f"the model gives a row of shape {self._form} for some inputs and of shape {form} for others; give one whose "
                "classes are always the same"
            )

    def scores(self, x: Tensor, *, reader: ScoreReader, only: Tensor | None = None) -> Reply:
        """Scores of x (m, \\*features), without gradients; ``only`` (m,) bool says which rows are sent, all if None."""

        def question(at: Rows) -> tuple[Tensor, ...]:
            scores = self._scores(x[at])
            reader.see(scores, at)
            return (scores,)

        with torch.no_grad():
            (scores,), raised = self._ask(x, question, only)
        return Reply(scores=scores, raised=raised)

    def gradient(
        self, x: Tensor, loss: Callable[..., Tensor], *rows: Tensor, reader: ScoreReader, only: Tensor | None = None
    ) -> GradientReply:
        """Scores, a loss and its gradient with respect to the input, one forward and one backward a row.

        Args:
            x: (m, \\*features).
            loss: called ``loss(scores, *rows)``; one with ``layers`` (see `holdfast.numerics.losses.OnFeatures`) is called
                ``loss(scores, features, *rows)``.
            rows: what else the loss reads, one entry for each row.
            reader: is shown the scores, and gives those that the loss reads.
            only: (m,) bool the rows that are sent; all if None.
        """
        layers: tuple[str, ...] = getattr(loss, "layers", ())

        def question(at: Rows) -> tuple[Tensor, ...]:
            with torch.enable_grad(), self._watched(layers) as features:
                xi = x[at].detach().requires_grad_()
                scores = self._scores(xi)
                reader.see(scores, at)
                value = loss(reader.told(scores, at), *([features] if layers else []), *(r[at] for r in rows))
                grad = input_gradient(value, xi)
            return scores.detach(), value.detach(), grad

        (scores, value, grad), raised = self._ask(x, question, only, (), tuple(x.shape[1:]))
        return GradientReply(scores=scores, value=value, grad=grad, raised=raised)

    def jacobian(self, x: Tensor, classes: Tensor, *, reader: ScoreReader, only: Tensor | None = None) -> JacobianReply:
        """Scores and the gradients of the logits at ``classes`` (m, k): one forward and k backwards a row."""

        def question(at: Rows) -> tuple[Tensor, ...]:
            with torch.enable_grad():
                xi = x[at].detach().requires_grad_()
                scores = self._scores(xi)
                reader.see(scores, at)
                chosen = reader.told(scores, at).gather(-1, classes[at])
                k = chosen.shape[-1]
                grads = [input_gradient(chosen[:, j], xi, keep=j + 1 < k) for j in range(k)]
            return scores.detach(), torch.stack(grads, dim=1)

        (scores, grad), raised = self._ask(x, question, only, (classes.shape[1], *x.shape[1:]))
        return JacobianReply(scores=scores, grad=grad, raised=raised)

    def features(self, x: Tensor, layer: str) -> tuple[Tensor, Tensor]:
        """Scores of x and the output (m, ...) of the module named ``layer``; differentiable in x if gradients are on.

        Raises:
            ModelError: the model raised.
        """
        with self._watched((layer,)) as features:
            try:
                scores = self._scores(x)
            except ModelFault as fault:
                raise _named(fault, x, len(x)) from fault.__cause__
        return scores, features[layer]

    def exact_scores(self, x: Tensor) -> Tensor:
        """Scores of x in the model's own precision, all at once."""
        return scores_of(ask(self.model, x), len(x), self._criterion, hides=self._hides)

    def _scores(self, x: Tensor) -> Tensor:
        """Scores of one micro-batch, in the type of x where a precision was given.

        Raises:
            ModelFault: the model raised.
        """
        scores = scores_of(ask(self._called, x), len(x), self._criterion, hides=self._hides)
        if self.precision is not None:
            scores = scores.to(x.dtype)
        self.admit(scores)
        return scores

    def _called(self, x: Tensor) -> Tensor:
        if self._parameters is not None:
            if not isinstance(self.model, nn.Module):
                raise UnsupportedError("weight perturbations need a PyTorch module")
            return torch.func.functional_call(self.model, dict(self._parameters), (x,))
        if self.precision is None:
            return self.model(x)
        with torch.autocast(x.device.type, dtype=self.precision):
            return self.model(x)

    @contextmanager
    def _watched(self, layers: tuple[str, ...]) -> Generator[dict[str, Tensor], None, None]:
        """What the named modules last gave, for the time being."""
        features: dict[str, Tensor] = {}
        if not layers:
            yield features
            return
        if not isinstance(self.model, nn.Module):
            raise UnsupportedError("features need a PyTorch module")
        names: dict[str, nn.Module] = dict(self.model.named_modules())  # pyright: ignore[reportUnknownArgumentType]
        hooks: list[RemovableHandle] = []
        try:
            for layer in layers:
                if layer not in names:
                    raise UsageError(f"the model has no layer '{layer}'; it has {', '.join(list(names)[1:12])} ...")

                def keep(_module: nn.Module, _inputs: object, output: Tensor, layer: str = layer) -> None:
                    features[layer] = output

                hooks.append(names[layer].register_forward_hook(keep))
            yield features
        finally:
            for hook in hooks:
                hook.remove()

    def _ask(
        self, x: Tensor, question: _Question, only: Tensor | None, *forms: tuple[int, ...]
    ) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Asks about rows in micro-batches.

        Args:
            x: (m, \\*features).
            question: what is asked.
            only: (m,) bool: the rows to ask about, all if None; the others come back as zeros.
            forms: of one row of what is answered beside the scores, for rows without an answer.

        Returns:
            The answers, and (m,) bool the rows that the model raised on, None if there are none.

        Raises:
            ModelError: the model raised on every row that it was ever asked.
        """
        every = only is None or (reads_freely(x) and bool(only.all()))
        rows = None if only is None or every else only.nonzero().squeeze(-1)
        if rows is None:
            todo: list[Rows] = [slice(k, k + self._micro_batch) for k in range(0, len(x), self._micro_batch)]
        else:  # no model need take an empty batch
            todo = list(torch.split(rows, self._micro_batch)) if len(rows) else []
        lost = list[Tensor]()
        parts = [part for at in todo for part in self._answered(x, question, at, forms, lost)]
        if not parts:
            parts = [self._blank(0, x, forms, 0.0)]
        joined = parts[0] if len(parts) == 1 else tuple(torch.cat(p) for p in zip(*parts, strict=True))
        if rows is not None:
            joined = tuple(t.new_zeros((len(x), *t.shape[1:])).index_copy_(0, rows, t) for t in joined)
        if not lost:
            return joined, None
        none = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        return joined, none.index_fill_(0, torch.cat(lost), True)

    def _answered(
        self, x: Tensor, question: _Question, at: Rows, forms: tuple[tuple[int, ...], ...], lost: list[Tensor]
    ) -> list[tuple[Tensor, ...]]:
        """The answers to some rows. Where the model raises, each half is asked by itself, down to the rows that it fails on:
        those are no answer and join the lost ones, and the others keep theirs.

        Raises:
            ModelError: it raised on every row that it was ever asked.
        """
        try:
            return [question(at)]
        except ModelFault as fault:
            rows = torch.arange(len(x), device=x.device)[at]
            if len(rows) > 1:
                if self._form is None:  # nothing ever went well: one row shows whether anything can
                    self._try(question, rows[:1], fault, x, len(rows))
                before, self._micro_batch = self._micro_batch, min(self._micro_batch, (len(rows) + 1) // 2)
                known = len(lost)
                parts = [p for half in rows.tensor_split(2) for p in self._answered(x, question, half, forms, lost)]
                if len(lost) > known:  # it was not their number
                    self._micro_batch = before
                return parts
            if self._form is None:
                raise _named(fault, x, 1) from fault.__cause__
            lost.append(rows)
            self.fault = self.fault or str(fault)
            return [self._blank(1, x, forms, float("nan"))]

    def _try(self, question: _Question, row: Tensor, fault: ModelFault, x: Tensor, rows: int) -> None:
        try:
            question(row)
        except ModelFault:
            raise _named(fault, x, rows) from fault.__cause__

    def _blank(self, rows: int, x: Tensor, forms: tuple[tuple[int, ...], ...], value: float) -> tuple[Tensor, ...]:
        form = self._form or (2,)
        scores = torch.full((rows, *form), value, dtype=self._dtype or x.dtype, device=x.device)
        return scores, *(torch.zeros((rows, *form), dtype=x.dtype, device=x.device) for form in forms)


_Question = Callable[[Rows], tuple[Tensor, ...]]
"""Asks the model about some of the rows: their scores, and what else is wanted of each."""


def _named(fault: ModelFault, x: Tensor, rows: int) -> ModelError:
    """What is said of a fault on rows of the data."""
    return ModelError(
        f"the model fails on the data: {rows} inputs of shape {tuple(x.shape[1:])} raise {fault}; check the shape and type that "
        "it expects, or see holdfast doctor"
    )
