"""What a stage of an audit is: one unit of work for some samples, a pure function of the plan and the evidence so far.

A stage is a class in a file of `holdfast.audits.stages`. The driver, the workers and recheck know no stage: what a unit reads,
what is lost when it fails, and what of its record can be derived anew, the stage says itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from typing_extensions import override

from holdfast.audits.context import Context
from holdfast.audits.evidence import Evidence
from holdfast.audits.records import AnyRecord, Fault, Ids, Record

__all__ = ["AnyStage", "Doubt", "Repeatable", "Stage", "UnitSize", "ids_of"]

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Doubt:
    """What does not hold of a record: said of its unit, or of one sample."""

    text: str
    sample: int | None = None


@dataclass(frozen=True, kw_only=True)
class UnitSize:
    """How many samples a unit has at most; None is as many as the plan's chunk.

    Attributes:
        most: on any model.
        if_heavy: on models of which a pass is dear.
    """

    most: int | None = None
    if_heavy: int | None = None


@dataclass(frozen=True, kw_only=True)
class Stage(ABC, Generic[R]):
    """A named stage.

    Attributes:
        name: key in the journal; what stands before a colon is the kind of its records.
        title: for the progress line.
        unit_size: samples of a unit.
        reads: the stages that a unit reads; None is all earlier ones that do not stand apart.
        is_apart: only stages that name it read it.
        uses_graph: it needs the model's graph.
    """

    record: ClassVar[type[AnyRecord]]
    reads: ClassVar[tuple[str, ...] | None] = None
    is_apart: ClassVar[bool] = False

    name: str
    title: str
    unit_size: UnitSize = UnitSize()
    uses_graph: bool = False

    @abstractmethod
    def unit(self, context: Context, evidence: Evidence) -> R:
        """The work for the samples of the evidence."""

    @abstractmethod
    def failed(self, ids: Ids, why: str) -> R:
        """The record of a unit that failed, by which some samples are lost."""

    @abstractmethod
    def chosen(self, context: Context, evidence: Evidence) -> np.ndarray:
        """The ids, among those of the evidence, that a unit is run on."""

    def lost(self, context: Context, evidence: Evidence) -> np.ndarray:
        """The ids that are lost when a unit fails."""
        return evidence.ids

    @property
    def searcher(self) -> str:
        """The name of what searches here."""
        return self.name

    def author(self, evidence: Evidence, i: int) -> str:
        """The attack whose name a witness of a sample bears."""
        return self.searcher

    def doubts(self, context: Context, evidence: Evidence, told: R) -> Iterator[Doubt]:
        """What of a record cannot be, from the evidence before it and without doing the unit again."""
        if told.ids != ids_of(self.chosen(context, evidence)):
            yield Doubt("was run on other samples than the plan sends there")
        yield from _strays(told)

    def fault(self, why: str, ids: Ids) -> Fault:
        """Why a unit failed, after its stage's title."""
        return Fault(ids=ids, why=f"{self.title}: {why}")


class Repeatable(Stage[R]):
    """A stage that costs little: recheck does its units again."""

    @abstractmethod
    def differences(self, told: R, due: R) -> Iterator[Doubt]:
        """What a record says otherwise than the unit done again."""

    @override
    def doubts(self, context: Context, evidence: Evidence, told: R) -> Iterator[Doubt]:
        yield from _strays(told)  # which samples it was run on is seen when it is done again

    def differing(self, told: R, due: R, names: Iterable[str]) -> Iterator[Doubt]:
        """The fields in which they differ, which samples failed, and which were left without an answer."""
        for name in (*names, "failed"):
            if getattr(told, name) != getattr(due, name):
                yield Doubt(f"says something else about '{name}' than the model does")
        if told.no_answer.keys() != due.no_answer.keys():
            yield Doubt("names other samples than the model has no answer for")


AnyStage = Stage[Any]


def ids_of(ids: np.ndarray) -> Ids:
    """Ids as a record has them."""
    return tuple(ids.tolist())


def _strays(told: Record) -> Iterator[Doubt]:
    ran, strays = set(told.ids), dict[str, set[int]]()
    for kind, i in told.about():
        if i not in ran:
            strays.setdefault(kind, set()).add(i)
    for kind, ids in strays.items():
        yield Doubt(f"has {kind} of samples that it was not run on: {sorted(ids)[:5]}")
