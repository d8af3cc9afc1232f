"""What a suite is: which attacks run, in which order, and on which samples that are still open.

A suite is a class in a file of `holdfast.audits.suites`; it is named by its file and listed nowhere else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any, ClassVar, final

import numpy as np

from holdfast.attacks.attack import Attack
from holdfast.audits.evidence import Evidence
from holdfast.audits.suites import suite_names
from holdfast.core.cards import Card
from holdfast.core.errors import UsageError, did_you_mean
from holdfast.core.registry import card, create
from holdfast.core.threat import Access, Goal, Norm

__all__ = ["SPARED_SHARE", "Suite", "SuiteEntry", "SuiteRequest", "came_close", "load_suite", "where_gradients_fail"]

SPARED_SHARE = 20
"""Certified samples are spared dear entries, but for one in this many, chosen by its id."""


def _everyone(known: Evidence) -> np.ndarray:
    return np.ones(len(known.ids), dtype=bool)


@dataclass(frozen=True, kw_only=True)
class SuiteEntry:
    """One attack of a suite.

    Attributes:
        name: unique in the suite; names its stage and its draws.
        method: name of the attack.
        parameters: what differs from its defaults.
        wants: which of the open samples it is run on; (n,) bool from what is known so far.
        spares: certified samples are left out, but for the keyed share.
        nearest: it looks for the nearest witness at any distance, of broken samples too.
        under: for an attack inside a budget, with ``nearest``: its eps as a fraction of the nearest distance known.
        takes_over: it stands in for the others where gradients lead nowhere, and has nothing to do elsewhere.
    """

    name: str
    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict[str, Any])
    wants: Callable[[Evidence], np.ndarray] = _everyone
    spares: bool = False
    nearest: bool = False
    under: float | None = None
    takes_over: bool = False

    @classmethod
    def of(cls, method: str, **parameters: Any) -> SuiteEntry:
        """An attack that bears the name of its method and is run on all open samples."""
        return cls(name=method, method=method, parameters=parameters)

    def attack(self) -> Attack[Any, Any]:
        """The attack with its parameters."""
        kind: type[Attack[Any, Any]] = Attack
        return create(self.method, kind, **self.parameters)

    @property
    def card(self) -> Card:
        """The card of the attack."""
        return card(self.method)

    @property
    def stage(self) -> str:
        """Name of its stage."""
        return f"attack:{self.name}"

    @property
    def transfers(self) -> bool:
        """Whether it searches on the attacker's own model."""
        return self.card.access is Access.TRANSFER


@dataclass(frozen=True, kw_only=True)
class SuiteRequest:
    """What a suite is put together from.

    Attributes:
        norm: the distortion that is bounded.
        goal: untargeted or targeted.
        queries: the most queries for a sample and attack, where they are limited.
        labels_only: the deployment answers labels, no scores.
        has_surrogate: the attacker owns a model, or data to train one on.
    """

    norm: Norm
    goal: Goal
    queries: int | None
    labels_only: bool
    has_surrogate: bool


class Suite(ABC):
    """Attacks in an order.

    Attributes:
        queries_only: the model is only asked, never differentiated.
        uses_gradients: after the first attack it is asked on which samples the gradients lead nowhere.
        proves_early: what bounds prove after the first attack may be spared the dear ones.
        runs_on_everyone: each attack is run on nearly every sample.
    """

    queries_only: ClassVar[bool] = False
    uses_gradients: ClassVar[bool] = False
    proves_early: ClassVar[bool] = False
    runs_on_everyone: ClassVar[bool] = False

    @abstractmethod
    def composition(self, request: SuiteRequest) -> tuple[SuiteEntry, ...]:
        """The attacks in order, whether or not they serve the norm and the goal."""

    @abstractmethod
    def stamp(self, request: SuiteRequest) -> str:
        """What a run of it may be called."""

    def refuse(self, request: SuiteRequest) -> None:  # noqa: B027 - most suites serve everything
        """Refuses what the suite does not serve.

        Raises:
            UsageError: the message says what does.
        """

    @final
    def entries(self, request: SuiteRequest) -> tuple[SuiteEntry, ...]:
        """The attacks that serve the norm and the goal, in order."""
        composed = self.composition(request)
        return tuple(entry for entry in composed if Attack.supports(entry.card, request.norm, request.goal))


def load_suite(name: str) -> Suite:
    """The suite of a name.

    Raises:
        UsageError: there is no such suite; the message names the near ones.

    Example:
        >>> load_suite("black-box").queries_only
        True
    """
    if name not in suite_names():
        raise UsageError(f"there is no suite '{name}'. {did_you_mean(name, suite_names())}")
    module = import_module(f"holdfast.audits.suites.{name.replace('-', '_')}")
    own = [v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__]
    return next(kind for kind in own if issubclass(kind, Suite))()


def came_close(share: float) -> Callable[[Evidence], np.ndarray]:
    """Samples whose margin has lost at least this share of its clean size: where a further search has a chance."""

    def wants(known: Evidence) -> np.ndarray:
        return known.progress >= share

    return wants


def _hindered(known: Evidence) -> np.ndarray:
    return known.is_hindered & ~np.isin(known.ids, list(known.proved))


def where_gradients_fail(request: SuiteRequest) -> tuple[SuiteEntry, ...]:
    """What takes over where gradients lead nowhere: scores at full strength, then labels, should the scores be flat too."""
    return tuple(
        replace(
            entry,
            name=f"{entry.name}_blind",
            wants=_hindered,
            takes_over=True,
        )
        for entry in load_suite("black-box").composition(request)
        if not entry.transfers
    )
