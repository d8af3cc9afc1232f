"""What several methods certify, estimate or leave unbroken against the radius, as a page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from holdfast.report.draw import Plot, Point, after, before, legend, nice
from holdfast.report.markup import measure, percent, tag
from holdfast.report.template import fill
from holdfast.studies.common.columns import RadiiColumn
from holdfast.studies.radii import RadiiResult

__all__ = ["curve", "render"]

_ROWS = 400
_KINDS = {"estimate": "Estimated", "witness": "Not broken"}
_SCALES = {"estimate": "dashed", "probabilistic": "thin"}


def _points(column: RadiiColumn, top: float) -> list[Point]:
    """The share that stands at each radius, falling."""
    sizes = np.unique(np.clip(column.radius[np.isfinite(column.radius)], 0, top))
    ends = [0.0, *sizes.tolist(), top]
    return [(float(r), column.at_least(float(r))) for r in ends]


def curve(columns: Sequence[RadiiColumn], norm: str, eps: float) -> Markup:
    """One falling curve a method: what is proved, estimated (dashed), or not yet broken (the attack)."""
    finite = [float(r) for c in columns for r in c.radius if np.isfinite(r)]
    top = max([eps * 1.25, *finite]) if finite else eps * 1.25
    plot = Plot(x_range=(0.0, top))
    plot.axes([(v, f"{v:g}") for v in nice(0, top)], f"radius, {norm}", "share of samples")
    plot.upright(eps, f"eps = {eps:g}")
    keys: list[tuple[str, str]] = []
    for k, column in enumerate(columns):
        mark = f"series s{k % 8} {_SCALES.get(column.guarantee, '')}".strip()
        steps = after if column.guarantee == "witness" else before  # a witness counts from its distance on
        plot.line(steps(_points(column, top)), mark)
        keys.append(
            (f"line {mark}", f"{column.title} ({'upper bound' if column.guarantee == 'witness' else column.guarantee})")
        )
    words = (
        "Each curve falls where a method's radius ends. Sound curves are lower bounds of the true robust accuracy, the "
        "attack's is an upper bound; an estimate (dashed) is neither."
    )
    figure = (legend(keys), tag("div", plot.render("Share of samples against the radius"), class_="scroll"))
    return tag("figure", *figure, tag("figcaption", words))


def render(result: RadiiResult, about: str, command: str = "") -> str:
    """The page: curve, a row for each method, and the radii of the first samples; ``about`` says of what model and data."""
    columns, norm, eps = result.columns, str(result.norm), result.eps_value
    rows = [
        (i, y, [None if np.isnan(c.radius[i]) else measure(float(c.radius[i])) for c in columns])
        for i, y in enumerate(result.labels[:_ROWS])
    ]
    figures = [{**c.summary().to_dict(), "at_eps": percent(c.at_least(eps))} for c in columns]
    kinds = [
        (name, [f for f in figures if _KINDS.get(f["guarantee"], "Certified") == name])
        for name in ("Certified", "Estimated", "Not broken")
    ]
    heading = "Radii" if kinds[1][1] or not kinds[0][1] else "Certified radii"
    return fill(
        "studies/radii.html",
        columns=figures,
        kinds=kinds,
        heading=heading,
        rows=rows,
        left_out=max(0, len(result.labels) - _ROWS),
        norm=norm,
        eps=eps,
        curve=curve(columns, norm, eps),
        about=about,
        command=command,
        samples=len(result.labels),
        own=result.own_medians(),
    )
