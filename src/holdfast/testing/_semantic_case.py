"""The cases that the contract of a semantic attack is checked on: digits in colours that tell their class, and plain
digits for methods that learn, since a judge that sees the colour is never wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.attacks.engine import run
from holdfast.attacks.semantic import Prepared, SemanticAttack, SemanticOutcome, run_semantic
from holdfast.core.draws import seeded
from holdfast.core.problem import Problem
from holdfast.data.dataset import Dataset
from holdfast.judge.outcome import Outcome
from holdfast.testing.toys import digits, net, train
from holdfast.transforms.colour import from_hsv
from holdfast.transforms.lifted import Lifted, lift

__all__ = ["SemanticCase", "colour_digits", "colour_net"]

_TRAIN = 600
_FROM = 1000  # attacked digits are none of those that were learned from


def colour_digits(n: int, offset: int = 0) -> tuple[Tensor, Tensor]:
    """Digits (n, 3, 8, 8) in [0, 1] from ``offset`` on, each in its class's hue, with their labels.

    Example:
        >>> colour_digits(2)[0].shape
        torch.Size([2, 3, 8, 8])
    """
    x, y = digits(offset + n)
    x, y = x[offset:], y[offset:]
    hue = (y.to(x.dtype) / 10).view(-1, 1, 1).expand(-1, 8, 8)
    return from_hsv(hue, torch.full_like(hue, 0.7), x[:, 0]), y


@lru_cache
def colour_net() -> nn.Module:
    """A small trained classifier of them with batch norm and dropout, left in training mode: a run must cope."""
    with seeded(0):
        model = nn.Sequential(
            nn.Flatten(), nn.Linear(192, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 10)
        ).double()
        train(model, *colour_digits(_TRAIN), steps=60, rate=0.3)
    return model


@dataclass(frozen=True)
class SemanticCase:
    """One attack: ``whole`` as given and ``small`` with few steps.

    Attributes:
        whole: as given.
        small: with few steps.
        n: attacked samples.
    """

    whole: SemanticAttack
    small: SemanticAttack
    n: int = 12

    def samples(self) -> tuple[Tensor, Tensor]:
        """The attacked digits."""
        return self._digits(self.n, _FROM)

    @property
    def model(self) -> nn.Module:
        """The attacked model."""
        return net() if self.small.learns else colour_net()

    def _digits(self, n: int, offset: int) -> tuple[Tensor, Tensor]:
        if not self.small.learns:
            return colour_digits(n, offset)
        x, y = digits(offset + n)
        return x[offset:], y[offset:]

    @property
    def known(self) -> Dataset | None:
        """What the method may learn from."""
        if not self.small.learns:
            return None
        x, y = self._digits(_TRAIN, 0)
        return Dataset.of(x.float(), y, name="digits")

    def run(self, model: nn.Module | None = None, **more: Any) -> SemanticOutcome:
        """The small attack, judged."""
        x, y = self.samples()
        return run_semantic(
            self.small, more.pop("x", x), more.pop("y", y), model or self.model, known=self.known, **more
        )

    def setting(self, model: nn.Module | None = None) -> Prepared:
        """What the small attack prepares for the digits."""
        return self.small.prepare(*self.samples(), model or self.model, self.known, 0)

    def search(self, prepared: Prepared, eps: float, **more: Any) -> tuple[Outcome, Problem, Lifted]:
        """The search alone, in a ball of another size."""
        _, y = self.samples()
        lifted = Lifted(prepared.attacked, prepared.transform, prepared.origin.shape[1:])
        axes = len(prepared.transform.axes)
        problem = lift(prepared.origin, y, axes, self.small.norm, eps, criterion=prepared.criterion)
        return run(self.small.search(prepared.transform), problem, lifted, **more), problem, lifted

    def with_samples(self, n: int) -> SemanticCase:
        """The same on other many samples."""
        return replace(self, n=n)
