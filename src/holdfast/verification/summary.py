"""What a list of instances amounts to: a row for each benchmark, and where a verdict is against the list's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from holdfast.verification.decide import rerun
from holdfast.verification.instances import Instance
from holdfast.verification.run import InstanceResult

__all__ = ["BenchmarkSummary", "Disagreement", "VerifiedList", "disagreements", "summarised", "summary"]


@dataclass(frozen=True, kw_only=True)
class BenchmarkSummary:
    """A benchmark's row of the table.

    Attributes:
        benchmark: its name.
        total: instances.
        solved: those that were decided.
        sat: by verdict; so are the next four.
        unsat: likewise.
        unknown: likewise.
        timeout: likewise.
        error: likewise.
        known: instances of which the list knows the verdict.
        wrong: verdicts against a known one that is not a single tool's claim.
        median_seconds: of those that were decided; None without any.
    """

    benchmark: str
    total: int
    solved: int
    sat: int
    unsat: int
    unknown: int
    timeout: int
    error: int
    known: int
    wrong: int
    median_seconds: float | None


@dataclass(frozen=True, kw_only=True)
class Disagreement:
    """A verdict against the list's. Neither side is a witness inside a certificate of ours: that would be a clash.

    Attributes:
        instance: which.
        found: our verdict.
        evidence: what the witness did when it was run again, in words, or what there is for ``unsat``.
    """

    instance: Instance
    found: str
    evidence: str

    @property
    def is_weak(self) -> bool:
        """The list's verdict is a single tool's claim."""
        return self.instance.is_weak


@dataclass(frozen=True, kw_only=True)
class VerifiedList:
    """A list that was run.

    Attributes:
        summary: by benchmark, in the list's order.
        disagreements: with the list.
        results: of every instance.
    """

    summary: tuple[BenchmarkSummary, ...]
    disagreements: tuple[Disagreement, ...]
    results: tuple[InstanceResult, ...]

    @property
    def ok(self) -> bool:
        """Nothing failed, and no verdict is against one that more than a single tool stands for."""
        return not any(row.error for row in self.summary) and all(d.is_weak for d in self.disagreements)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in ``verify.json``: ``summary``, ``contradictions``, ``instances``."""
        return {
            "summary": [asdict(row) for row in self.summary],
            "contradictions": [
                {
                    "benchmark": d.instance.benchmark,
                    "name": d.instance.name,
                    "found": d.found,
                    "known": d.instance.verdict,
                    "confidence": d.instance.confidence,
                    "evidence": d.evidence,
                    "weak": d.is_weak,
                }
                for d in self.disagreements
            ],
            "instances": [
                {
                    "number": r.instance.number,
                    "benchmark": r.instance.benchmark,
                    "net": str(r.instance.net),
                    "property": str(r.instance.prop),
                    "known": r.instance.verdict,
                    "confidence": r.instance.confidence,
                    **r.record.model_dump(exclude={"counterexample"}),
                }
                for r in self.results
            ],
        }


def summarised(results: Sequence[InstanceResult]) -> VerifiedList:
    """What a list amounts to; each witness against the list's verdict is run again."""
    return VerifiedList(summary=summary(results), disagreements=tuple(disagreements(results)), results=tuple(results))


def summary(results: Sequence[InstanceResult]) -> tuple[BenchmarkSummary, ...]:
    """The table by benchmark, in the list's order."""
    names = dict.fromkeys(r.instance.benchmark for r in results)
    return tuple(_row(name, [r for r in results if r.instance.benchmark == name]) for name in names)


def _row(name: str, results: Sequence[InstanceResult]) -> BenchmarkSummary:
    count = Counter(r.record.verdict for r in results)
    seconds = [r.record.seconds for r in results if r.record.is_decided]
    return BenchmarkSummary(
        benchmark=name,
        total=len(results),
        solved=len(seconds),
        sat=count["sat"],
        unsat=count["unsat"],
        unknown=count["unknown"],
        timeout=count["timeout"],
        error=count["error"],
        known=sum(r.instance.is_known for r in results),
        wrong=sum(r.contradicts and not r.instance.is_weak for r in results),
        median_seconds=median(seconds) if seconds else None,
    )


def disagreements(results: Sequence[InstanceResult]) -> list[Disagreement]:
    """Verdicts against the list's; each witness is run again."""
    return [
        Disagreement(instance=r.instance, found=r.record.verdict, evidence=_evidence(r))
        for r in results
        if r.contradicts
    ]


def _evidence(result: InstanceResult) -> str:
    instance, record = result.instance, result.record
    if record.counterexample is None:
        return f"proved in {record.arithmetic or 'no arithmetic'}, by {record.method or 'nobody'}"
    try:
        failed = rerun(instance.net, instance.prop, record.counterexample)
    except Exception as error:  # a run again that fails is what there is to say
        return f"the witness could not be run again: {error}"
    return f"the witness does not hold in {', '.join(failed)}" if failed else "the witness holds, run again"
