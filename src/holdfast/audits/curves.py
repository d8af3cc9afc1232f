"""The curves of a document: accuracy against eps, against certified radius and against queries; and the grid of valid inputs."""

from __future__ import annotations

import numpy as np

from holdfast.audits.records import AttackRecord, GridRecord, SizeRecord
from holdfast.audits.sections import Curves, EpsPoint, Grid, QueryCurve, RadiusPoint
from holdfast.audits.verdicts import UNJUDGED, RunResults
from holdfast.core.threat import Access, Guarantee
from holdfast.core.verdict import Status, Verdict

__all__ = ["curves", "grid"]

_POINTS = 40


def curves(run: RunResults) -> Curves:
    """Security curves, points in rising order."""
    return Curves(eps=_against_eps(run), certified=_against_radius(run), queries=_against_queries(run))


def _against_eps(run: RunResults) -> list[EpsPoint]:
    judged = [v for v in run.verdicts if v.prediction == v.label and v.status not in UNJUDGED]
    right, eps = len(judged), run.eps
    ends = [[end.distance for end in (v.witness, v.no_answer) if end is not None] for v in judged]
    near = np.array([min(reached) for reached in ends if reached])
    most = max([2 * eps, *np.quantile(near, [0.9]).tolist()] if len(near) else [2 * eps])
    sizes = sorted({*np.linspace(0, most, _POINTS).tolist(), eps})
    points = [EpsPoint(eps=e, accuracy=(right - int((near <= e).sum())) / run.n, kind="witness") for e in sizes]
    return [*points, *_at_sizes(run, judged)]


def _at_sizes(run: RunResults, judged: list[Verdict]) -> list[EpsPoint]:
    points, ids = list[EpsPoint](), {v.id for v in judged}
    for size in run.context.plan.eps_grid:
        records = run.of_stage(f"eps-grid:{size}", SizeRecord)
        if records:
            gone = {i for record in records for i in (*record.broken_here, *record.failed)}
            gone |= {v.id for v in judged if v.no_answer is not None and v.no_answer.distance <= float(size)}
            accuracy = (len(judged) - len(ids & gone)) / run.n
            points.append(EpsPoint(eps=float(size), accuracy=accuracy, kind="grid"))
    return points


def _against_radius(run: RunResults) -> list[RadiusPoint]:
    certificates = [v.certificate for v in run.verdicts if v.certificate is not None]
    radii = np.array([c.radius for c in certificates if c.guarantee is not Guarantee.ESTIMATE])
    if not len(radii):
        return []
    sizes = np.linspace(0, float(radii.max()), _POINTS)
    total = len(run.verdicts)
    return [RadiusPoint(radius=float(r), accuracy=float((radii >= r).sum() / total)) for r in sizes]


def _against_queries(run: RunResults) -> list[QueryCurve]:
    n, unjudged = run.n, {v.id for v in run.verdicts if v.status in UNJUDGED}
    rows = list[QueryCurve]()
    for entry in run.context.plan.entries:
        if entry.card.access is Access.WHITE_BOX:
            continue
        records = run.of_stage(entry.stage, AttackRecord)
        start = sum(i not in unjudged for record in records for i in record.ids) / n
        if not start:
            continue
        at = sorted(
            queries
            for record in records
            for i, queries in zip(record.ids, record.claims.found_at, strict=True)
            if i in record.claims.witnesses
        )
        # what withstood it withstood it that long
        end = max(queries for record in records for queries in record.claims.spent.queries)
        points = [(0.0, start), *((float(q), start - (k + 1) / n) for k, q in enumerate(at))]
        rows.append(QueryCurve(attack=entry.name, points=[*points, (float(max([end, *at])), points[-1][1])]))
    return rows


def grid(run: RunResults) -> Grid | None:
    """The same question where inputs must lie on a grid; None where there is none."""
    records, levels = run.of_stage("grid", GridRecord), run.context.grid
    if levels is None or not records:
        return None
    wrong = run.count(Status.MISCLASSIFIED, *UNJUDGED)
    lost = sum(len(record.broken_on_grid) for record in records)
    return Grid(
        grid=run.context.plan.grid_text or str(levels),
        empirical_robust_accuracy=(run.n - wrong - lost) / run.n,
        pictures_saved=sum(record.saved for record in records),
        pictures_still_breaking=sum(record.still_breaking for record in records),
    )
