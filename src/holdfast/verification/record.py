"""What came out of one instance of a list, as its journal keeps it and as JSON has it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from holdfast.core.files import read_json

__all__ = ["SCHEMA_VERSION", "InstanceRecord", "Verdict", "parsed"]

SCHEMA_VERSION = "2"
"""Of the records of a list's journal. Form 1, of Holdfast 0.1, was a mapping of texts with no type."""

Verdict = Literal["sat", "unsat", "unknown", "timeout", "error"]


class InstanceRecord(BaseModel):
    """The outcome of one instance.

    Attributes:
        verdict: ``unsat`` (the property holds), ``sat`` (it does not), ``unknown``, ``timeout``, or ``error``.
        seconds: from opening the files.
        method: what decided it; nothing where nothing did.
        reason: why it is open or failed.
        arithmetic: in which a proof holds.
        domains: how many parts the region was split into.
        bound: the least sound bound; None where there is no finite one.
        held_against: what the graph was compared with on the box of the property; None where it was not.
        counterexample: in the competition's format, where there is one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    verdict: Verdict
    seconds: Annotated[float, Field(ge=0)]
    method: str = ""
    reason: str = ""
    arithmetic: str = ""
    domains: Annotated[int, Field(ge=0)] = 0
    bound: float | None = None
    held_against: str | None = None
    counterexample: str | None = None

    @classmethod
    def failed(cls, reason: str, seconds: float, verdict: Verdict = "error") -> InstanceRecord:
        """Of an instance on which something went wrong, or that was stopped."""
        return cls(verdict=verdict, seconds=round(seconds, 3), reason=reason)

    @property
    def is_decided(self) -> bool:
        """It holds, or it does not."""
        return self.verdict in ("sat", "unsat")


def parsed(text: str) -> InstanceRecord:
    """The record of a JSON text.

    Raises:
        ValueError: it is none; the message names the field.

    Example:
        >>> parsed(InstanceRecord(verdict="unsat", seconds=0.5).model_dump_json()).verdict
        'unsat'
        >>> parsed('{"verdict": "maybe", "seconds": 1}')
        Traceback (most recent call last):
        ValueError: verdict: Input should be 'sat', 'unsat', 'unknown', 'timeout' or 'error'
    """
    try:
        return InstanceRecord.model_validate(read_json(text))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the record as a whole"
        raise ValueError(f"{where}: {first['msg']}") from None
