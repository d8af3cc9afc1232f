"""SARIF 2.1.0, so that code hosts and editors show the findings where they show those of other scanners."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any
from urllib.parse import quote

from holdfast.audits.document import Document
from holdfast.audits.sections import FindingEntry
from holdfast.core.findings import Severity
from holdfast.core.threat import parse_eps
from holdfast.core.verdict import Status
from holdfast.core.words import counted, sentences
from holdfast.report.markup import percent

__all__ = ["render"]

_BROKEN = "holdfast.broken"
_GATE = "holdfast.gate"
_CONTRADICTION = "holdfast.contradiction"


def render(document: Document) -> str:
    """The findings, and one result that sums up the broken samples."""
    entries = [*_own(document), *document.findings]
    rules: dict[str, dict[str, Any]] = {}
    for entry in entries:
        rules.setdefault(entry.code, _rule(entry))
    index = {code: k for k, code in enumerate(rules)}
    run = {
        "tool": {
            "driver": {
                "name": "Holdfast",
                "semanticVersion": document.environment.holdfast,
                "rules": list(rules.values()),
            }
        },
        "invocations": [_invocation(document)],
        "results": [_result(document, entry, index[entry.code]) for entry in entries],
        "properties": {"headline": document.headline.model_dump(mode="json")},
    }
    log = {"$schema": "https://json.schemastore.org/sarif-2.1.0.json", "version": "2.1.0", "runs": [run]}
    return json.dumps(log, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _invocation(document: Document) -> dict[str, Any]:
    """How the command ended; one that ended with a gate that did not pass did its work all the same."""
    told: dict[str, Any] = {
        "commandLine": document.command,
        "executionSuccessful": document.exit_code != 3,
        "exitCode": document.exit_code,
    }
    if document.gate is not None and not document.gate.passed:
        told["exitCodeDescription"] = "; ".join(document.gate.reasons)
    return told


def _own(document: Document) -> list[FindingEntry]:
    """What the verdicts themselves say, as findings."""
    counts, head, threat = document.counts(), document.headline, document.threat
    out: list[FindingEntry] = []
    if wrong := document.contradictions:
        ids = ", ".join(str(c.id) for c in wrong[:20])
        out.append(
            FindingEntry(
                code=_CONTRADICTION,
                severity=Severity.ERROR,
                title="a witness lies inside a certified radius",
                message=f"A witness lies inside a certified radius on {len(wrong)} samples: {ids}.",
                remedy="Run `holdfast recheck` on the run folder and report the certifier or the attack that is wrong.",
            )
        )
    if broken := counts[Status.BROKEN]:
        out.append(
            FindingEntry(
                code=_BROKEN,
                severity=Severity.WARNING,
                title="samples broken within the threat model",
                message=f"{broken} of {counted(head.samples, 'sample')} broken within {threat.norm} {threat.eps} "
                f"({threat.access}): {head.statement}. Unknown: {percent(head.unknown)}, never counted as robust.",
                remedy="Harden the model (`holdfast harden`), audit it again and compare with `holdfast diff`.",
                data={"broken": broken, "samples": head.samples},
            )
        )
    if (gate := document.gate) is not None and not gate.passed:
        weak = " --allow-weak" if gate.allow_weak else ""
        out.append(
            FindingEntry(
                code=_GATE,
                severity=Severity.ERROR,
                title="the gate did not pass",
                message=f"Held to {percent(gate.threshold)} {gate.side} robust accuracy{weak}: {'; '.join(gate.reasons)}.",
                remedy="Harden the model (`holdfast harden`) or mend what the other findings name, and audit it again.",
                data={"threshold": gate.threshold},
            )
        )
    return out


def _rule(entry: FindingEntry) -> dict[str, Any]:
    rule: dict[str, Any] = {
        "id": entry.code,
        "shortDescription": {"text": entry.title},
        "defaultConfiguration": {"level": str(entry.severity)},
    }
    if entry.remedy:
        rule["help"] = {"text": entry.remedy}
    return rule


def _result(document: Document, entry: FindingEntry, rule: int) -> dict[str, Any]:
    """One result; the fingerprint names finding and model, so that hosts follow it from run to run."""
    key = f"{entry.code}\n{document.model.source}\n{document.threat.norm}\n{parse_eps(document.threat.eps)}"
    artefact = {"uri": quote(document.model.source.replace("\\", "/"), safe="/")}
    return {
        "ruleId": entry.code,
        "ruleIndex": rule,
        "level": str(entry.severity),
        "message": {"text": sentences(entry.message, entry.remedy)},
        "locations": [{"physicalLocation": {"artifactLocation": artefact}}],
        "partialFingerprints": {"holdfast/v1": sha256(key.encode()).hexdigest()},
        "properties": dict(entry.data),
    }
