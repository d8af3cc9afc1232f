"""What changed between two audits: of the same model before and after an update, or of two models on the same data."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from math import comb
from typing import Any, cast

from holdfast.audits.document import Document
from holdfast.audits.sections import Headline
from holdfast.core.threat import parse_eps
from holdfast.core.verdict import Status
from holdfast.report.markup import percent, printable

__all__ = ["AuditDiff", "DifferentSetting", "FigureChange", "StatusChange", "diff"]

_FIGURES = {
    "clean_accuracy": "clean accuracy",
    "empirical_robust_accuracy": "empirical robust accuracy",
    "certified_robust_accuracy": "certified robust accuracy",
    "unknown": "unknown",
}
_LOST = (Status.MISCLASSIFIED, Status.BROKEN)


@dataclass(frozen=True, kw_only=True)
class FigureChange:
    """One figure of the headline in both audits, with its interval where it has one."""

    name: str
    before: float | None
    after: float | None
    before_interval: tuple[float, float] | None
    after_interval: tuple[float, float] | None

    @property
    def delta(self) -> float | None:
        """After less before; None where one of them is missing."""
        return None if self.before is None or self.after is None else self.after - self.before


@dataclass(frozen=True, kw_only=True)
class DifferentSetting:
    """A part of threat, plan or data that differs; ``decides`` where the headlines then answer different questions."""

    name: str
    before: str
    after: str
    decides: bool


@dataclass(frozen=True)
class StatusChange:
    """A sample whose status changed."""

    id: int
    before: Status
    after: Status


@dataclass(frozen=True, kw_only=True)
class AuditDiff:
    """What changed from one audit to another.

    Attributes:
        figures: the headline's figures.
        settings: what differs in threat, data, suite, seed, subject and environment.
        moves: samples in both audits whose status changed, by id.
        only_before: samples that only the first audit has.
        only_after: samples that only the second has.
        gained: samples in both that were broken or misclassified before, and are not after.
        lost: the other way round.
        p_value: chance of so lopsided a count of gained and lost if neither audit were better (exact McNemar test).
    """

    figures: tuple[FigureChange, ...]
    settings: tuple[DifferentSetting, ...]
    moves: tuple[StatusChange, ...]
    only_before: tuple[int, ...]
    only_after: tuple[int, ...]
    gained: int
    lost: int
    p_value: float

    @property
    def comparable(self) -> bool:
        """Both audits ask the same question of the same samples."""
        return not (self.only_before or self.only_after or any(s.decides for s in self.settings))

    def flows(self) -> list[tuple[Status, Status, int]]:
        """How many samples went from which status to which, most first."""
        counted = Counter((m.before, m.after) for m in self.moves)
        return sorted(((a, b, n) for (a, b), n in counted.items()), key=lambda f: (-f[2], f[0], f[1]))

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return json.loads(json.dumps({"comparable": self.comparable, **asdict(self)}))

    def text(self) -> str:
        """The difference in plain lines."""
        out: list[str] = []
        if not self.comparable:
            out += ["These audits do not ask the same question: their figures must not be compared as they stand.", ""]
        for c in self.figures:
            delta = "" if c.delta is None else f"  {100 * c.delta:+.1f} points"
            out.append(f"{c.name:<28}{percent(c.before):>8} -> {percent(c.after):>8}{delta}")
        out += ["", f"gained {self.gained}, lost {self.lost} (exact McNemar p = {self.p_value:.2g})"]
        out += [f"  {before} -> {after}: {n}" for before, after, n in self.flows()]
        if self.only_before or self.only_after:
            out.append(f"samples only before: {len(self.only_before)}, only after: {len(self.only_after)}")
        if self.settings:
            out += ["", "what differs:"]
            out += [f"  {s.name}: {s.before} -> {s.after}{'  (decides)' if s.decides else ''}" for s in self.settings]
        return printable("\n".join(out).replace("\u00a0", " ")) + "\n"


def diff(before: Document, after: Document) -> AuditDiff:
    """What changed from ``before`` to ``after``; samples are matched by id."""
    a, b = ({s.id: s.status for s in d.samples} for d in (before, after))
    shared = sorted(a.keys() & b.keys())
    gained = sum(a[i] in _LOST and b[i] not in _LOST for i in shared)
    lost = sum(a[i] not in _LOST and b[i] in _LOST for i in shared)
    return AuditDiff(
        figures=tuple(_change(name, before.headline, after.headline) for name in _FIGURES),
        settings=_settings(before, after),
        moves=tuple(StatusChange(i, a[i], b[i]) for i in shared if a[i] != b[i]),
        only_before=tuple(sorted(a.keys() - b.keys())),
        only_after=tuple(sorted(b.keys() - a.keys())),
        gained=gained,
        lost=lost,
        p_value=_sign_test(gained, lost),
    )


def _change(name: str, before: Headline, after: Headline) -> FigureChange:
    bounds = [getattr(h.intervals, name.split("_")[0], None) for h in (before, after)]
    return FigureChange(
        name=_FIGURES[name],
        before=getattr(before, name),
        after=getattr(after, name),
        before_interval=bounds[0],
        after_interval=bounds[1],
    )


def _settings(before: Document, after: Document) -> tuple[DifferentSetting, ...]:
    pairs: list[tuple[str, object, object, bool]] = []
    for name in type(before.threat).model_fields:
        if name != "eps_value":
            told = [getattr(d.threat, name) for d in (before, after)]
            if name in ("eps", "grid") and _same_size(*told):  # 0.1 and 1/10
                continue
            pairs.append((f"threat.{name}", *told, True))
    pairs += [
        ("data", before.hashes.data, after.hashes.data, True),
        ("subject.kind", before.subject.kind, after.subject.kind, True),
        ("subject.detail", before.subject.detail, after.subject.detail, True),
        ("suite", before.suite.name, after.suite.name, True),
        ("complete", before.complete, after.complete, True),
        ("model", before.hashes.model, after.hashes.model, False),
        ("plan", before.hashes.plan, after.hashes.plan, False),
        ("seed", before.seed, after.seed, False),
    ]
    for name in type(before.environment).model_fields:
        if name != "when":
            pairs.append((name, getattr(before.environment, name), getattr(after.environment, name), False))
    return tuple(
        DifferentSetting(name=name, before=_words(x), after=_words(y), decides=decides)
        for name, x, y, decides in pairs
        if x != y
    )


def _same_size(before: str | None, after: str | None) -> bool:
    return None not in (before, after) and parse_eps(str(before)) == parse_eps(str(after))


def _words(value: object) -> str:
    if isinstance(value, list):
        value = ", ".join(str(one) for one in cast("list[object]", value))
    text = "none" if value in (None, "") else str(value)
    return f"{text[:12]}…" if len(text) == 64 else text


def _sign_test(gained: int, lost: int) -> float:
    """Two-sided exact p-value of the split under even odds.

    Example:
        >>> _sign_test(5, 0), _sign_test(2, 2)
        (0.0625, 1.0)
    """
    n, k = gained + lost, min(gained, lost)
    return min(1.0, 2 * sum(comb(n, i) for i in range(k + 1)) / 2**n)
