"""A training algorithm as one thing: from samples to a predictor, the same for the same samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.core.errors import UsageError

__all__ = ["Learner", "Predictor", "RidgeLearner"]

Predictor = Callable[[Tensor], Tensor]
"""Inputs (n, \\*features) -> labels (n,) int64."""

_solve: Callable[..., Any] = torch.linalg.solve  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


class Learner(ABC):
    """What a certificate for a training set is about: an algorithm that draws nothing which its settings do not key.

    Equal samples in equal order give equal predictions; who needs independence of the order sorts the samples before.
    """

    @abstractmethod
    def learn(self, x: Tensor, y: Tensor, classes: int) -> Predictor:
        """The predictor that these samples (n, \\*features), (n,) give, n at least 1."""

    @abstractmethod
    def describe(self) -> str:
        """The algorithm with its settings, for the subject of a certificate."""


@dataclass(frozen=True)
class RidgeLearner(Learner):
    """Least squares on one-hot labels with a ridge, in closed form and float64.

    Example:
        >>> x, y = torch.tensor([[0.0], [1.0], [4.0], [5.0]]), torch.tensor([0, 0, 1, 1])
        >>> RidgeLearner(0.1).learn(x, y, 2)(torch.tensor([[-1.0], [6.0]])).tolist()
        [0, 1]

    Attributes:
        ridge: weight of the squared coefficients, above 0; the offset is free of it.
    """

    ridge: float = 1.0

    def __post_init__(self) -> None:
        if not self.ridge > 0:
            raise UsageError(f"the ridge must be above 0, got {self.ridge}")

    @override
    def learn(self, x: Tensor, y: Tensor, classes: int) -> Predictor:
        flat, wanted = x.flatten(1).double(), torch.nn.functional.one_hot(y, classes).double()
        centre, middle = flat.mean(0), wanted.mean(0)
        inputs, outputs = flat - centre, wanted - middle
        if len(flat) < flat.shape[1]:  # the dual form solves for as many unknowns as there are samples
            gram = inputs @ inputs.T + self.ridge * torch.eye(len(flat), dtype=torch.float64)
            weights: Tensor = inputs.T @ _solve(gram, outputs)
        else:
            gram = inputs.T @ inputs + self.ridge * torch.eye(flat.shape[1], dtype=torch.float64)
            weights = _solve(gram, inputs.T @ outputs)

        def predict(z: Tensor) -> Tensor:
            return ((z.flatten(1).double() - centre) @ weights + middle).argmax(1)

        return predict

    @override
    def describe(self) -> str:
        return f"ridge regression on one-hot labels, ridge {self.ridge:g}, float64"
