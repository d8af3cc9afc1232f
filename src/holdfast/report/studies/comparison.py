"""Attacks side by side on one page: the anytime curves, and the table."""

from __future__ import annotations

from math import log10

from markupsafe import Markup

from holdfast.report.draw import Plot, after, legend
from holdfast.report.markup import measure, tag
from holdfast.report.template import fill
from holdfast.studies.comparison import ComparisonResult

__all__ = ["render"]

_DRAWN = 8  # as many as there are colours


def render(result: ComparisonResult, about: str) -> str:
    """The page; ``about`` says what was attacked."""
    return fill("studies/comparison.html", c=result, about=about, curves=_curves(result))


def _curves(result: ComparisonResult) -> Markup:
    """Median distance against passes of the attacks with the least areas."""
    shown = sorted((e for e in result.entries if e.median is not None), key=lambda e: e.area)[:_DRAWN]
    points = {e.name: [(p, d) for p, d in e.curve if d is not None] for e in shown}
    least = min((e.median or 0.0 for e in shown), default=0.0)
    top = min(max((d for p in points.values() for _, d in p), default=1.0), 6 * least or 1.0)
    plot = Plot(x_range=(1.0, float(result.passes)), y_range=(0.0, top or 1.0), warp=log10)
    ticks = [float(10**k) for k in range(int(log10(result.passes)) + 1)]
    plot.axes([(t, f"{t:g}") for t in ticks], "passes of a sample", f"median {result.norm} distance", y_text=measure)
    keys: list[tuple[str, str]] = []
    for k, entry in enumerate(shown):
        plot.line(after([(p, min(d, top)) for p, d in points[entry.name]]), f"series s{k}")
        keys.append((f"line series s{k}", entry.title))
    words = (
        "How near the witnesses are after so many forwards and backwards; lower and further left is stronger. A line begins "
        "where half of the samples have a witness. Drawn are the attacks with the smallest area under the curve."
    )
    chart = plot.render("Median distance against passes")
    return tag("figure", legend(keys), tag("div", chart, class_="scroll"), tag("figcaption", words))
