"""The figures of a document: its headline, what it cost, and how far each stage came."""

from __future__ import annotations

from collections.abc import Sequence

from holdfast.audits.records import CertificateRecord, TriageRecord
from holdfast.audits.sections import FindingEntry, Headline, Intervals, StageCost, StageSummary, TotalCost
from holdfast.audits.verdicts import UNJUDGED, RunResults
from holdfast.core.cost import Cost
from holdfast.core.findings import Severity
from holdfast.core.threat import Access
from holdfast.core.verdict import Status
from holdfast.numerics.stats import clopper_pearson

__all__ = ["cost", "headline", "held_against", "is_complete", "stage_rows"]


def headline(run: RunResults, findings: Sequence[FindingEntry]) -> Headline:
    """The figures that an audit is for."""
    n, total = run.n, len(run.verdicts)
    broken, wrong, certified = map(run.count, (Status.BROKEN, Status.MISCLASSIFIED, Status.CERTIFIED))
    unjudged = run.count(*UNJUDGED)
    # where both bounds meet, the upper one is exact, whatever hindered the attacks
    weak = _hindrances(findings) if run.count(Status.UNKNOWN, Status.MARGINAL) else []
    # 1 - share would round: equal counts, equal figures
    empirical, proved = (n - wrong - broken - unjudged) / n, certified / n
    clean = sum(int(part.correct.sum()) for part in run.parts) / n
    certifies = run.context.plan.lower_bound is not None
    return Headline(
        samples=total,
        clean_accuracy=clean,
        empirical_robust_accuracy=empirical,
        certified_robust_accuracy=proved if certifies else None,
        unknown=(total - wrong - broken - unjudged - certified) / n,
        upper_bound_weak=bool(weak),
        upper_bound_note=_note(run, weak),
        marginal=run.count(Status.MARGINAL),
        timeouts=run.count(Status.TIMEOUT),
        errors=run.count(Status.ERROR),
        intervals=Intervals(
            clean=_interval(clean, n),
            empirical=_interval(empirical, n),
            certified=_interval(proved, n) if certifies else None,
        ),
        statement=_statement(run, proved if certifies else None, empirical, unjudged),
    )


def _interval(share: float, n: int) -> tuple[float, float]:
    low, high = clopper_pearson(round(share * n), n, 0.05)
    return float(low), float(high)


def _statement(run: RunResults, proved: float | None, empirical: float, unjudged: int) -> str:
    left = "" if proved is None else f"certified {100 * proved:.1f} % <= "
    whose = " of the smoothed model" if run.context.subject.kind == "smoothed" else ""
    line = f"{left}true robust accuracy{whose} <= empirical {100 * empirical:.1f} %"
    if unjudged:
        return f"{line}, INCOMPLETE: {unjudged} not judged, counted as broken"
    return line


def _hindrances(findings: Sequence[FindingEntry]) -> list[FindingEntry]:
    """Findings that make the upper bound weak."""
    return [f for f in findings if f.code.startswith("masking.") and f.severity is Severity.WARNING]


def _note(run: RunResults, weak: Sequence[FindingEntry]) -> str | None:
    plan = run.context.plan
    if weak:
        return "; ".join(f.title for f in weak)
    if plan.access < Access.WHITE_BOX:
        return f"the model was only reached by queries: at most {plan.queries or 5000} for a sample and attack"
    return None


def is_complete(run: RunResults) -> bool:
    """Every unit is done, none failed, and every sample could be judged."""
    failed = any(record.fault is not None for record in run.records.values())
    return not run.count(*UNJUDGED) and not run.layout.missing(run.records) and not failed


def held_against(run: RunResults) -> str | None:
    """What the graph was compared with, by the units that asked it for bounds."""
    asked = [*run.of_kind(TriageRecord), *run.of_kind(CertificateRecord)]
    return "; ".join(sorted({r.held_against for r in asked if r.held_against is not None})) or None


def cost(run: RunResults) -> TotalCost:
    """What the attack stages and the clean pass asked, and what every stage did."""
    by_stage = _by_stage(run)
    names = {"clean", *(entry.stage for entry in run.context.plan.entries)}
    top = [row for name, row in by_stage.items() if name in names]
    return TotalCost(
        forwards=sum(row.forwards for row in top),
        backwards=sum(row.backwards for row in top),
        queries=sum(row.queries for row in top),
        seconds=sum(row.seconds for row in by_stage.values()),
        by_stage=by_stage,
    )


def _by_stage(run: RunResults) -> dict[str, StageCost]:
    spent, samples, referee = dict[str, Cost](), dict[str, int](), 0
    for (stage, _), record in run.records.items():
        spent[stage] = spent.get(stage, Cost()) + record.total
        samples[stage] = samples.get(stage, 0) + len(record.ids)
        referee += record.referee
    table = {
        stage: StageCost(
            forwards=total.forwards,
            backwards=total.backwards,
            queries=total.queries,
            seconds=run.seconds.get(stage, 0.0),
            samples=samples[stage],
        )
        for stage, total in spent.items()
    }
    return table | {"referee": StageCost(forwards=referee)}


def stage_rows(run: RunResults) -> list[StageSummary]:
    """How far each stage came."""
    rows = list[StageSummary]()
    for stage in run.layout.order:
        done = [record for (name, _), record in run.records.items() if name == stage.name]
        whole = len(done) == len(run.layout.units(stage.name))
        status = "failed" if any(record.fault is not None for record in done) else "done" if whole else "partial"
        rows.append(
            StageSummary(
                name=stage.name,
                status=status if done else "skipped",
                chunks=len(done),
                seconds=run.seconds.get(stage.name, 0.0),
            )
        )
    return rows
