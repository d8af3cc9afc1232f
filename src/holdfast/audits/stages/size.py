"""The first attack of the suite at a further size, for the security curve."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np
from typing_extensions import override

from holdfast.audits.context import Context
from holdfast.audits.evidence import Evidence
from holdfast.audits.records import AnyRecord, Ids, SizeRecord
from holdfast.audits.stage import Doubt, Stage, ids_of
from holdfast.audits.stages.attack import attacked
from holdfast.audits.suite import SuiteEntry

__all__ = ["SizeStage"]


@dataclass(frozen=True, kw_only=True)
class SizeStage(Stage[SizeRecord]):
    """An attack at another eps; what a known witness breaks there is not attacked.

    Attributes:
        entry: the attack.
        eps: the size.
    """

    record: ClassVar[type[AnyRecord]] = SizeRecord

    entry: SuiteEntry
    eps: Fraction

    def _broken(self, evidence: Evidence) -> np.ndarray:
        """(n,) bool: a known witness lies within the size."""
        near = [i for i, claim in evidence.nearest.items() if claim.witness.distance <= float(self.eps)]
        return np.isin(evidence.ids, near)

    @override
    def chosen(self, context: Context, evidence: Evidence) -> np.ndarray:
        return evidence.ids[evidence.correct & ~self._broken(evidence)]

    @property
    @override
    def searcher(self) -> str:
        return self.entry.name

    @override
    def unit(self, context: Context, evidence: Evidence) -> SizeRecord:
        ids = self.chosen(context, evidence)
        claims, raised, referee = attacked(context, self.entry, ids, evidence, float(self.eps))
        broken = self._broken_here(evidence, claims.witnesses.keys())
        return SizeRecord(ids=ids_of(ids), claims=claims, raised=raised, referee=referee, broken_here=broken)

    def _broken_here(self, evidence: Evidence, attacked: Iterable[int]) -> Ids:
        known = evidence.ids[self._broken(evidence) & evidence.correct].tolist()
        return tuple(sorted({*known, *attacked}))

    @override
    def failed(self, ids: Ids, why: str) -> SizeRecord:
        return SizeRecord(fault=self.fault(why, ids))

    @override
    def doubts(self, context: Context, evidence: Evidence, told: SizeRecord) -> Iterator[Doubt]:
        yield from super().doubts(context, evidence, told)
        right = set(evidence.ids[evidence.correct].tolist())
        if told.broken_here != self._broken_here(evidence, right & told.claims.witnesses.keys()):
            yield Doubt("counts other samples as broken than it has witnesses for")
