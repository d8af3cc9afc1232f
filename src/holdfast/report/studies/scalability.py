"""What verifiers cost and reach as networks grow, as a page of small charts."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, log10

from markupsafe import Markup

from holdfast.report.draw import Plot, legend
from holdfast.report.markup import tag
from holdfast.report.template import fill
from holdfast.studies.scalability import ScalabilityResult, ScalabilityRow

__all__ = ["render"]

_AXES = {"depth": "hidden layers", "width": "neurons a layer", "side": "pixels a side"}
_LEAST = 1e-3


def render(result: ScalabilityResult, command: str = "") -> str:
    """The page: for each thing that was varied, CPU seconds on a logarithmic axis and the gap to the attack."""
    axes = [axis for axis in _AXES if any(r.axis == axis for r in result.rows)]
    charts = [
        (_AXES[a], _chart(result, a, _cost, "CPU seconds a sample"), _chart(result, a, _gap, "gap")) for a in axes
    ]
    return fill("studies/scalability.html", s=result, charts=charts, command=command)


def _cost(row: ScalabilityRow) -> float:
    return max(row.seconds, _LEAST)


def _gap(row: ScalabilityRow) -> float:
    return row.gap


def _chart(result: ScalabilityResult, axis: str, value: Callable[[ScalabilityRow], float], label: str) -> Markup:
    rows = [r for r in result.rows if r.axis == axis]
    sizes = sorted({r.size for r in rows})
    logarithmic = value is _cost
    top = max(value(r) for r in rows)
    least = round(log10(_LEAST))
    span = (least, max(ceil(log10(top)), least + 3)) if logarithmic else (0.0, 1.0)
    plot = Plot(
        x_range=(float(sizes[0]), float(sizes[-1])), y_range=span, height=280, margin=(14, 30, 46, 76), warp=log10
    )
    ticks = [(float(s), str(s)) for s in sizes]
    if logarithmic:
        plot.axes(ticks, _AXES[axis], label, lambda power: f"{10**power:.3g}")
    else:
        plot.axes(ticks, _AXES[axis], label)
    methods = list(dict.fromkeys(r.method for r in result.rows))
    for k, name in enumerate(methods):
        points = [(float(r.size), log10(value(r)) if logarithmic else value(r)) for r in rows if r.method == name]
        plot.line(points, f"series s{k % 8}")
        for (x, y), r in zip(points, (r for r in rows if r.method == name), strict=True):
            plot.dot(x, y, f"dot series s{k % 8}", f"{name}, {axis} {r.size}: {r.seconds:.3g} s, gap {r.gap:.0%}", 3.5)
    keys = [(f"line series s{k % 8}", name) for k, name in enumerate(methods)]
    return tag("figure", legend(keys), tag("div", plot.render(f"{label} against {_AXES[axis]}"), class_="scroll"))
