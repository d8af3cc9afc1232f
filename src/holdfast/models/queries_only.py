"""Models that run on this machine and answer queries only: no gradient, no graph, and so no certificate."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from holdfast.core.arrays import tensor_of
from holdfast.core.errors import ModelError, UsageError
from holdfast.core.verdict import Subject

__all__ = ["QueriesOnly", "answers_gradients"]


def answers_gradients(model: object) -> bool:
    """Whether a model, and every part of it, can be asked for gradients.

    Example:
        >>> answers_gradients(nn.Linear(2, 2))
        True
    """
    parts = model.modules() if isinstance(model, nn.Module) else (model,)
    return all(getattr(part, "differentiable", True) for part in parts)


class QueriesOnly(nn.Module):
    """A model that numpy arrays go into and come out of.

    Its answer is scores (n, K), or labels, which become 0 for the class and -inf for all others.

    Args:
        identity: SHA-256 of what the model is.
        what: how to call it in a message.
        why: why there is no gradient, as a sentence without its full stop.
        classes: how many, or their names in order; needed where it answers labels alone.
    """

    differentiable = False

    def __init__(self, identity: str, what: str, why: str, classes: int | Sequence[Any] | None = None) -> None:
        super().__init__()
        self.identity, self.what, self.why = identity, what, why
        self.names = () if classes is None or isinstance(classes, int) else tuple(classes)
        self.classes = classes if isinstance(classes, int) else len(self.names) or None

    @property
    def subject(self) -> Subject:
        """What verdicts on it are about."""
        return Subject("model", self.identity, self.what)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was noticed on opening."""
        return ()

    @abstractmethod
    def ask(self, x: np.ndarray) -> np.ndarray:
        """(n, \\*features) float32 -> scores (n, K), or labels (n,) as integers or class names."""

    @override
    def extra_repr(self) -> str:
        """For the fingerprint."""
        return self.identity

    @override
    def forward(self, x: Tensor) -> Tensor:
        """(n, \\*features) -> (n, K) float32 on x's device.

        Raises:
            ModelError: it fails, or answers what is neither scores nor labels.
        """
        if not len(x):
            x = x.new_zeros((1, *x.shape[1:]))
            return self.forward(x)[:0]
        answer = np.asarray(self.ask(x.detach().to("cpu", torch.float32).numpy().copy()))
        if answer.ndim == 0 or len(answer) != len(x):
            raise ModelError(
                f"{self.what} answered the shape {answer.shape} for {len(x)} rows; wanted one row for each"
            )
        if answer.dtype.kind in "iubUSO" and answer.size == len(x):
            return self._hard(answer.reshape(-1)).to(x.device)
        if answer.dtype.kind not in "fiu":
            raise ModelError(
                f"{self.what} answered values of the type {answer.dtype}; wanted scores (n, classes) or labels (n,)"
            )
        if answer.ndim == 1:  # one number a row: the pre-flight says what to do, unless it was declared
            answer = answer[:, None]
        return tensor_of(np.ascontiguousarray(answer, dtype=np.float32)).to(x.device)

    def by_class(self, answer: Sequence[Any], remedy: str) -> np.ndarray:
        """(n, K) float32 of answers that are, for each row, scores by class.

        Raises:
            ModelError: they are something else, or of other classes from row to row; the remedy is said.
            UsageError: classes are named and nobody said in which order labels number them.
        """
        if not all(isinstance(row, dict) and row.keys() == answer[0].keys() for row in answer):
            raise ModelError(f"{self.what} answers a sequence that is no scores by class; {remedy}")
        keys = {str(key): key for key in answer[0]}
        if {*map(str, self.names)} == keys.keys():
            order = [keys[str(name)] for name in self.names]
        elif all(isinstance(key, (int, np.integer)) for key in keys.values()):
            order = sorted(keys.values())
        else:
            named = ",".join(keys)
            raise UsageError(
                f"{self.what} answers scores by class; say in which order labels number them: --class-names {named[:200]}"
            )
        return np.array([[row[key] for key in order] for row in answer], dtype=np.float32)

    def _hard(self, labels: np.ndarray) -> Tensor:
        if self.classes is None:
            raise UsageError(
                f"{self.what} answers labels alone and does not say how many classes it has; give --classes"
            )
        known: dict[Any, int] = {name: k for k, name in enumerate(self.names)}
        index: list[int] = []
        for label in labels.tolist():
            k = known.get(label, known.get(str(label), label) if not isinstance(label, bool) else int(label))
            if not isinstance(k, int) or not 0 <= k < self.classes:
                named = f": {', '.join(map(str, self.names))}"[:200] if self.names else ""
                raise ModelError(
                    f"{self.what} answered the label {label!r:.80}; {self.classes} classes were declared{named}"
                )
            index.append(k)
        out = torch.full((len(index), self.classes), -torch.inf)
        out[torch.arange(len(index)), torch.tensor(index)] = 0
        return out
