"""Small models and problems on which the contract suites know what must come out."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn
from typing_extensions import override

from holdfast.core.draws import seeded
from holdfast.data.digits import load_digits

__all__ = ["AffineModel", "Counting", "Metered", "Queried", "affine_digits", "digits", "net", "train"]


def digits(n: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """The first n digits (n, 1, 8, 8) in [0, 1] with their labels."""
    data = load_digits()
    return torch.as_tensor(data.x[:n]).to(dtype), torch.as_tensor(data.y[:n])


@lru_cache
def net(dtype: torch.dtype = torch.float64) -> nn.Module:
    """A small trained classifier of digits with batch norm and dropout, left in training mode: a run must cope.

    It accepts (n, 1, 8, 8) and (n, 64).
    """
    with seeded(0):
        model = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 10)
        )
        train(model, *digits(1797, torch.float32), steps=60, rate=0.3)
    return model.to(dtype)


def train(model: nn.Module, x: Tensor, y: Tensor, *, steps: int, rate: float) -> None:
    """Gradient descent with momentum on all samples at once; an optimiser of torch would take seconds to import."""
    weights = list(model.parameters())
    velocity = [torch.zeros_like(w) for w in weights]
    for _ in range(steps):
        with torch.enable_grad():
            grads = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), weights)
        velocity = [0.9 * v - rate * g for v, g in zip(velocity, grads, strict=True)]
        for w, v in zip(weights, velocity, strict=True):
            w.data += v


class AffineModel(nn.Module):
    """``weight @ x + bias`` of flattened inputs.

    Example:
        >>> AffineModel(torch.eye(2), torch.zeros(2))(torch.tensor([[1.0, 2.0]])).tolist()
        [[1.0, 2.0]]
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    @override
    def forward(self, x: Tensor) -> Tensor:
        """(n, K) scores."""
        return x.flatten(1) @ self.weight.T + self.bias


@lru_cache
def affine_digits() -> AffineModel:
    """Multinomial logistic regression on all digits, in float64: the model of the exact affine oracle."""
    model = AffineModel(torch.zeros(10, 64, dtype=torch.float64), torch.zeros(10, dtype=torch.float64))
    train(model, *digits(1797), steps=300, rate=0.5)
    return model


class Metered(nn.Module):
    """Counts the rows that go through a model.

    Attributes:
        total: rows so far.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.total = model, 0

    @override
    def forward(self, x: Tensor) -> Tensor:
        """The model's scores."""
        self.total += len(x)
        return self.model(x)


class Counting(Metered):
    """Counts the rows of each sample that go through a model; the first feature of a row says whose it is.

    Attributes:
        rows: (n,) int64; those with no sample's mark are in the total alone.
    """

    def __init__(self, model: nn.Module, n: int) -> None:
        super().__init__(model)
        self.rows = torch.zeros(n, dtype=torch.int64)

    @staticmethod
    def mark(x: Tensor) -> Tensor:
        """x with the sample's number in its first feature."""
        marked = x.clone()
        marked.flatten(1)[:, 0] = torch.arange(len(x)) / 64
        return marked

    @override
    def forward(self, x: Tensor) -> Tensor:
        """The model's scores."""
        with torch.no_grad():
            whose = (x.flatten(1)[:, 0] * 64).round().long().clamp(0, len(self.rows) - 1)
            self.rows.index_add_(0, whose, torch.ones_like(whose))
        return super().forward(x)


class Queried(nn.Module):
    """A model behind a query interface: no gradient, and no more than ``tells`` shows of its scores."""

    differentiable = False

    def __init__(self, model: nn.Module, tells: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.tells = model, tells

    @override
    def forward(self, x: Tensor) -> Tensor:
        """What the interface shows."""
        with torch.no_grad():
            return self.tells(self.model(x.detach()))
