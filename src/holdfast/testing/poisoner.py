"""The contract of a poisoner, as checks that anyone can run on a method of their own.

from holdfast.testing import check_poisoner
check_poisoner("label_flip")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from holdfast.attacks.poisoner import Poisoner, poison
from holdfast.core.draws import Draws
from holdfast.core.errors import DataError, UsageError
from holdfast.core.registry import name_of
from holdfast.data.dataset import Dataset
from holdfast.data.poisoned import PoisonedDataset
from holdfast.testing._manners import leaving_alone, whole_card
from holdfast.testing._training_case import clean_digits, some, three_digits, what_is_known
from holdfast.testing.contract import ContractError, ContractSuite, reduced, refuses, require

__all__ = ["POISONER_CHECKS", "POISONER_SUITE", "check_poisoner"]

_SAMPLES = 300
_USED = 0.95  # equal samples that are changed and changed back cancel in the symmetric difference


def _made(tool: Poisoner, seed: int = 0) -> PoisonedDataset:
    data = some(clean_digits()[0], 0, _SAMPLES)
    return tool.poison(data, what_is_known().narrowed(tool.card), Draws(seed, "check"))


def _manifest(tool: Poisoner) -> None:
    data, made = some(clean_digits()[0], 0, _SAMPLES), _made(tool)
    try:
        x, y = made.manifest.replay(data.x, data.y)
        x_, y_ = made.manifest.undo(made.data.x, made.data.y)
    except DataError as error:
        raise ContractError(f"the manifest does not tell what was done: {error}") from error
    require(
        torch.equal(x, made.data.x) and torch.equal(y, made.data.y),
        "replaying the manifest on the clean data does not give the poisoned data: it keeps changes back",
    )
    require(torch.equal(x_, data.x) and torch.equal(y_, data.y), "undoing the manifest does not give the clean data")
    signed, name = made.manifest.method, name_of(tool)
    require(signed == name, f"the manifest names the method {signed}, and this is {name}; see `registry.name_of`")


def _budget(tool: Poisoner) -> None:
    made = _made(tool).manifest.edits
    allowed = tool.edits(_SAMPLES)
    require(made <= allowed, f"{made} edits were made, and `edits` allows {allowed}: a changed sample counts twice")
    require(made > 0, "nothing was changed")
    require(
        made >= _USED * allowed,
        f"{made} edits were made of the {allowed} that `edits` allows: a figure at this rate is one of a smaller rate",
    )


def _grows(tool: Poisoner) -> None:
    given: Any = tool
    counts = [_made(replace(given, rate=tool.rate * k)).manifest.edits for k in (0.25, 0.5, 1)]
    require(
        counts[0] < counts[1] < counts[2], f"edits at a quarter, half and all of the rate: {counts}; they must grow"
    )


def _valid(tool: Poisoner) -> None:
    data = some(clean_digits()[0], 0, _SAMPLES)
    _of_the_kind(_made(tool).data, data)
    few = three_digits()  # who counts on ten classes shows here
    made = reduced(tool, {"target": 1}).poison(few, what_is_known(3).narrowed(tool.card), Draws(0, "check"))
    _of_the_kind(made.data, few)


def _of_the_kind(made: Dataset, data: Dataset) -> None:
    """Samples that could stand in the clean data: their shape, type and range, and their classes."""
    x, y = made.x, made.y
    require(
        x.dtype == torch.float32 and tuple(x.shape[1:]) == tuple(data.x.shape[1:]), "features of another type or shape"
    )
    require(bool(x.isfinite().all()), "a feature is not finite")
    require(
        float(x.min()) >= 0 and float(x.max()) <= 1,
        f"features in [{float(x.min())}, {float(x.max())}], the data in [0, 1]",
    )
    require(
        y.dtype == torch.int64 and 0 <= int(y.min()) <= int(y.max()) < data.class_count,
        f"labels in {int(y.min())}..{int(y.max())}: one is no class of the data, which have {data.class_count}",
    )


def _seeds(tool: Poisoner) -> None:
    one, two = _made(tool, 3), _made(tool, 3)
    require(one.data.sha256 == two.data.sha256, "the same seed gave other data: draw from `draws`")
    seed, other = one.manifest.seed, _made(tool, 4)
    require(seed in (3, None), f"the manifest tells the seed {seed}, and the draws had 3")
    if seed is None:
        require(other.data.sha256 == one.data.sha256, "the manifest tells no seed, and another one gives other data")
    else:
        require(
            other.data.sha256 != one.data.sha256, "another seed gives the same data: draw from `draws`, or tell no seed"
        )
    data, knowledge = some(clean_digits()[0], 0, _SAMPLES), what_is_known().narrowed(tool.card)
    used = Draws(3, "check")
    used.of(np.arange(5)).uniform("before", (2,))
    again = tool.poison(data, knowledge, used)
    require(again.data.sha256 == one.data.sha256, "what was drawn before changes the result: name the streams")


def _untouched(tool: Poisoner) -> None:
    data, knowledge = some(clean_digits()[0], 0, _SAMPLES), what_is_known()
    with leaving_alone(data, knowledge.known_surrogate()):
        tool.poison(data, knowledge.narrowed(tool.card), Draws(0, "check"))


def _bad_rates(tool: Poisoner) -> None:
    given: Any = tool
    data = some(clean_digits()[0], 0, _SAMPLES)
    for rate in (0.0, -0.1, 1.5, 1e-6):
        refuses(
            lambda r=rate: poison(replace(given, rate=r), data, knowledge=what_is_known()),
            UsageError,
            f"a rate of {rate}",
        )


CHECKS: dict[str, Callable[[Poisoner], None]] = {
    "card": whole_card,
    "manifest": _manifest,
    "budget": _budget,
    "grows": _grows,
    "valid": _valid,
    "seeds": _seeds,
    "untouched": _untouched,
    "bad-rates": _bad_rates,
}

POISONER_SUITE = ContractSuite("a poisoner", Poisoner, CHECKS)

POISONER_CHECKS = tuple(CHECKS)
"""Names of the checks, in the order in which they run."""


def check_poisoner(poisoner: str | type[Poisoner] | Poisoner, *, only: Iterable[str] | None = None) -> None:
    """Runs the contract of a poisoner; each check is made, and all that fail are told together.

    Args:
        poisoner: a registered name, a class that needs no arguments, or an instance.
        only: names of `POISONER_CHECKS`; all by default.

    Raises:
        ContractError: what is wrong, check by check.
        UsageError: no such method or check.

    Example:
        >>> check_poisoner("label_flip", only=["card", "manifest", "budget"])
    """
    POISONER_SUITE(poisoner, only)
