"""The journal of a run: one row for each finished unit of work (a stage of a chunk), with its hash.

A unit is pure: the same plan, stage, chunk and earlier units give the same payload. A run that was killed is resumed by
doing the units that have no row; at most one chunk of work is lost.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar

from typing_extensions import override

from holdfast.core.files import read_json
from holdfast.core.store import Key, Store

__all__ = ["Journal", "Key", "Payload"]

Payload = dict[str, Any]


class Journal(Store[Payload]):
    """Finished units by (stage, chunk), and a few facts about the run as a whole."""

    version: ClassVar[str] = "1"

    @override
    def encode(self, record: Payload) -> str:
        return json.dumps(record, sort_keys=True, allow_nan=False)

    @override
    def decode(self, text: str) -> Payload:
        return read_json(text)
