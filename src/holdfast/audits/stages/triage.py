"""Which open samples the plan's bounds prove at eps; a suite may spare them its dear attacks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from typing_extensions import override

from holdfast.audits.context import Context
from holdfast.audits.evidence import Evidence
from holdfast.audits.lower_bound import LowerBound
from holdfast.audits.records import AnyRecord, Ids, TriageRecord
from holdfast.audits.stage import Doubt, Repeatable, ids_of
from holdfast.audits.stages.certificates import RANDOM
from holdfast.core.errors import UnsupportedError

__all__ = ["TriageStage"]


@dataclass(frozen=True, kw_only=True)
class TriageStage(Repeatable[TriageRecord]):
    """Proofs at eps.

    Attributes:
        bound: what proves.
    """

    record: ClassVar[type[AnyRecord]] = TriageRecord

    name: str = "triage"
    title: str = "certificates at eps"
    uses_graph: bool = True
    bound: LowerBound

    @override
    def chosen(self, context: Context, evidence: Evidence) -> np.ndarray:
        return evidence.ids[evidence.open]

    @override
    def unit(self, context: Context, evidence: Evidence) -> TriageRecord:
        ids = self.chosen(context, evidence)
        if not len(ids):
            return TriageRecord()
        if context.randomised:
            return TriageRecord(refused=RANDOM)
        try:
            proved = self.bound.proved_at(context, ids, evidence.eps)
        except UnsupportedError as refusal:
            return TriageRecord(refused=str(refusal))
        return TriageRecord(
            ids=ids_of(ids),
            proved=() if proved is None else ids_of(ids[proved]),
            held_against=context.believed.held_against,
        )

    @override
    def failed(self, ids: Ids, why: str) -> TriageRecord:
        return TriageRecord(fault=self.fault(why, ids))

    @override
    def differences(self, told: TriageRecord, due: TriageRecord) -> Iterator[Doubt]:
        yield from self.differing(told, due, ("ids", "proved", "refused"))
