"""On-manifold error against test error: a scatter of models, and the table."""

from __future__ import annotations

from markupsafe import Markup

from holdfast.report.draw import Plot, legend, nice
from holdfast.report.markup import tag
from holdfast.report.template import fill
from holdfast.studies.manifold import ManifoldResult, ManifoldRow

__all__ = ["render", "scatter"]


def scatter(result: ManifoldResult) -> Markup:
    """One dot for each model and attack, with the interval of its error; the test error is the abscissa."""
    right = max((r.test_error for r in result.rows), default=0.0) * 1.1 or 0.1
    plot = Plot(x_range=(0.0, min(1.0, right)), y_range=(0.0, 1.0))
    ticks = [(t, f"{100 * t:g} %") for t in nice(0.0, min(1.0, right))]
    plot.axes(ticks, "test error", "error under attack")
    shown = (("s0", "on the manifold", _on_manifold), ("s1", "regular", _regular))
    for colour, kind, of in shown:
        for row in result.rows:
            error, (low, high) = of(row)
            plot.whisker(row.test_error, low, high, f"series {colour}")
            note = f"{row.name}, {kind}: test error {row.test_error:.1%}, under attack {error:.1%}"
            plot.dot(row.test_error, error, f"dot series {colour}", note)
    words = (
        "Each dot is a model. If adversarial examples on the manifold are errors of generalisation, theirs rise with the test "
        "error; regular ones, which leave the manifold, need not."
    )
    chart = plot.render("Error under attack against test error")
    keys = legend([(f"dot series {colour}", kind) for colour, kind, _ in shown])
    return tag("figure", keys, tag("div", chart, class_="scroll"), tag("figcaption", words))


def _on_manifold(row: ManifoldRow) -> tuple[float, tuple[float, float]]:
    return row.on_manifold_error, row.on_manifold_interval


def _regular(row: ManifoldRow) -> tuple[float, tuple[float, float]]:
    return row.regular_error, row.regular_interval


def render(result: ManifoldResult, about: str, command: str = "") -> str:
    """The page; ``about`` says what was attacked."""
    return fill("studies/manifold.html", s=result, about=about, chart=scatter(result), command=command)
