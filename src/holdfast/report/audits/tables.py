"""Small tables of a report: which classes are worst off, and which samples are the easiest to break."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from holdfast.audits.document import Document
from holdfast.audits.sections import Sample
from holdfast.core.verdict import Status

__all__ = ["ClassRow", "by_class", "class_name", "easiest"]

_LOST = (Status.MISCLASSIFIED, Status.BROKEN, Status.TIMEOUT, Status.ERROR)


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """One class of the audited samples; shares are of its own samples.

    Attributes:
        name: of the class, or its number.
        samples: how many there are.
        clean: share that is right without an attack.
        empirical: share that is left by the attacks, an upper bound.
        certified: share that is certified, a lower bound.
        becomes: the class that its wrong answers without an attack are most often, or nothing.
    """

    name: str
    samples: int
    clean: float
    empirical: float
    certified: float
    becomes: str


def by_class(document: Document) -> list[ClassRow]:
    """The classes, the one with the least empirical robust accuracy first."""
    groups: dict[int, list[Sample]] = {}
    for sample in document.samples:
        groups.setdefault(sample.label, []).append(sample)
    rows = [_row(document, label, members) for label, members in sorted(groups.items())]
    return sorted(rows, key=lambda row: row.empirical)


def _row(document: Document, label: int, members: Sequence[Sample]) -> ClassRow:
    n = len(members)
    wrong = [s.prediction for s in members if s.status is Status.MISCLASSIFIED]
    most = max(sorted(set(wrong)), key=wrong.count, default=None)
    return ClassRow(
        name=class_name(document, label),
        samples=n,
        clean=sum(s.prediction == label for s in members) / n,
        empirical=sum(s.status not in _LOST for s in members) / n,
        certified=sum(s.status is Status.CERTIFIED for s in members) / n,
        becomes="" if most is None else class_name(document, most),
    )


def easiest(document: Document, most: int = 10) -> list[Sample]:
    """The broken samples with the nearest witnesses, nearest first."""
    broken = [s for s in document.samples if s.status is Status.BROKEN]
    return sorted(broken, key=lambda s: (s.witness.distance if s.witness else 0.0, s.id))[:most]


def class_name(document: Document, label: int) -> str:
    """A class by its name where the data have names, by its number where they have none."""
    names = document.data.class_names
    return names[label] if 0 <= label < len(names) else str(label)
