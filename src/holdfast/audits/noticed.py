"""The findings of a document: what the looks at the whole run noticed, and what the records tell of failures and refusals."""

from __future__ import annotations

from collections.abc import Sequence

from holdfast.audits.clashes import doubts
from holdfast.audits.journal import diagnosed, preflighted
from holdfast.audits.records import CertificateRecord, ClaimsRecord, CleanRecord, TriageRecord
from holdfast.audits.verdicts import RunResults
from holdfast.core.findings import Finding, Severity
from holdfast.core.verdict import Status, Verdict

__all__ = ["noticed"]


def noticed(run: RunResults, held: Sequence[Verdict]) -> list[Finding]:
    """All findings of a run, in order.

    Args:
        run: the run.
        held: its verdicts, as `holdfast.audits.clashes.settled` leaves them.
    """
    looks = [look for look in (diagnosed(run.records), preflighted(run.records)) if look is not None]
    return [
        *(finding for look in looks for finding in look.findings),
        *_refused(run),
        *_rejected(run),
        *_failed(run),
        *_raised(run),
        *_clean_unanswered(run),
        *_unanswered(run),
        *doubts(held),
    ]


def _refused(run: RunResults) -> list[Finding]:
    asked = [*run.of_kind(TriageRecord), *run.of_kind(CertificateRecord)]
    return [
        Finding(
            code="certificate.refused",
            severity=Severity.WARNING,
            title="no certificate for this model",
            message=text,
            remedy="certify with --certify smoothing (l2), or rewrite the operation",
        )
        for text in sorted({record.refused for record in asked if record.refused is not None})
    ]


def _rejected(run: RunResults) -> list[Finding]:
    rejected = {i for record in run.of_kind(ClaimsRecord) for i in record.claims.rejected}
    if not rejected:
        return []
    return [
        Finding(
            code="referee.rejected",
            severity=Severity.NOTE,
            title="claims that the referee rejected",
            message=f"{len(rejected)} claimed witnesses left their set and were not counted",
            data={"samples": len(rejected)},
        )
    ]


def _failed(run: RunResults) -> list[Finding]:
    failed = [record.fault.why for record in run.records.values() if record.fault is not None]
    return [
        Finding(
            code="run.failed",
            severity=Severity.ERROR,
            title="a unit of work failed",
            message=text,
            remedy="mend the cause and run holdfast resume",
            data={"units": failed.count(text)},
        )
        for text in sorted(set(failed))
    ]


def _raised(run: RunResults) -> list[Finding]:
    faults = [record.raised for record in run.records.values() if record.raised is not None]
    raised = sorted({(i, fault.why) for fault in faults for i in fault.ids})
    if not raised:
        return []
    ids = sorted({i for i, _ in raised})
    return [
        Finding(
            code="model.raised",
            severity=Severity.ERROR,
            title="the model raised on some samples",
            message=f"samples {_some(ids)}: {raised[0][1]}; what no other stage settles of them is not judged",
            remedy="mend the cause and run holdfast resume",
            data={"samples": len(ids)},
        )
    ]


def _clean_unanswered(run: RunResults) -> list[Finding]:
    """Samples that have no decision as they are; those that the model raised on are told apart."""
    raised = {i for record in run.of_kind(CleanRecord) for i in record.failed}
    ids = [i for part in run.parts for i in part.ids[part.error].tolist() if i not in raised]
    if not ids:
        return []
    return [
        Finding(
            code="model.no_answer_as_it_is",
            severity=Severity.ERROR,
            title="no answer that can be judged to clean inputs",
            message=f"samples {_some(ids)}: the model answers them, as they are, with NaN, +infinity or -infinity for every "
            "class; they count as not judged",
            remedy="check the weights and the inputs' scale, or leave such samples out, and audit again",
            data={"samples": len(ids)},
        )
    ]


def _unanswered(run: RunResults) -> list[Finding]:
    """Samples with an input in their set that the model gives no decision for."""
    lost = [(v, v.no_answer) for v in run.verdicts if v.no_answer is not None and v.no_answer.distance <= run.eps]
    if not lost:
        return []
    left = sum(v.status is Status.ERROR for v, _ in lost)
    met = ", ".join(sorted({one.met for _, one in lost}))
    fate = f"{left} of them, which no witness breaks, count as not judged" if left else "witnesses break all of them"
    return [
        Finding(
            code="model.no_answer",
            severity=Severity.ERROR if left else Severity.WARNING,
            title="no answer that can be judged inside the set",
            message=f"samples {_some([v.id for v, _ in lost])}: the model answers inputs within eps with {met}, the nearest "
            f"at {min(one.distance for _, one in lost):.4g}; {fate}",
            remedy="find the division, root, logarithm or overflow in forward that such inputs reach, or turn such inputs "
            "away before the model, and audit that; the inputs lie in witnesses/ under the hashes in report.json (no_answer)",
            data={"samples": len(lost), "not_judged": left},
        )
    ]


def _some(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids[:8])) + (", ..." if len(ids) > 8 else "")
