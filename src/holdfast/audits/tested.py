"""What a document says was run: the attacks of the suite, the cards of all methods, and what was not tested."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from holdfast.audits.plan import Plan
from holdfast.audits.records import AttackRecord
from holdfast.audits.sections import AttackRun, Method, MethodParameter, SuiteSummary
from holdfast.audits.suite import SuiteEntry
from holdfast.audits.verdicts import RunResults
from holdfast.core.cards import parameters_of
from holdfast.core.cost import Cost
from holdfast.core.registry import method
from holdfast.core.threat import Goal, Guarantee

__all__ = ["methods", "not_tested", "suite_of"]


def suite_of(run: RunResults) -> SuiteSummary:
    """The attacks that were run on any sample, and how hard certified samples were attacked."""
    plan, tried = run.context.plan, run.tried()
    last = [entry for entry in plan.entries if not entry.takes_over][-1]
    proved = {i for part in run.parts for i in part.proved} | {
        i
        for part in run.parts
        for i, c in part.certificates.items()
        if c.guarantee is not Guarantee.ESTIMATE and c.radius >= run.eps
    }
    return SuiteSummary(
        name=plan.suite,
        stamp=plan.composition.stamp(plan.suite_request),
        attacks=[_row(run, entry, len(tried[entry.name])) for entry in plan.entries if tried[entry.name]],
        certified_attacked=len(proved & set().union(*tried.values())),
        certified_full_ladder=len(proved & tried[last.name]),
    )


def _row(run: RunResults, entry: SuiteEntry, samples: int) -> AttackRun:
    spent = sum((record.total for record in run.of_stage(entry.stage, AttackRecord)), Cost())
    first = {i for part in run.parts for i, claim in part.broken.items() if claim.stage == entry.stage}
    return AttackRun(
        name=entry.name,
        title=entry.card.title,
        broken=len(first),
        samples=samples,
        note=_note(entry),
        forwards=spent.forwards,
        backwards=spent.backwards,
        queries=spent.queries,
        seconds=run.seconds.get(entry.stage, 0.0),
    )


def _note(entry: SuiteEntry) -> str:
    """What sets an attack apart from others of its name."""
    given = ", ".join(f"{name} {value}" for name, value in entry.parameters.items())
    return "; ".join(filter(None, [given, "where gradients lead nowhere" if entry.takes_over else ""]))


def methods(run: RunResults) -> list[Method]:
    """The cards of the methods that were used, each once."""
    tried = run.tried()
    ran = _distinct(entry for entry in run.context.plan.entries if tried[entry.name])
    rows = [_card(entry.method, entry.parameters) for entry in ran]
    bound = run.context.plan.lower_bound
    return rows if bound is None else [*rows, _card(bound.method, {})]


def _card(name: str, given: Mapping[str, Any]) -> Method:
    kind = method(name)
    card = kind.card
    return Method(
        name=name,
        title=card.title,
        paper=card.paper,
        section=card.section,
        summary=card.summary,
        failure_modes=list(card.failure_modes),
        parameters=[
            MethodParameter(name=p.name, value=given.get(p.name, p.default), meaning=p.meaning, source=p.source)
            for p in parameters_of(kind)
        ],
    )


def _distinct(entries: Iterable[SuiteEntry]) -> list[SuiteEntry]:
    seen: dict[str, SuiteEntry] = {}
    for entry in entries:
        seen.setdefault(entry.method, entry)
    return list(seen.values())


def not_tested(plan: Plan) -> list[str]:
    """What the figures say nothing about."""
    gaps = [f"other norms than {plan.norm} and perturbations that no lp ball holds (semantic, physical, universal)"]
    if plan.goal is Goal.UNTARGETED:
        gaps.append("targeted attacks on a chosen class")
    if not plan.composition.queries_only:
        gaps.append("attackers who can only query: their cost is not measured here (--suite black-box)")
    elif not any(entry.transfers for entry in plan.entries):
        gaps.append("transfer from a surrogate (--surrogate)")
    if plan.lower_bound is None:
        gaps.append("certificates (--certify crown): no lower bound is claimed")
    gaps.append("attacks in training: poisoning and backdoors")
    return gaps
