"""``report.json``: what an audit found, in plain values; its sections are in `holdfast.audits.sections`.

``python -m holdfast.audits.document > docs/report.schema.json`` writes its JSON Schema. A document refuses to say two
different things: the headline must follow from the samples, a broken sample needs its witness and a certified one its
certificate.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, Literal, Self, cast

from pydantic import Field, ValidationError, model_validator

from holdfast.audits.sections import (
    Contradiction,
    Curves,
    Data,
    DocumentPart,
    Environment,
    FindingEntry,
    Gate,
    Grid,
    Hashes,
    Headline,
    Method,
    Model,
    Sample,
    Side,
    StageSummary,
    SubjectEntry,
    SuiteSummary,
    Threat,
    TotalCost,
)
from holdfast.core.errors import DataError
from holdfast.core.files import read_json, write_whole
from holdfast.core.findings import Severity
from holdfast.core.verdict import Status

__all__ = ["SCHEMA_ID", "SCHEMA_VERSION", "Document", "schema"]

SCHEMA_VERSION = "1"
SCHEMA_ID = "urn:holdfast:report:1"


class Document(DocumentPart):
    """``report.json``."""

    schema_version: Literal["1"] = SCHEMA_VERSION
    headline: Headline
    complete: bool
    """False when a stage did not end or a sample could not be judged (TIMEOUT, ERROR): the figures are not final."""
    contradictions: list[Contradiction] = Field(default_factory=list[Contradiction])
    gate: Gate | None = None
    """Null when no threshold was asked for."""
    threat: Threat
    subject: SubjectEntry
    model: Model
    data: Data
    suite: SuiteSummary
    cost: TotalCost
    samples: list[Sample]
    findings: list[FindingEntry] = Field(default_factory=list[FindingEntry])
    curves: Curves = Field(default_factory=Curves)
    grid: Grid | None = None
    methods: list[Method] = Field(default_factory=list[Method])
    not_tested: list[str] = Field(default_factory=list[str])
    stages: list[StageSummary] = Field(default_factory=list[StageSummary])
    seed: int
    command: str
    environment: Environment
    hashes: Hashes

    def counts(self) -> dict[Status, int]:
        """Samples in each status, every status named."""
        number = Counter(s.status for s in self.samples)
        return {status: number[status] for status in Status}

    def gated(self, threshold: float, side: Side = "empirical", *, allow_weak: bool = False) -> Self:
        """The same document, held to a threshold.

        Args:
            threshold: the least robust accuracy, in [0, 1].
            side: the bound that must reach it.
            allow_weak: let an upper bound pass that the attacks were too hindered to make.
        """
        reasons = self._shortcomings(threshold, side, allow_weak)
        gate = Gate(side=side, threshold=threshold, allow_weak=allow_weak, passed=not reasons, reasons=reasons)
        return self.model_copy(update={"gate": gate})

    def _shortcomings(self, threshold: float, side: Side, allow_weak: bool) -> list[str]:
        """Why a threshold is not reached, in words; nothing if it is."""
        head, reasons = self.headline, list[str]()
        if self.contradictions:
            reasons.append("a witness lies inside a certified radius")
        if not self.complete:
            reasons.append("the run is incomplete: its figures are not final")
        reached = head.empirical_robust_accuracy if side == "empirical" else head.certified_robust_accuracy
        if reached is None or reached < threshold:
            share = "unknown, nothing was certified" if reached is None else f"{100 * reached:.1f} %"
            reasons.append(f"{side} robust accuracy is {share}, below {100 * threshold:.1f} %")
        # the lower bound is proved: hindered attacks cannot raise it
        if side == "empirical" and head.upper_bound_weak and not allow_weak:
            reasons.append(f"the upper bound is weak ({head.upper_bound_note}); --allow-weak accepts it")
        return reasons

    @property
    def exit_code(self) -> int:
        """What the command line ends with: 3 for figures that are not final, 1 for a gate that did not pass, else 0."""
        if self.contradictions or not self.complete or any(f.severity is Severity.ERROR for f in self.findings):
            return 3
        return 1 if self.gate is not None and not self.gate.passed else 0

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        n, head, count = len(self.samples), self.headline, self.counts()
        if head.samples != n or len({s.id for s in self.samples}) != n:
            raise ValueError(f"the headline names {head.samples} samples, the table has {n}, each id once")
        for s in self.samples:
            if s.status is Status.BROKEN and s.witness is None:
                raise ValueError(f"sample {s.id} is BROKEN without a witness")
            if s.status is Status.CERTIFIED and s.certificate is None:
                raise ValueError(f"sample {s.id} is CERTIFIED without a certificate")
        unjudged = count[Status.TIMEOUT] + count[Status.ERROR]
        if unjudged and self.complete:
            raise ValueError(f"{unjudged} samples could not be judged, and the run is said to be complete")
        lost, certified = count[Status.MISCLASSIFIED] + count[Status.BROKEN] + unjudged, count[Status.CERTIFIED]
        due = {"empirical_robust_accuracy": n - lost, "unknown": n - lost - certified}
        if head.certified_robust_accuracy is not None or certified:
            due["certified_robust_accuracy"] = certified
        for name, number in due.items():
            told = getattr(head, name)
            if n and (told is None or abs(told - number / n) > 1e-9):
                raise ValueError(f"headline.{name} is {told}, the samples make it {number} of {n}")
        if (gate := self.gate) is not None:
            reasons = self._shortcomings(gate.threshold, gate.side, gate.allow_weak)
            if gate.reasons != reasons or gate.passed != (not reasons):
                raise ValueError(f"the gate is said to have {'passed' if gate.passed else 'failed'}: {gate.reasons}")
        return self

    @classmethod
    def load(cls, path: Path) -> Document:
        """Reads a ``report.json``, or the one in a run folder.

        Raises:
            DataError: there is none, or it is not one that this version reads.
        """
        file = path / "report.json" if path.is_dir() else path
        try:
            raw = read_json(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise DataError(f"no report at {file}: {error.strerror}") from None
        except ValueError as error:
            raise DataError(f"{file} is no JSON: {error}") from None
        version = cast("dict[str, Any]", raw).get("schema_version") if isinstance(raw, dict) else None
        if version != SCHEMA_VERSION:
            raise DataError(f"{file} has schema_version {version!r}; this version of Holdfast reads {SCHEMA_VERSION!r}")
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "the report as a whole"
            raise DataError(f"{file} is no report: {where}: {first['msg']} ({error.error_count()} faults)") from None

    def text(self) -> str:
        """The document as JSON, the same bytes for the same values; no number in it is infinite or not a number."""
        return json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def save(self, path: Path) -> None:
        """Writes ``report.json``, whole or not at all."""
        write_whole(path, self.text())


def schema() -> dict[str, Any]:
    """The JSON Schema of ``report.json``."""
    body = Document.model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA_ID, **body}


if __name__ == "__main__":
    print(json.dumps(schema(), indent=2, sort_keys=True))
