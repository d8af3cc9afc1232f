"""The journal of a list of properties: one row for each instance that was decided."""

from __future__ import annotations

from typing import ClassVar

from typing_extensions import override

from holdfast.core.store import Key, Store
from holdfast.verification.record import SCHEMA_VERSION, InstanceRecord, parsed

__all__ = ["InstanceJournal"]

_STAGE = "instance"


class InstanceJournal(Store[InstanceRecord]):
    """Decided instances by their number in the list."""

    version: ClassVar[str] = SCHEMA_VERSION
    instead: ClassVar[str] = "verify the list again, into another --out"

    @override
    def encode(self, record: InstanceRecord) -> str:
        return record.model_dump_json()

    @override
    def decode(self, key: Key, text: str) -> InstanceRecord:
        return parsed(text)

    def instances(self) -> dict[int, InstanceRecord]:
        """What is known, by number."""
        return {number: record for (_, number), record in self.units().items()}

    def enter(self, number: int, record: InstanceRecord) -> None:
        """Enters an instance, durably.

        Raises:
            UsageError: the disk is full, or the file cannot be written.
        """
        self.write(_STAGE, number, record, record.seconds)
