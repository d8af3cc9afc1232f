"""Attacks side by side on one page: the anytime curves, and the table."""

from __future__ import annotations

from math import log10
from pathlib import Path

from markupsafe import Markup

from holdfast.core.files import write_whole
from holdfast.report.draw import Plot, after, legend
from holdfast.report.markup import measure, tag
from holdfast.report.page import fill
from holdfast.studies.comparison import Comparison

__all__ = ["render", "write_comparison"]

_DRAWN = 8  # as many as there are colours


def render(found: Comparison, about: str) -> str:
    """The page; ``about`` says what was attacked."""
    return fill("attacks.html", c=found, about=about, curves=_curves(found))


def write_comparison(path: Path, found: Comparison, about: str) -> None:
    """Writes the page, whole or not at all."""
    write_whole(path, render(found, about))


def _curves(found: Comparison) -> Markup:
    """Median distance against passes of the attacks with the least areas."""
    shown = sorted((e for e in found.entries if e.median is not None), key=lambda e: e.area)[:_DRAWN]
    points = {e.name: [(p, d) for p, d in e.curve if d is not None] for e in shown}
    least = min((e.median or 0.0 for e in shown), default=0.0)
    top = min(max((d for p in points.values() for _, d in p), default=1.0), 6 * least or 1.0)
    plot = Plot((1.0, float(found.passes)), (0.0, top or 1.0), warp=log10)
    ticks = [float(10**k) for k in range(int(log10(found.passes)) + 1)]
    plot.axes([(t, f"{t:g}") for t in ticks], "passes of a sample", f"median {found.norm} distance", y_text=measure)
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
