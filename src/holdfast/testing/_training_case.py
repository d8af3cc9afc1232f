"""What the contracts of the training phase are checked on: digits, a poisoned copy, and the networks that both give."""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields, replace
from functools import lru_cache

import torch
from torch import Tensor, nn
from typing_extensions import override

from holdfast.attacks.backdoor import Backdoor
from holdfast.attacks.backdoors.badnets import BadNets
from holdfast.attacks.poisoner import poison
from holdfast.core.arrays import fingerprint_arrays
from holdfast.core.draws import seeded
from holdfast.core.knowledge import Knowledge
from holdfast.core.manifest import Samples
from holdfast.data.dataset import Dataset
from holdfast.data.digits import load_digits
from holdfast.data.poisoned import PoisonedDataset
from holdfast.models.zoo import digits_mlp
from holdfast.numerics.evaluation import evaluating
from holdfast.testing._manners import Watched
from holdfast.testing.toys import train
from holdfast.transforms.triggers import Trigger

__all__ = [
    "Planted",
    "accuracy",
    "clean_digits",
    "forgetful",
    "learnt",
    "planted",
    "reached",
    "some",
    "three_digits",
    "watched",
    "what_is_known",
]

SHAPE = (1, 8, 8)
_STEPS, _RATE = 100, 0.2


def some(data: Dataset, start: int, stop: int) -> Dataset:
    """Rows of a data set."""
    x, y = data.x[start:stop], data.y[start:stop]
    return replace(data, x=x, y=y, sha256=fingerprint_arrays(x, y))


@lru_cache
def clean_digits() -> tuple[Dataset, Dataset]:
    """1,297 digits to train on and 500 others."""
    return load_digits("train"), load_digits("test")


@lru_cache
def three_digits() -> Dataset:
    """The zeros, ones and twos to train on: another number of classes."""
    train = clean_digits()[0]
    rows = train.y < 3
    x, y = train.x[rows], train.y[rows]
    return replace(train, x=x, y=y, sha256=fingerprint_arrays(x, y), classes=("0", "1", "2"))


def learnt(data: Dataset, seed: int = 0, *, steps: int = _STEPS) -> nn.Module:
    """A small network by gradient descent with momentum on all samples at once, in evaluation mode: a second's work."""
    with seeded(seed):
        model = digits_mlp()
        train(model, data.x, data.y, steps=steps, rate=_RATE)
    return model.eval()


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A backdoor in digits, and the network that learnt it.

    Attributes:
        poisoned: the digits with the trigger on some.
        model: trained on them.
        clean: the same network trained on the clean digits.
        backdoor: what was planted.
    """

    poisoned: PoisonedDataset
    model: nn.Module
    clean: nn.Module
    backdoor: Backdoor

    @property
    def trigger(self) -> Trigger:
        """The planted trigger."""
        return self.backdoor.trigger(SHAPE)


@lru_cache
def planted() -> Planted:
    """One in twenty digits has a square of four pixels and is called a seven."""
    backdoor = BadNets(rate=0.05, target=7, side=2)
    train_data, _ = clean_digits()
    poisoned = poison(backdoor, train_data, seed=0)
    return Planted(poisoned=poisoned, model=learnt(poisoned.data), clean=learnt(train_data), backdoor=backdoor)


def forgetful(model: nn.Module) -> nn.Module:
    """A copy that forgets half of its inputs in training mode; what is asked of it is asked in evaluation mode."""
    return nn.Sequential(nn.Dropout(0.5), *copy.deepcopy(model).children())


def accuracy(model: nn.Module, data: Dataset) -> float:
    """Share of the samples that a model classifies as their label says."""
    with torch.no_grad(), evaluating(model):
        return float((model(data.x).argmax(1) == data.y).double().mean())


def reached(model: nn.Module, trigger: Trigger, target: int, data: Dataset) -> float:
    """The success of a trigger: share of the samples of other classes that it carries to the target."""
    x: Tensor = data.x[data.y != target]
    with torch.no_grad(), evaluating(model):
        return float((model(trigger.stamp(x)).argmax(1) == target).double().mean())


def watched(data: Dataset) -> Watched:
    """The same data, which notice who looks for a manifest."""
    return Watched(**{f.name: getattr(data, f.name) for f in fields(data)})


class _First(nn.Module):
    """The first scores of a model: a classifier of fewer classes."""

    def __init__(self, model: nn.Module, classes: int) -> None:
        super().__init__()
        self.model, self.classes = model, classes

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)[:, : self.classes]


def what_is_known(classes: int = 10) -> Knowledge:
    """All that an attacker could know of the digits below a number."""
    test = clean_digits()[1]
    rows = test.y < classes
    x, y = test.x[rows], test.y[rows]
    return Knowledge(
        surrogate=planted().clean if classes == 10 else _First(planted().clean, classes),
        targets=Samples(x[:3], (y[:3] + 1) % classes),
        clean=Samples(x[:100], y[:100]),
    )
