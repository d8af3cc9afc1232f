"""Manners that every method must have: a whole card, and hands off what it was given."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.core.cards import parameters_of
from holdfast.core.draws import seeded
from holdfast.data.dataset import Dataset
from holdfast.testing.contract import ContractError, require

__all__ = ["Watched", "declared_parameters", "leaving_alone", "under_two_states", "weights_of", "whole_card"]

T = TypeVar("T")


def whole_card(tool: Any) -> None:
    """Requires a card that says what the method is, and a meaning and a source for each parameter."""
    card = tool.card
    require(
        card.title and card.paper and card.summary and card.section, "card: title, paper, section or summary missing"
    )
    require(card.failure_modes, "card: it says when it is known to fail")
    require(card.checked_by, "card: it says how else it is checked")
    declared_parameters(tool)


def declared_parameters(tool: Any) -> None:
    """Requires a meaning and a source for each field of a method."""
    kind: type[Any] = tool.__class__
    declared = {p.name for p in parameters_of(kind)}
    bare = [f.name for f in fields(kind) if f.name not in declared]
    require(not bare, f"parameters {bare} have neither meaning nor source: declare them with `parameter`")
    require(all(p.meaning and p.source for p in parameters_of(kind)), "a parameter's meaning or source is empty")


def weights_of(model: nn.Module) -> str:
    """A hash of a model's parameters and buffers."""
    return _hash(*model.state_dict().values())


def under_two_states(call: Callable[[], T]) -> tuple[T, T]:
    """What a call gives under two states of the global generators, of PyTorch, NumPy and Python."""

    def under(seed: int) -> T:
        np.random.seed(seed)
        random.seed(seed)
        with seeded(seed):
            return call()

    return under(1), under(2)


@contextmanager
def leaving_alone(*things: nn.Module | Dataset | Tensor) -> Generator[None, None, None]:
    """Requires that models, data, tensors and what is global in PyTorch are afterwards what they were before."""
    before, noise, grad = [_state(t) for t in things], _noise(), torch.is_grad_enabled()
    yield
    for thing, was in zip(things, before, strict=True):
        what = {"Tensor": "an input", "Dataset": "the data set", "Watched": "the data set"}.get(
            type(thing).__name__, "the model"
        )
        changed = [aspect for aspect, value in _state(thing).items() if value != was[aspect]]
        require(not changed, f"{what} was changed in place: {', '.join(changed)}; work on a copy")
    require(_noise() == noise, "global random state was used: draw from keyed draws or a generator of your own")
    require(torch.is_grad_enabled() == grad, "gradients were switched on or off for everyone")


def _state(thing: nn.Module | Dataset | Tensor) -> dict[str, object]:
    """What must stay, by what is said if it did not."""
    if isinstance(thing, nn.Module):
        kinds = ("_forward_hooks", "_forward_pre_hooks")
        return {
            "weights or buffers differ": weights_of(thing),
            "it is in another mode": [m.training for m in thing.modules()],
            "requires_grad was switched": [p.requires_grad for p in thing.parameters()],
            "gradients were left": [p.grad is None for p in thing.parameters()],
            "hooks were left": [len(vars(m)[kind]) for m in thing.modules() for kind in kinds],
        }
    tensors = (thing.x, thing.y) if isinstance(thing, Dataset) else (thing,)
    return {
        "values differ": _hash(*tensors),
        "requires_grad was switched": [t.requires_grad for t in tensors],
        "gradients were left": [t.grad is None for t in tensors],
    }


def _hash(*tensors: Tensor) -> str:
    return hashlib.sha256(b"".join(t.detach().contiguous().numpy().tobytes() for t in tensors)).hexdigest()


def _noise() -> tuple[bytes, str, object]:
    return torch.get_rng_state().numpy().tobytes(), repr(np.random.get_state()), random.getstate()


@dataclass(frozen=True)
class Watched(Dataset):
    """A data set that notices who looks for its manifest."""

    @property
    def manifest(self) -> object:
        """Nothing that a defence may read."""
        raise ContractError("it reads the manifest of the data: a defence sees the data as a person gets them")
