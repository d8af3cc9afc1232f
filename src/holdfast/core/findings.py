"""What a check noticed about a model, its data or a run, in words that a person can act on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum

__all__ = ["Finding", "Severity"]


class Severity(StrEnum):
    """How much a finding weighs."""

    ERROR = "error"
    """Figures would be wrong or could not be had."""
    WARNING = "warning"
    """Figures can be had, and may not mean what they seem to."""
    NOTE = "note"
    """Worth knowing; nothing to do."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing noticed, with what to do about it.

    Attributes:
        code: stable dotted name, for example ``data.range``; what scripts match on.
        severity: how much it weighs.
        title: a few words.
        message: what was measured, in a sentence or two.
        remedy: what the reader can do; empty for a note that asks for nothing.
        data: the measured values behind the message.

    Example:
        >>> far = Finding(code="data.range", severity=Severity.ERROR, title="out of range", message="max is 255")
        >>> far.as_dict()["severity"]
        'error'
    """

    code: str
    severity: Severity
    title: str
    message: str
    remedy: str = ""
    data: Mapping[str, float | int | str] = field(default_factory=dict[str, "float | int | str"])

    def as_dict(self) -> dict[str, object]:
        """Plain values, as in report.json."""
        return {**asdict(self), "severity": str(self.severity), "data": dict(self.data)}
