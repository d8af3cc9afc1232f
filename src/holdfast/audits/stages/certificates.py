"""The lower bound: the largest certified radius of each sample that is classified as labelled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from typing_extensions import override

from holdfast.audits.context import Context
from holdfast.audits.evidence import Evidence
from holdfast.audits.lower_bound import LowerBound
from holdfast.audits.records import AnyRecord, CertificateRecord, Ids
from holdfast.audits.stage import Stage, ids_of
from holdfast.core.errors import UnsupportedError

__all__ = ["RANDOM", "CertificateStage"]

RANDOM = (
    "the model draws at random in eval mode, so nothing that holds of one answer holds of the next: no certificate is "
    "given; switch its noise off, or read the attacks' majorities of fresh draws"
)


@dataclass(frozen=True, kw_only=True)
class CertificateStage(Stage[CertificateRecord]):
    """Certificates; they hang on nothing that attacks found.

    Attributes:
        bound: what certifies.
    """

    record: ClassVar[type[AnyRecord]] = CertificateRecord
    reads: ClassVar[tuple[str, ...] | None] = ("clean",)
    is_apart: ClassVar[bool] = True

    name: str = "certificates"
    bound: LowerBound

    @override
    def chosen(self, context: Context, evidence: Evidence) -> np.ndarray:
        return evidence.ids[evidence.correct]

    @override
    def unit(self, context: Context, evidence: Evidence) -> CertificateRecord:
        ids = self.chosen(context, evidence)
        if not len(ids):
            return CertificateRecord()
        if context.randomised:
            return CertificateRecord(ids=ids_of(ids), refused=RANDOM)
        try:
            certified = self.bound.certificates(context, ids)
        except UnsupportedError as refusal:
            return CertificateRecord(ids=ids_of(ids), refused=str(refusal))
        return CertificateRecord(
            ids=ids_of(ids),
            certificates=certified.certificates,
            held_against=certified.held_against,
            cost=certified.cost,
        )

    @override
    def failed(self, ids: Ids, why: str) -> CertificateRecord:
        return CertificateRecord(fault=self.fault(why, ids))
