"""Security curves: accuracy against eps with certified accuracy below it, against queries, and of several models."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from math import log10

from markupsafe import Markup

from holdfast.audits.document import Document
from holdfast.audits.sections import Threat
from holdfast.core.threat import Norm, parse_eps
from holdfast.report.draw import Plot, Point, after, before, legend, nice
from holdfast.report.markup import count, interval, measure, percent, tag

__all__ = ["Labelled", "overlay", "queries", "security", "tradeoff"]

Labelled = tuple[str, Document]


def _series(k: int) -> str:
    """Classes of the k-th line: eight colours, then again."""
    return f"series s{k % 8}"


def _figure(chart: Markup, keys: Sequence[tuple[str, str]], caption: str) -> Markup:
    return tag("figure", legend(keys), tag("div", chart, class_="scroll"), tag("figcaption", caption))


def _witness(document: Document, kind: str = "witness") -> list[Point]:
    """Upper bound: at a size named twice the smaller accuracy stands."""
    points = sorted(((p.eps, p.accuracy) for p in document.curves.eps if p.kind == kind), key=lambda p: (p[0], -p[1]))
    return list(dict(points).items())


def _certified(document: Document) -> list[Point]:
    """Lower bound: at a radius named twice the larger share stands, since that many are proved at least so far."""
    return list(dict(sorted((p.radius, p.accuracy) for p in document.curves.certified)).items())


def _eps_ticks(threat: Threat, top: float) -> list[tuple[float, str]]:
    """Ticks in 255ths when eps is written so in linf, else round decimals."""
    in_bytes = parse_eps(threat.eps) * 255
    if threat.norm is Norm.LINF and "/" in threat.eps and in_bytes.denominator == 1:
        step = next((s for s in (1, 2, 4, 8, 16, 32) if 255 * top / s <= 8), 64)
        return [(k / 255, f"{k}/255" if k else "0") for k in range(0, int(255 * top + 1e-6) + 1, step)]
    return [(v, f"{v:g}") for v in nice(0, top)]


def _top(documents: Sequence[Document]) -> float:
    points = [x for d in documents for x, _ in (*_witness(d), *_witness(d, "grid"), *_certified(d))]
    return max([*points, *(d.threat.eps_value * 1.25 for d in documents), 1e-9])


def _upto(points: list[Point], end: float) -> list[Point]:
    kept = list(takewhile(lambda p: p[0] <= end, points))
    return [*kept, (end, kept[-1][1])] if kept else []


def security(document: Document) -> Markup:
    """Accuracy against eps: the upper bound from witnesses, explicit runs as dots, the certified share below."""
    threat, upper, dots, lower = document.threat, _witness(document), _witness(document, "grid"), _certified(document)
    top = _top([document])
    plot = Plot(x_range=(0.0, top))
    keys: list[tuple[str, str]] = []
    above, below = after(upper), before(lower)
    if upper and lower:
        end = min(upper[-1][0], lower[-1][0])
        plot.between(_upto(above, end), _upto(below, end), "gap")
    plot.axes(_eps_ticks(threat, top), f"perturbation size, {threat.norm}", "accuracy")
    plot.upright(threat.eps_value, f"eps = {threat.eps}")
    if upper:
        weak = document.headline.upper_bound_weak
        plot.line(above, "weak" if weak else "empirical")
        said = "weak, likely far too high: " if weak else ""
        keys.append((f"line {'weak' if weak else 'empirical'}", f"empirical: {said}samples with no witness this close"))
    if dots:
        for x, y in dots:
            plot.dot(x, y, "dot grid-point", f"run at {measure(x)}: {percent(y)}")
        keys.append(("dot grid-point", "empirical: attacked at exactly this size"))
    if lower:
        plot.line(below, "certified")
        keys.append(("line certified", "certified: samples proved safe at least this far"))
    if upper and lower:
        keys.append(("area gap", "unknown"))
    words = _reading(document)
    return _figure(plot.render("Accuracy against perturbation size"), keys, words)


def _reading(document: Document) -> str:
    """How the security curve is to be read; a weak upper bound is no result, and a search for radii has an end."""
    radii = [s.certificate.radius for s in document.samples if s.certificate]
    most = max(radii, default=0.0)
    ends = radii.count(most)
    words = (
        "Between the two curves lies the true robust accuracy. The upper one falls where witnesses were found, "
        "the lower one where proofs end. Dots are attacks run anew at that size, so they may lie below a curve made "
        "of distances."
    )
    if document.headline.upper_bound_weak:
        words = f"The attacks were hindered: the grey curve says nothing about the model. {words}"
    if ends > 1:
        words += (
            f" {ends} samples are certified up to {measure(most)} and perhaps beyond: radii were searched no further."
        )
    return words


def queries(document: Document) -> Markup:
    """Accuracy left after so many queries per sample, one line per attack, on a logarithmic axis that has a zero."""
    curves = document.curves.queries
    top = max([10.0, *(q for c in curves for q, _ in c.points)])
    plot = Plot(x_range=(0.0, top), height=280, warp=lambda q: log10(1 + q))
    ticks = [0, *(10**k for k in range(1, int(log10(top) + 1e-9) + 1))]
    plot.axes([(float(t), count(t)) for t in ticks], "queries per sample", "accuracy")
    keys: list[tuple[str, str]] = []
    titles = {a.name: a.title for a in document.suite.attacks} | {m.name: m.title for m in document.methods}
    for k, curve in enumerate(curves):
        points, kind = sorted(curve.points, key=lambda p: (p[0], -p[1])), _series(k)
        plot.line(after(points), kind)
        if points:
            last = points[-1]
            plot.dot(*last, f"dot {kind}", f"{curve.attack}: {percent(last[1])} after {count(last[0])} queries", 3.5)
        keys.append((f"line {kind}", titles.get(curve.attack, curve.attack)))
    words = "An attacker who sees no gradients pays in queries: how much accuracy is left after so many of them."
    return _figure(plot.render("Accuracy against queries"), keys, words)


def overlay(labelled: Sequence[Labelled]) -> Markup:
    """Security curves of several audits on the same axes: solid the empirical bound, dashed the certified one."""
    documents = [d for _, d in labelled]
    threat, top = documents[0].threat, _top(documents)
    plot = Plot(x_range=(0.0, top))
    plot.axes(_eps_ticks(threat, top), f"perturbation size, {threat.norm}", "accuracy")
    keys: list[tuple[str, str]] = []
    for value, typed in {d.threat.eps_value: d.threat.eps for d in documents}.items():
        plot.upright(value, f"eps = {typed}")
    for k, (name, document) in enumerate(labelled):
        plot.line(after(_witness(document)), _series(k))
        plot.line(before(_certified(document)), f"{_series(k)} dashed")
        for x, y in _witness(document, "grid"):
            plot.dot(x, y, f"dot hollow {_series(k)}", f"{name}, run at {measure(x)}: {percent(y)}", 3.5)
        keys.append((f"line {_series(k)}", name))
    keys += [
        ("line plain", "empirical"),
        ("line plain dashed", "certified"),
        ("dot hollow plain", "attacked at this size"),
    ]
    return _figure(plot.render("Security curves of all models"), keys, "Higher and further right is better.")


def tradeoff(labelled: Sequence[Labelled]) -> Markup:
    """Clean accuracy against both robust accuracies, with their 95 % intervals."""
    heads = [(name, d.headline) for name, d in labelled]
    least = min([h.intervals.clean[0] for _, h in heads])
    start = max(0.0, int(10 * least - 0.5) / 10)
    plot = Plot(x_range=(start, 1.0), height=380, margin=(18, 34, 46, 66))
    plot.axes([(v, f"{100 * v:.0f} %") for v in nice(start, 1.0)], "clean accuracy", "robust accuracy")
    plot.line([(start, start), (1.0, 1.0)], "limit")
    for k, (name, head) in enumerate(heads):
        kind, x, high = _series(k), head.clean_accuracy, head.empirical_robust_accuracy
        low, bounds = head.certified_robust_accuracy, head.intervals
        if low is not None:
            plot.line([(x, low), (x, high)], f"{kind} link")
        if low is not None and bounds.certified is not None:
            plot.whisker(x, *bounds.certified, kind)
            plot.dot(x, low, f"dot {kind}", f"{name}: certified {percent(low)}, {interval(bounds.certified)}", 5.5)
        plot.whisker(x, *bounds.empirical, kind)
        plot.line([(bounds.clean[0], high), (bounds.clean[1], high)], f"{kind} thin")
        plot.dot(x, high, f"dot hollow {kind}", f"{name}: empirical {percent(high)}, {interval(bounds.empirical)}", 5.5)
        plot.label(plot.x(x) + 10, plot.y(high) - 8, _letter(k), f"letter {kind}")
    keys = [(f"line {_series(k)}", f"{_letter(k)}  {name}") for k, (name, _) in enumerate(heads)]
    keys += [("dot hollow plain", "empirical (upper bound)"), ("dot plain", "certified (lower bound)")]
    words = (
        "Each model stands at its clean accuracy; its true robust accuracy lies between the two marks. Thin lines are "
        "95 % intervals. No model can stand above the diagonal: robust accuracy is never more than clean accuracy."
    )
    return _figure(plot.render("Trade-off between clean and robust accuracy"), keys, words)


def _letter(k: int) -> str:
    return chr(ord("A") + k) if k < 26 else str(k + 1)
