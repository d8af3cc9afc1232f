"""How long and how fast a training goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi
from numbers import Integral, Real

from holdfast.core.errors import UsageError, did_you_mean

__all__ = ["SCHEDULES", "TrainingSettings"]


def _cosine(t: float) -> float:
    return 0.5 * (1 + cos(pi * t))


def _one_cycle(t: float, rise: float = 0.3) -> float:
    """From 1/25 up to 1 and down to 0, both along a cosine (Smith 2018; the shares of torch's OneCycleLR)."""
    if t < rise:
        return 1 - (1 - 1 / 25) * _cosine(t / rise)
    return _cosine((t - rise) / (1 - rise))


SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda t: 1.0,
    "cosine": _cosine,
    "one-cycle": _one_cycle,
}
"""Name -> share of the largest learning rate at a point t of the training, from 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How long and how fast; a checkpoint is resumed only under the same settings.

    Attributes:
        epochs: passes over the training part.
        batch: samples in a batch; the last one of an epoch may be smaller, or larger by one.
        optimiser: ``adam`` or ``sgd`` (with Nesterov momentum 0.9).
        rate: largest learning rate.
        weight_decay: decoupled for adam (AdamW).
        schedule: ``cosine``, ``one-cycle`` or ``constant``.
        validation: share of the data that is held out to choose the best epoch; 0 keeps the last one.
        seed: keys the split, shuffles and draws.
    """

    epochs: int = 30
    batch: int = 128
    optimiser: str = "adam"
    rate: float = 5e-3
    weight_decay: float = 0.0
    schedule: str = "one-cycle"
    validation: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, kind, what in (
            ("epochs", Integral, "a whole number"),
            ("batch", Integral, "a whole number"),
            ("seed", Integral, "a whole number"),
            ("rate", Real, "a number"),
            ("weight_decay", Real, "a number"),
            ("validation", Real, "a number"),
        ):
            if not isinstance(getattr(self, name), kind):
                raise UsageError(f"{name} of a training is {what}, got {getattr(self, name)!r}")
        if self.epochs < 1 or self.batch < 1:
            raise UsageError(f"training needs at least 1 epoch and batches of 1, got {self.epochs} and {self.batch}")
        if self.seed < 0:
            raise UsageError(f"a seed must be at least 0, got {self.seed}")
        if not 0 <= self.validation < 1:
            raise UsageError(f"the validation share must be at least 0 and below 1, got {self.validation}")
        if not self.rate > 0 or self.weight_decay < 0:
            raise UsageError(f"rate {self.rate} must be above 0 and weight decay {self.weight_decay} not negative")
        for word, known in ((self.optimiser, ("adam", "sgd")), (self.schedule, SCHEDULES)):
            if word not in known:
                raise UsageError(f"no '{word}' for training. {did_you_mean(word, known)}")
