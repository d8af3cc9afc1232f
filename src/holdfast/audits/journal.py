"""The journal of a run: one row for each finished unit of work (a stage of a chunk), with its hash.

A unit is pure: the same plan, stage, chunk and earlier units give the same record. A run that was killed is resumed by
doing the units that have no row; at most one chunk of work is lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from typing_extensions import override

from holdfast.audits.records import SCHEMA_VERSION, AnyRecord, DiagnosticsRecord, PreflightRecord, parsed
from holdfast.core.store import Key, Store

__all__ = ["DIAGNOSTICS", "PREFLIGHT", "Journal", "Key", "Records", "diagnosed", "lost", "preflighted"]

Records = Mapping[Key, AnyRecord]
"""Finished units, by stage and number."""

PREFLIGHT: Key = ("preflight", -1)
"""The look at model and data; work begins after it."""
DIAGNOSTICS: Key = ("diagnostics", -1)
"""The look back at the whole run."""


class Journal(Store[AnyRecord]):
    """Finished units by (stage, chunk), and a few facts about the run as a whole."""

    version: ClassVar[str] = SCHEMA_VERSION
    instead: ClassVar[str] = "audit again, into another --out"

    @override
    def encode(self, record: AnyRecord) -> str:
        return record.model_dump_json()

    @override
    def decode(self, key: Key, text: str) -> AnyRecord:
        record = parsed(text)
        if key[0].partition(":")[0] != record.kind:
            raise ValueError(f"it is one of '{record.kind}'")
        return record


def preflighted(records: Records) -> PreflightRecord | None:
    """The look at model and data, if it was done."""
    record = records.get(PREFLIGHT)
    return record if isinstance(record, PreflightRecord) else None


def diagnosed(records: Records) -> DiagnosticsRecord | None:
    """The look back at the whole run, if it was done."""
    record = records.get(DIAGNOSTICS)
    return record if isinstance(record, DiagnosticsRecord) else None


def lost(records: Records) -> list[Key]:
    """The units in which something failed."""
    return [key for key, record in records.items() if not record.is_whole]
