"""The JSON that goes to a prediction API and comes back from it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from holdfast.core.errors import ModelError

__all__ = ["Answers", "encode"]


def encode(rows: Tensor) -> bytes:
    """Rows (n, \\*features) as ``{"inputs": [...]}``; float32 values survive the trip to the bit.

    Example:
        >>> encode(torch.tensor([[0.5, 1.0]]))
        b'{"inputs": [[0.5, 1.0]]}'
    """
    return json.dumps({"inputs": rows.tolist()}, allow_nan=False).encode()


@dataclass(frozen=True)
class Answers:
    """What an API's answers mean.

    Attributes:
        classes: how many.
        names: of the classes, if the API answers with names.
        access: whether it gives ``labels`` or ``scores``.
        scores: what its scores are.
        top_k: the best so many scores only, with their labels.
    """

    classes: int
    names: tuple[str, ...] | None = None
    access: Literal["labels", "scores"] = "scores"
    scores: Literal["probabilities", "logits"] = "probabilities"
    top_k: int | None = None

    def decode(self, answer: bytes, rows: int) -> Tensor:
        """An answer as (rows, classes) float32 log-probabilities; classes that the answer leaves out are -inf.

        Raises:
            ModelError: no such JSON, the wrong number of rows, unknown labels, scores that are not what was declared.

        Example:
            >>> Answers(2, access="labels").decode(b'{"labels": [1]}', 1)
            tensor([[-inf, 0.]])
        """
        key = "labels" if self.access == "labels" else "scores" if self.top_k is None else "top"
        values = _list(answer, key)
        if len(values) != rows:
            raise ModelError(f"the API answered {len(values)} rows for {rows}")
        if key == "labels":
            out = torch.full((rows, self.classes), -torch.inf)
            out[torch.arange(rows), torch.tensor([self._index(v) for v in values], dtype=torch.int64)] = 0
            return out
        try:
            table = self._best(values) if key == "top" else torch.tensor(values, dtype=torch.float64)
        except (TypeError, ValueError) as fault:
            raise ModelError(f"the API's '{key}' are not rows of numbers ({str(fault)[:100]})") from None
        if table.shape != (rows, self.classes):
            raise ModelError(
                f"the API's scores have the shape {tuple(table.shape)}; {self.classes} classes were declared"
            )
        return self._log(table).to(torch.float32)

    def _best(self, values: list[Any]) -> Tensor:
        absent = 0.0 if self.scores == "probabilities" else -torch.inf
        table = torch.full((len(values), self.classes), absent, dtype=torch.float64)
        for row, pairs in enumerate(values):
            for label, score in pairs:
                table[row, self._index(label)] = float(score)
        return table

    def _log(self, table: Tensor) -> Tensor:
        if bool(table.isnan().any()) or bool((table == torch.inf).any()):
            raise ModelError("the API answered NaN or infinite scores")
        if self.scores == "logits":
            return table.log_softmax(1)
        total = table.sum(1)
        short = self.top_k is None and bool((total < 0.99).any())
        if short or bool((table < 0).any()) or bool((total > 1.01).any()):
            raise ModelError(
                f"the API's scores are no probabilities (a row sums to {float(total[0]):.4g}); declare them as logits"
            )
        return table.log()

    def _index(self, label: object) -> int:
        if isinstance(label, str) and self.names is not None and label in self.names:
            return self.names.index(label)
        if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < self.classes:
            return label
        known = f": {', '.join(self.names)}"[:200] if self.names else ""
        raise ModelError(f"the API answered the label {label!r}; {self.classes} classes were declared{known}")


def _list(answer: bytes, key: str) -> list[Any]:
    try:
        held: Any = json.loads(answer)
    except (ValueError, RecursionError):
        raise ModelError(f"the API answered no JSON: {answer[:100]!r}") from None
    values = held.get(key) if isinstance(held, dict) else None
    if not isinstance(values, list):
        got = ", ".join(map(str, held)) if isinstance(held, dict) else type(held).__name__
        raise ModelError(f"the API's answer has no list '{key}' (it has: {got[:100]}); check access and top_k")
    return values
