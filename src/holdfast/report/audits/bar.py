"""The headline as one bar: where every sample went, what that bounds, and how sure the figures are."""

from __future__ import annotations

from markupsafe import Markup

from holdfast.audits.document import Document
from holdfast.core.threat import Guarantee
from holdfast.core.verdict import Status
from holdfast.report.draw import svg
from holdfast.report.markup import interval, percent, tag

__all__ = ["PARTS", "headline_bar", "legend_rows"]

PARTS = {
    Status.CERTIFIED: "proved safe: nothing in the set changes the answer",
    Status.UNKNOWN: "neither broken nor proved; never counted as robust",
    Status.MARGINAL: "broken only within rounding; not counted as broken, nor as robust",
    Status.TIMEOUT: "the budget ran out; counted as broken",
    Status.ERROR: "could not be judged; counted as broken",
    Status.BROKEN: "an input in the set was found that changes the answer",
    Status.MISCLASSIFIED: "wrong without any attack",
}
_WIDTH, _HEIGHT, _TOP = 960.0, 48.0, 30.0


def legend_rows(document: Document) -> list[dict[str, object]]:
    """Status, number, share and meaning, in the order of the bar; the rare ones only when present."""
    counts, n = document.counts(), max(1, len(document.samples))
    rare = {Status.MARGINAL, Status.TIMEOUT, Status.ERROR}
    if document.headline.certified_robust_accuracy is None:
        rare.add(Status.CERTIFIED)
    return [
        {"status": str(s), "count": counts[s], "share": percent(counts[s] / n), "meaning": _meaning(document, s)}
        for s in PARTS
        if counts[s] or s not in rare
    ]


def _meaning(document: Document, status: Status) -> str:
    """What a status says in this run: a certificate of smoothing is no proof, and not about f."""
    chances = {
        s.certificate.alpha
        for s in document.samples
        if status is s.status is Status.CERTIFIED
        and s.certificate is not None
        and s.certificate.guarantee is Guarantee.PROBABILISTIC
    }
    if not chances:
        return PARTS[status]
    worst = max([a for a in chances if a is not None], default=None)
    chance = "but for a small stated chance" if worst is None else f"with probability {1 - worst:g} for each sample"
    whose = "the smoothed model's answer" if document.subject.kind == "smoothed" else "the answer"
    return f"{chance}, nothing in the set changes {whose}"


def headline_bar(document: Document) -> Markup:
    """The stacked bar with the bracket of the true figure above and the confidence intervals below."""
    head, counts, n = document.headline, document.counts(), max(1, len(document.samples))
    parts: list[Markup] = []
    done = 0
    for status in PARTS:
        number = counts[status]
        if not number:
            continue
        x, width = _WIDTH * done / n, _WIDTH * number / n
        done += number
        note = tag("title", f"{status}: {number} of {n} ({percent(number / n)}), {_meaning(document, status)}")
        kind = f"part {status.lower()}"
        box = tag("rect", note, x=x, y=_TOP, width=max(1.0, width - 2), height=_HEIGHT, rx=2, class_=kind)
        parts.append(box)
        name = f"{status} {number}"
        if width > 11 * len(name) + 22:
            parts.append(tag("text", name, x=x + 12, y=_TOP + 30, class_=f"in-part {status.lower()}"))
        elif width > 11 * len(str(number)) + 8:
            parts.append(tag("text", number, x=x + width / 2 - 1, y=_TOP + 30, class_=f"in-part mid {status.lower()}"))
    parts += _bracket(head.certified_robust_accuracy or 0.0, head.empirical_robust_accuracy)
    rows = [
        ("certified", "certified", head.certified_robust_accuracy, head.intervals.certified),
        ("empirical", "unknown", head.empirical_robust_accuracy, head.intervals.empirical),
        ("clean", "clean", head.clean_accuracy, head.intervals.clean),
    ]
    y = _TOP + _HEIGHT + 24
    for name, kind, share, bounds in rows:
        if share is not None and bounds is not None:
            parts += _interval_row(y, name, kind, share, bounds)
            y += 22
    return svg(_WIDTH, y, *parts, title=head.statement, class_="headline-bar")


def _bracket(low: float, high: float) -> list[Markup]:
    a, b = _WIDTH * low + 1, max(_WIDTH * high - 3, _WIDTH * low + 1)
    middle = (a + b) / 2
    side = "start" if middle < 130 else "end" if middle > _WIDTH - 130 else "mid"
    at = {"start": a, "end": b, "mid": middle}[side]
    path = f"M{a:.1f} {_TOP - 5:g}v-6H{b:.1f}v6"
    name = tag("text", "true robust accuracy is in here", x=at, y=_TOP - 17, class_=f"bracket-name {side}")
    return [tag("path", d=path, class_="bracket"), name]


def _interval_row(y: float, name: str, kind: str, share: float, bounds: tuple[float, float]) -> list[Markup]:
    a, b, at = (_WIDTH * v for v in (*bounds, share))
    a, b = max(a, 1.0), min(b, _WIDTH - 1)
    path = f"M{a:.1f} {y:g}H{b:.1f}M{a:.1f} {y - 4:g}v8M{b:.1f} {y - 4:g}v8"
    words = f"{name} {percent(share)}, 95 % interval {interval(bounds)}"
    right = b + 10 + 6.4 * len(words) < _WIDTH
    x, side = (b + 10, "start") if right else (a - 10, "end")
    dot = tag("circle", cx=min(max(at, 4.0), _WIDTH - 4), cy=y, r=4, class_=f"ci-dot {kind}")
    return [tag("path", d=path, class_=f"ci {kind}"), dot, tag("text", words, x=x, y=y + 4, class_=f"ci-name {side}")]
