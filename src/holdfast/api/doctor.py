"""What is wrong with a model and its data, before an audit: accuracy, findings, bounds and cost."""

from __future__ import annotations

from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from holdfast.api.voice import Voice
from holdfast.core.errors import BudgetError, HoldfastError
from holdfast.core.words import counted

if TYPE_CHECKING:
    from holdfast.audits.plan import Plan
    from holdfast.core.findings import Finding
    from holdfast.session.session import Session

__all__ = ["Examination", "FirstAnswers", "examine"]

_ROWS, _BATCH = 200, 64
_AT_ONCE = 20
_UNASKED = ("model.call", "model.output", "model.one_logit", "model.nan", "labels.range", "labels.negative", "data.nan")


@dataclass(frozen=True, kw_only=True)
class FirstAnswers:
    """What the first rows are answered with, of a model that can only be asked.

    Attributes:
        rows: how many were asked.
        classes: K.
        answers: ``scores`` or ``labels``.
        accuracy: share that is right.
        milliseconds_a_row: how long a row takes.
        moved: the largest change of a probability when they are asked again.
        rows_sent: of an API: rows that went out so far.
        requests: of an API: HTTP requests so far.
    """

    rows: int
    classes: int
    answers: str
    accuracy: float
    milliseconds_a_row: float
    moved: float
    rows_sent: int | None = None
    requests: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values; of a model that is no API without what was sent."""
        values: dict[str, Any] = {
            "rows": self.rows, "classes": self.classes, "answers": self.answers, "accuracy": self.accuracy,
            "milliseconds_a_row": self.milliseconds_a_row, "moved": self.moved,
        }  # fmt: skip
        return values if self.rows_sent is None else values | {"rows_sent": self.rows_sent, "requests": self.requests}

    @override
    def __str__(self) -> str:
        steady = "the same when asked again" if self.moved == 0 else f"moved by up to {self.moved:.3g} when asked again"
        sent = (
            ""
            if self.rows_sent is None
            else f"; {counted(self.rows_sent, 'row')} in {counted(self.requests or 0, 'request')}"
        )
        took = f"{self.milliseconds_a_row:.2g} ms a row"
        return f"answers: {self.answers} of {self.classes} classes, {steady}, {took}{sent}"


@dataclass(frozen=True, kw_only=True)
class Examination:
    """What was found about a model and its data.

    Attributes:
        findings: what is wrong or worth knowing.
        accuracy: clean accuracy of the first samples; None where it could not be had.
        first: what a model that can only be asked said.
        bounds: whether the linear bounds know the model, in words; empty if nobody looked.
        cost: what an audit would take, in words; empty if nobody looked.
        budget: rows of a prediction API that an audit needs, where less is allowed.
        suite: which attacks the cost is of.
    """

    findings: tuple[Finding, ...]
    accuracy: float | None
    first: FirstAnswers | None
    bounds: str
    cost: str
    budget: int | None
    suite: str

    @property
    def errors(self) -> int:
        """What has to be mended before an audit can start."""
        from holdfast.core.findings import Severity

        return sum(f.severity is Severity.ERROR for f in self.findings)

    @property
    def rows(self) -> int:
        """The most samples that the accuracy is of."""
        return _ROWS if self.first is None else self.first.rows


def examine(session: Session, voice: Voice) -> Examination:
    """Looks at a model and its data together; nothing is changed.

    Args:
        session: both, opened.
        voice: is told how many rows an API is asked.

    Raises:
        BudgetError: an API may not be asked as often as this takes.
    """
    from holdfast.core.findings import Severity
    from holdfast.models.checks import preflight

    plan, few = _plan(session), _rows_at_once(session, voice)
    found = preflight(session.model, session.data, session.threat, device=session.device, samples=few or _ROWS)
    wrong = [f for f in found if f.severity is Severity.ERROR]
    asked_only, n = not session.differentiable, len(session.data)
    first = _first_answers(session, few or min(_ROWS, n)) if asked_only and not wrong else None
    accuracy = None if asked_only or any(f.code in _UNASKED for f in wrong) else _accuracy(session)
    bounds = cost = ""
    if not asked_only and not wrong:
        bounds, cost = _bounds(session), _outlook(session, plan)
    budget = None
    if session.spec.remote and not wrong:
        cost, short, most = _need(session, plan)
        found, budget = [*found, *short], most if short else None
    return Examination(
        findings=tuple(found),
        accuracy=accuracy if first is None else first.accuracy,
        first=first,
        bounds=bounds,
        cost=cost,
        budget=budget,
        suite=plan.suite,
    )


def _plan(session: Session) -> Plan:
    """The audit that would come."""
    from holdfast.audits.plan import Plan

    threat = session.threat
    return Plan.of(
        norm=threat.norm,
        eps=threat.eps,
        goal=threat.goal,
        suite="black-box" if session.spec.remote else "fast",
        certify="none",
        answers=session.spec.answers,
    )


def _rows_at_once(session: Session, voice: Voice) -> int | None:
    """How many rows may be asked of an API at once; None for a model that runs here."""
    from holdfast.models.http import HttpModel

    if not isinstance(session.base, HttpModel):
        return None
    most = session.base.max_queries // 3
    if most < 1:
        raise BudgetError("doctor asks an API three times at least; give --max-queries 3 or more")
    rows = min(_AT_ONCE, most, len(session.data))
    voice.note(f"asks {session.source} {3 * rows} rows")
    return rows


def _first_answers(session: Session, rows: int) -> FirstAnswers:
    """Form, accuracy, steadiness and how long it takes.

    Raises:
        ModelError: nothing that can be read.
    """
    import torch

    from holdfast.models.http import HttpModel

    ids = session.ids[:rows]
    x = session.inputs(ids)
    with torch.no_grad():
        start = perf_counter()
        out = session.model(x.clone())
        seconds = perf_counter() - start
        again = session.model(x.clone())
    hard = bool((out.isneginf().sum(1) == out.shape[1] - 1).all())
    moved = float((again.double().exp() - out.double().exp()).abs().nan_to_num(0).max()) if rows else 0.0
    answers = FirstAnswers(
        rows=rows,
        classes=out.shape[1],
        answers="labels" if hard else "scores",
        accuracy=float((out.argmax(1) == session.labels(ids)).double().mean()),
        milliseconds_a_row=1e3 * seconds / rows,
        moved=moved,
    )
    if isinstance(session.base, HttpModel):
        usage = session.base.usage
        return replace(answers, rows_sent=usage.sent, requests=usage.requests)
    return answers


def _accuracy(session: Session) -> float:
    """Clean accuracy on the first samples."""
    import torch

    from holdfast.numerics.evaluation import evaluating

    ids = session.ids[:_ROWS]
    with torch.no_grad(), evaluating(session.model):
        parts = [session.inputs(ids[k : k + _BATCH]) for k in range(0, len(ids), _BATCH)]
        out = torch.cat([session.model(part) for part in parts])
    return float((out.argmax(1) == session.labels(ids)).double().mean())


def _bounds(session: Session) -> str:
    """Whether the linear bounds know every operation of the model."""
    from holdfast.certifiers.bounds.ibp import IBP

    part = session.problem(session.ids[:1])
    try:
        IBP().margins(session.graph, part.x, part.y, part.set)
    except HoldfastError as fault:
        return f"none by bounds: {fault}; smoothing (--certify smoothing --norm l2) needs no graph"
    return "ibp and crown know every operation of the model"


def _outlook(session: Session, plan: Plan) -> str:
    from holdfast.audits.outlook import outlook

    return str(outlook(session, plan))


def _need(session: Session, plan: Plan) -> tuple[str, list[Finding], int]:
    """What an audit of an API may send, in words; what is wrong with the budget; and the budget that it needs."""
    from holdfast.audits.needs import need

    needed = need(plan, len(session.data))
    return str(needed), needed.finding(session.spec.max_queries), needed.most
