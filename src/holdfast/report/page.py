"""The report page: one HTML file that opens offline, prints, and loads nothing."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from holdfast.audits.document import Document
from holdfast.core.findings import Severity
from holdfast.core.verdict import Status
from holdfast.core.words import counted
from holdfast.report import curves, markup, tables, words
from holdfast.report.bar import PARTS, headline_bar, legend_rows
from holdfast.report.pictures import Picture, cards
from holdfast.report.rows import BrokenRows, columns, row_cards

__all__ = ["embed", "fill", "render"]


@cache
def _templates() -> Environment:
    templates = Environment(
        loader=PackageLoader("holdfast.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    templates.filters |= {
        "percent": markup.percent, "interval": markup.interval, "count": markup.count,
        "counted": _counted, "measure": markup.measure,
        "span": markup.span, "instant": markup.instant, "prose": markup.prose,
        "stage": words.stage_name,
    }  # fmt: skip
    return templates


@cache
def _own(name: str) -> str:
    """A style sheet or script of ours, as shipped."""
    return files("holdfast.report").joinpath("templates", name).read_text(encoding="utf-8").strip()


def _counted(value: int, noun: str) -> str:
    return counted(value, noun).replace(f"{value:,}", markup.count(value))


def _allow(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


def embed(values: Any) -> Markup:
    """Values as JSON that is safe inside a script element: no ``<``, ``>`` or ``&`` is left in it."""
    text = json.dumps(values, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def fill(template: str, **values: Any) -> str:
    """A page from a template, with our style and script inlined and everything else forbidden by its policy."""
    style, script = _own("style.css"), _own("page.js")
    own = f"style-src {_allow(style)}; script-src {_allow(script)}"
    policy = f"default-src 'none'; img-src data:; {own}; base-uri 'none'; form-action 'none'"
    page = _templates().get_template(template)
    return page.render(style=Markup(style), script=Markup(script), policy=policy, **values)


def _table(document: Document) -> dict[str, Any]:
    """The per-sample table as the script reads it, in the order of its columns."""
    rows = []
    for s in document.samples:
        w, c = s.witness, s.certificate
        rows.append(
            [
                s.id, s.label, s.prediction, str(s.status),
                w and w.distance, w and words.finder(w.attack), c and c.radius, c and c.method,
                s.forwards, s.backwards, s.queries,
                w and w.sha256, w and w.margin, c and str(c.guarantee), c and c.arithmetic, c and c.alpha,
            ]
        )  # fmt: skip
    reach = [s.witness.distance for s in document.samples if s.witness]
    reach += [s.certificate.radius for s in document.samples if s.certificate]
    eps = document.threat.eps_value
    return {
        "rows": rows,
        "names": document.data.class_names,
        "eps": eps,
        "reach": max([2 * eps, *reach]) or 1.0,
        "statuses": [str(status) for status in PARTS if document.counts()[status]],
    }


def render(document: Document, pictures: Sequence[Picture] = (), rows: BrokenRows | None = None) -> str:
    """The page of one audit; the same document, pictures and rows give the same bytes."""
    order = list(Severity)
    return fill(
        "report.html",
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
