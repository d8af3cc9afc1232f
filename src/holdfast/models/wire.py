"""The JSON that goes to a prediction API and comes back from it: this house's own, or what templates declare."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from holdfast.core.errors import ModelError
from holdfast.core.kinds import is_dict, is_list
from holdfast.models.template import AnswerPath, Pair, RequestTemplate

__all__ = ["REQUEST", "Answers", "encode"]

REQUEST = RequestTemplate.parse('{"inputs": $inputs}')
"""What is asked where nothing else is declared."""

_ELLIPSIS = {"labels": '{"labels": [3, ...]}', "scores": '{"scores": [[0.1, 0.9, ...], ...]}'}
_TOP = '{"top": [[[3, 0.9], ...], ...]}'


def encode(rows: Tensor) -> bytes:
    """Rows (n, \\*features) as ``{"inputs": [...]}``; float32 values survive the trip to the bit.

    Example:
        >>> encode(torch.tensor([[0.5, 1.0]]))
        b'{"inputs": [[0.5, 1.0]]}'
    """
    return REQUEST.encode(rows)


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What an API's answers mean.

    Attributes:
        classes: how many.
        names: of the classes, if the API answers with names.
        access: whether it gives ``labels`` or ``scores``.
        scores: what its scores are.
        top_k: the best so many scores only, with their labels.
        path: where the rows are in its answer; None: ``labels``, ``scores`` or ``top``, by what it gives.
    """

    classes: int
    names: tuple[str, ...] | None = None
    access: Literal["labels", "scores"] = "scores"
    scores: Literal["probabilities", "logits"] = "probabilities"
    top_k: int | None = None
    path: AnswerPath | None = None

    @property
    def wanted(self) -> str:
        """An answer of the declared form, in words."""
        if self.path is not None:
            return f"{self.access} at {self.path.text}"
        return _TOP if self.access == "scores" and self.top_k is not None else _ELLIPSIS[self.access]

    def decode(self, answer: bytes, rows: int, *, one_row: bool = False) -> Tensor:
        """An answer as (rows, classes) float32 log-probabilities; classes that the answer leaves out are -inf.

        Args:
            answer: the body.
            rows: how many were asked.
            one_row: what lies at the path is the one row that was asked, not a list of rows.

        Raises:
            ModelError: no such JSON, the wrong number of rows, unknown labels, scores that are not what was declared.

        Example:
            >>> Answers(classes=2, access="labels").decode(b'{"labels": [1]}', 1)
            tensor([[-inf, 0.]])
        """
        values = self._rows(answer, one_row)
        if self.access == "scores" and len(values) == rows * self.classes and all(map(_is_number, values)):
            k = self.classes  # one flat list, row after row
            values = [values[i : i + k] for i in range(0, len(values), k)]
        if len(values) != rows:
            raise ModelError(f"the API answered {len(values)} rows for {rows}")
        if self.access == "labels":
            out = torch.full((rows, self.classes), -torch.inf)
            out[torch.arange(rows), torch.tensor([self._index(_label(v)) for v in values], dtype=torch.int64)] = 0
            return out
        return self._log(self._table(values)).to(torch.float32)

    def _rows(self, answer: bytes, one_row: bool) -> list[Any]:
        try:
            held: Any = json.loads(answer)
        except (ValueError, RecursionError):
            raise ModelError(f"the API answered no JSON: {answer[:100]!r}; wanted: {self.wanted}") from None
        key = "labels" if self.access == "labels" else "scores" if self.top_k is None else "top"
        path = self.path or AnswerPath(key, (key,))
        try:
            found = path.find(held)
        except ModelError as fault:
            hint = (
                "say where they are: --answer PATH (and --answers labels, if it gives labels)"
                if self.path is None
                else f"--answer says {path.text}"
            )
            raise ModelError(f"{fault}; {hint}; wanted: {self.wanted}") from None
        values = [found] if one_row else found
        if not is_list(values):
            raise ModelError(
                f"the API's answer has no list '{path.text}' (it is a {type(values).__name__}); wanted: {self.wanted}"
            )
        return values

    def _table(self, values: list[Any]) -> Tensor:
        """(rows, classes) float64 from rows of numbers, of one number, or of classes with their scores."""
        pairs = [_pairs(row) for row in values]
        if any(p is not None for p in pairs):
            return self._best(pairs)
        if self.classes == 2 and all(_is_number(row) or (is_list(row) and len(row) == 1) for row in values):
            values = [self._two(row) for row in values]
        lengths = {len(row) if is_list(row) else 0 for row in values}
        if len(lengths) == 1 and lengths != {self.classes} and lengths != {0}:
            raise ModelError(
                f"the API's scores have the shape {(len(values), *lengths)}; {self.classes} classes were declared"
            )
        try:
            if not all(is_list(row) and all(map(_is_number, row)) for row in values):
                raise TypeError("some are no number")
            table = torch.tensor(values, dtype=torch.float64)
        except (TypeError, ValueError, OverflowError, RuntimeError) as fault:
            raise ModelError(f"the API's scores are not rows of numbers ({str(fault)[:100]})") from None
        if table.shape != (len(values), self.classes):
            raise ModelError(
                f"the API's scores have the shape {tuple(table.shape)}; {self.classes} classes were declared"
            )
        return table

    def _two(self, row: Any) -> Any:
        """The score of class 1 of 2 as both."""
        one: Any = row[0] if is_list(row) and len(row) == 1 else row
        if not _is_number(one):
            return row  # refused with the others
        return [1.0 - one, one] if self.scores == "probabilities" else [0.0, one]

    def _best(self, rows: Sequence[list[Pair] | None]) -> Tensor:
        absent = 0.0 if self.scores == "probabilities" else -torch.inf
        table = torch.full((len(rows), self.classes), absent, dtype=torch.float64)
        for row, pairs in enumerate(rows):
            seen: set[int] = set()
            for pair in pairs or ():
                k = self._index(pair.label)
                if k in seen or not _is_number(pair.score):
                    what = "twice" if k in seen else f"with the score {pair.score!r:.40}, which is no number"
                    raise ModelError(f"the API's answer has the class {pair.label!r} {what}")
                seen.add(k)
                table[row, k] = float(pair.score)
            if not pairs:
                raise ModelError("the API answered a row without classes beside rows with them")
            if self.top_k is None and len(seen) < self.classes:
                raise ModelError(
                    f"the API answered {len(seen)} of {self.classes} classes; if it shows the best ones only, say how many: "
                    f"--top-k {max(1, len(seen))}"
                )
        return table

    def _log(self, table: Tensor) -> Tensor:
        if bool(table.isnan().any()) or bool((table == torch.inf).any()):
            raise ModelError("the API answered NaN or infinite scores")
        if self.scores == "logits":
            return table.log_softmax(1)
        total = table.sum(1)
        short = self.top_k is None and bool((total < 0.99).any())
        if short or bool((table < 0).any()) or bool((total > 1.01).any()):
            worst = float(total[(total - 1).abs().argmax()])
            raise ModelError(
                f"the API's scores are no probabilities (a row sums to {worst:.4g}); declare them as logits: --scores logits"
            )
        return table.log()

    def _index(self, label: object) -> int:
        if isinstance(label, str) and self.names is not None and label in self.names:
            return self.names.index(label)
        if isinstance(label, str) and self.names is None and label.isdecimal() and len(label) < 10:
            label = int(label)  # the names of a JSON object are texts
        if isinstance(label, float) and label.is_integer():
            label = int(label)
        if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < self.classes:
            return label
        known = f": {', '.join(self.names)}"[:200] if self.names else ""
        fix = "; name them in order: --class-names NAME,NAME,..." if isinstance(label, str) and not self.names else ""
        raise ModelError(f"the API answered the label {label!r:.80}; {self.classes} classes were declared{known}{fix}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _label(value: Any) -> Any:
    if isinstance(value, Pair):
        return value.label
    return value[0] if is_list(value) and len(value) == 1 else value


def _pairs(row: Any) -> list[Pair] | None:
    """A row as classes with scores; None if it is no such row."""
    if isinstance(row, Pair):
        return [row]
    if is_dict(row):
        return [Pair(k, v) for k, v in row.items()]
    if not is_list(row) or not row:
        return None
    if all(isinstance(p, Pair) for p in row):
        return row
    if all(is_list(p) and len(p) == 2 for p in row):
        return [Pair(*p) for p in row]
    return None
