"""The page of an audit."""

from __future__ import annotations

from collections.abc import Sequence

from holdfast.audits.document import Document
from holdfast.core.findings import Severity
from holdfast.core.verdict import Status
from holdfast.report.audits import curves, tables, words
from holdfast.report.audits.bar import PARTS, headline_bar, legend_rows
from holdfast.report.audits.pictures import Picture, cards
from holdfast.report.audits.rows import BrokenRows, columns, row_cards
from holdfast.report.template import embed, fill

__all__ = ["render"]


def _table(document: Document) -> dict[str, object]:
    """The per-sample table as the script reads it, in the order of its columns."""
    rows: list[list[object]] = []
    for s in document.samples:
        w, c = s.witness, s.certificate
        rows.append(
            [
                s.id,
                s.label,
                s.prediction,
                str(s.status),
                w and w.distance,
                w and words.finder(w.attack),
                c and c.radius,
                c and c.method,
                s.forwards,
                s.backwards,
                s.queries,
                w and w.sha256,
                w and w.margin,
                c and str(c.guarantee),
                c and c.arithmetic,
                c and c.alpha,
            ]
        )
    distances = [s.witness.distance for s in document.samples if s.witness]
    distances += [s.certificate.radius for s in document.samples if s.certificate]
    eps = document.threat.eps_value
    return {
        "rows": rows,
        "names": document.data.class_names,
        "eps": eps,
        "reach": max([2 * eps, *distances]) or 1.0,
        "statuses": [str(status) for status in PARTS if document.counts()[status]],
    }


def render(document: Document, pictures: Sequence[Picture] = (), rows: BrokenRows | None = None) -> str:
    """The page of one audit; the same document, pictures and rows give the same bytes."""
    order = list(Severity)
    return fill(
        "audits/report.html",
        d=document,
        bar=headline_bar(document),
        legend=legend_rows(document),
        banners=words.banners(document),
        meaning=words.meaning(document),
        judged=words.judged(document),
        gate=words.verdict_of(document.gate) if document.gate is not None else None,
        classes=tables.by_class(document),
        easiest=[
            (tables.class_name(document, s.label), s, words.finder(s.witness.attack))
            for s in tables.easiest(document)
            if s.witness
        ],
        crosschecked=words.crosschecked(document),
        stage=words.stage_name,
        attacker=words.attacker(document.threat),
        security=curves.security(document),
        queries=curves.queries(document) if document.curves.queries else None,
        pictures=cards(document, pictures),
        rows=[] if rows is None else row_cards(document, rows),
        columns=[] if rows is None else columns(rows),
        columns_left=0 if rows is None else len(rows.names) - len(columns(rows)),
        broken=document.counts()[Status.BROKEN],
        findings=sorted(document.findings, key=lambda f: order.index(f.severity)),
        longest=max([s.seconds for s in document.cost.by_stage.values()], default=0.0) or 1.0,
        table=embed(_table(document)),
    )
