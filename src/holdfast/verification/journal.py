"""The journal of a list of properties: one row for each instance that was decided."""

from __future__ import annotations

import json
from typing import Any, ClassVar

from typing_extensions import override

from holdfast.core.files import read_json
from holdfast.core.store import Store

__all__ = ["Journal", "Payload"]

Payload = dict[str, Any]


class Journal(Store[Payload]):
    """Decided instances by their number in the list."""

    version: ClassVar[str] = "1"

    @override
    def encode(self, record: Payload) -> str:
        return json.dumps(record, sort_keys=True, allow_nan=False)

    @override
    def decode(self, text: str) -> Payload:
        return read_json(text)
