"""From the journal to the document: both sides of each sample held against each other."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from torch import nn

from holdfast.audits.clashes import contradictions, doubts
from holdfast.audits.context import Context
from holdfast.audits.document import Document
from holdfast.audits.evidence import Standing
from holdfast.audits.stages.suite import standing_of
from holdfast.audits.suite import SuiteEntry
from holdfast.audits.units import Layout, Units
from holdfast.core.cards import parameters_of
from holdfast.core.files import read_json
from holdfast.core.registry import method
from holdfast.core.threat import Access, Guarantee
from holdfast.core.verdict import Status, Verdict, Witness
from holdfast.core.version import __version__
from holdfast.numerics.stats import clopper_pearson

__all__ = ["compose", "environment", "missing", "standings", "verdicts"]

_CURVE_POINTS = 40
_UNJUDGED = (Status.TIMEOUT, Status.ERROR)


def standings(context: Context, units: Units) -> list[Standing]:
    """The standing of each chunk whose clean stage is done, with what the diagnostics met."""
    layout = Layout.of(context)
    names, found = [stage.name for stage in layout.order], []
    for ids in layout.units("clean"):
        done = layout.known(units, names, ids) | layout.around(units, ids)
        if "clean" in done:
            found.append(standing_of(context, ids, done))
    return found


def verdicts(context: Context, parts: Iterable[Standing]) -> list[Verdict]:
    """Both sides of every sample."""
    eps = float(context.plan.eps)
    return [_verdict(s, k, eps) for s in parts for k in range(len(s.ids))]


def _verdict(s: Standing, k: int, eps: float) -> Verdict:
    i = int(s.ids[k])
    nearest, certificate = s.nearest.get(i), s.certificates.get(i)
    if s.error[k]:
        status = Status.ERROR
    elif not s.correct[k]:
        status = Status.MISCLASSIFIED
    elif i in s.broken:
        status = Status.BROKEN
    elif i in s.no_answer and s.no_answer[i].distance <= eps:
        status = Status.ERROR  # no decision somewhere in the set, whatever was proved of it in another arithmetic
    elif certificate is not None and certificate.guarantee is not Guarantee.ESTIMATE and certificate.radius >= eps:
        status = Status.CERTIFIED
    elif s.failed[k]:
        status = Status.ERROR
    else:
        edge = i in s.marginal and s.marginal[i].witness.distance <= eps
        status = Status.MARGINAL if edge else Status.UNKNOWN
    witness: Witness | None = None if nearest is None else nearest.witness
    return Verdict(
        i, int(s.labels[k]), int(s.prediction[k]), status, witness, certificate,
        int(s.forwards[k]), int(s.backwards[k]), int(s.queries[k]), s.no_answer.get(i),
    )  # fmt: skip


def compose(
    context: Context,
    units: Units,
    seconds: Mapping[str, float],
    *,
    facts: Mapping[str, str],
    journal: str | None,
) -> Document:
    """The document of a run as far as it got.

    Args:
        context: the run's plan, model and data.
        units: the finished ones.
        seconds: working seconds by stage.
        facts: the journal's: the ``command`` and the ``environment`` of the run, as JSON.
        journal: hash of the journal's file.
    """
    plan, eps = context.plan, float(context.plan.eps)
    units = Layout.of(context).ordered(units)
    parts = standings(context, units)
    found = verdicts(context, parts)
    count = {s: sum(v.status is s for v in found) for s in Status}
    n = max(1, len(found))
    broken, wrong, certified = count[Status.BROKEN], count[Status.MISCLASSIFIED], count[Status.CERTIFIED]
    unjudged = sum(count[s] for s in _UNJUDGED)
    findings = [f for (_, k), unit in sorted(units.items()) if k == -1 for f in unit.get("findings", ())]
    findings += [*_refusals(units), *_clean_unanswered(units, parts), *_unanswered(found, eps)]
    findings += [f.as_dict() for f in doubts(found)]
    # where both bounds meet, the upper one is exact, whatever hindered the attacks
    weak = _hindrances(findings) if count[Status.UNKNOWN] + count[Status.MARGINAL] else []
    clashes = contradictions(found)
    attack_names = [r.stage for r in plan.entries]
    by_stage = _by_stage(units, seconds)
    top = [by_stage[name] for name in ["clean", *attack_names] if name in by_stage]
    complete = not unjudged and not missing(context, units) and not any("fault" in unit for unit in units.values())
    # 1 - share would round: equal counts, equal figures
    empirical, proved = (n - wrong - broken - unjudged) / n, certified / n
    clean = sum(int(s.correct.sum()) for s in parts) / n
    return Document.model_validate(
        {
            "headline": {
                "samples": len(found),
                "clean_accuracy": clean,
                "empirical_robust_accuracy": empirical,
                "certified_robust_accuracy": None if plan.certify == "none" else proved,
                "unknown": (len(found) - wrong - broken - unjudged - certified) / n,
                "upper_bound_weak": bool(weak),
                "upper_bound_note": _note(context, weak),
                "marginal": count[Status.MARGINAL],
                "timeouts": count[Status.TIMEOUT],
                "errors": count[Status.ERROR],
                "intervals": {
                    "clean": _interval(clean, n),
                    "empirical": _interval(empirical, n),
                    "certified": None if plan.certify == "none" else _interval(proved, n),
                },
                "statement": _statement(context, proved, empirical, unjudged),
            },
            "complete": complete and not clashes,
            "contradictions": clashes,
            "threat": {
                "norm": plan.norm, "eps": plan.eps_text, "eps_value": float(plan.eps), "goal": plan.goal,
                "access": plan.access.label, "low": plan.low, "high": plan.high, "grid": plan.grid_text,
                "known": list(plan.threat.known),
            },
            "subject": asdict(context.subject),
            "model": {
                "source": context.source, "parameters": _parameters(context.base), "held_against": _held_against(units),
            },
            "data": {
                "source": context.data.name, "sha256": context.data.sha256, "samples": len(context.data.x),
                "shape": list(context.data.x.shape[1:]), "classes": parts[0].scores.shape[1] if parts else 0,
                "class_names": list(context.data.classes or ()),
            },
            "suite": _suite(context, units, parts, seconds),
            "cost": {
                **{k: sum(s[k] for s in top) for k in ("forwards", "backwards", "queries")},
                "seconds": sum(row["seconds"] for row in by_stage.values()),
                "by_stage": by_stage,
            },
            "samples": [_sample(v) for v in found],
            "findings": findings,
            "curves": {
                "eps": _eps_curve(context, units, found), "certified": _radius_curve(found),
                "queries": _query_curves(context, units, found),
            },
            "grid": _grid(context, units, found),
            "methods": _methods(context, parts),
            "not_tested": _not_tested(context),
            "stages": _stages(context, units, seconds),
            "seed": plan.seed,
            "command": facts["command"],
            "environment": read_json(facts["environment"]),
            "hashes": {
                "plan": plan.sha256, "model": context.subject.sha256, "data": context.data.sha256, "journal": journal,
            },
        }
    )  # fmt: skip


def environment(device: str) -> dict[str, Any]:
    """Where and when this is, for the document."""
    return {
        "python": sys.version.split()[0], "torch": torch.__version__, "holdfast": __version__, "device": device,
        "threads": torch.get_num_threads(), "platform": platform.platform(),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def missing(context: Context, units: Units) -> list[tuple[str, int]]:
    """The units of the plan that the journal does not have."""
    wanted = [("preflight", -1), *Layout.of(context).all_keys(), ("diagnostics", -1)]
    return [key for key in wanted if key not in units]


def _interval(share: float, n: int) -> tuple[float, float]:
    low, high = clopper_pearson(round(share * n), n, 0.05)
    return float(low), float(high)


def _statement(context: Context, proved: float, empirical: float, unjudged: int) -> str:
    left = f"certified {100 * proved:.1f} % <= " if context.plan.certify != "none" else ""
    whose = " of the smoothed model" if context.subject.kind == "smoothed" else ""
    line = f"{left}true robust accuracy{whose} <= empirical {100 * empirical:.1f} %"
    if unjudged:
        return f"{line}, INCOMPLETE: {unjudged} not judged, counted as broken"
    return line


def _hindrances(findings: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Findings that make the upper bound weak."""
    return [f for f in findings if f["code"].startswith("masking.") and f["severity"] == "warning"]


def _note(context: Context, weak: list[dict[str, Any]]) -> str | None:
    if weak:
        return "; ".join(f["title"] for f in weak)
    if context.plan.access < Access.WHITE_BOX:
        return f"the model was only reached by queries: at most {context.plan.queries or 5000} for a sample and attack"
    return None


def _sample(v: Verdict) -> dict[str, Any]:
    return v.as_dict()


def _held_against(units: Units) -> str | None:
    """What the graph was compared with, by the units that asked it for bounds."""
    return "; ".join(sorted({u["held_against"] for u in units.values() if "held_against" in u})) or None


def _parameters(model: object) -> int | None:
    return sum(p.numel() for p in model.parameters()) if isinstance(model, nn.Module) else None


def _by_stage(units: Units, seconds: Mapping[str, float]) -> dict[str, dict[str, float]]:
    table: dict[str, dict[str, float]] = {}
    referee = 0
    for (stage, _), unit in units.items():
        row = table.setdefault(
            stage, {"forwards": 0, "backwards": 0, "queries": 0, "seconds": seconds.get(stage, 0.0), "samples": 0}
        )
        for name in ("forwards", "backwards", "queries"):
            row[name] += sum(unit.get(name, ()))
        row["forwards"] += unit.get("asked", 0)
        if stage == "clean":
            row["queries"] += sum(unit["forwards"])
        row["samples"] += len(unit.get("ids", ()))
        referee += unit.get("referee", 0)
    table["referee"] = {"forwards": referee, "backwards": 0, "queries": 0, "seconds": 0.0, "samples": 0}
    return table


def _suite(context: Context, units: Units, parts: Sequence[Standing], seconds: Mapping[str, float]) -> dict[str, Any]:
    rows, last = [], [r for r in context.plan.entries if not r.takes_over][-1]
    eps = float(context.plan.eps)
    proved = {i for s in parts for i in s.proved} | {
        i for s in parts for i, c in s.certificates.items() if c.guarantee is not Guarantee.ESTIMATE and c.radius >= eps
    }
    tried = _tried(context, parts)
    for entry in context.plan.entries:
        mine = [u for (stage, _), u in units.items() if stage == entry.stage]
        if not tried[entry.name]:
            continue
        first = {i for s in parts for i, c in s.broken.items() if c.stage == entry.stage}
        rows.append(
            {
                "name": entry.name, "title": entry.card.title, "broken": len(first),
                "samples": len(tried[entry.name]), "note": _note_of(entry),
                **{k: sum(sum(u[k]) for u in mine) for k in ("forwards", "backwards", "queries")},
                "seconds": seconds.get(entry.stage, 0.0),
            }
        )  # fmt: skip
    return {
        "name": context.plan.suite, "stamp": context.plan.composition.stamp(context.plan.suite_request), "attacks": rows,
        "certified_attacked": len(proved & set().union(*tried.values())),
        "certified_full_ladder": len(proved & tried[last.name]),
    }  # fmt: skip


def _tried(context: Context, parts: Sequence[Standing]) -> dict[str, set[int]]:
    """The ids that each attack ran on."""
    return {r.name: set().union(*(s.tried.get(r.stage, ()) for s in parts)) for r in context.plan.entries}


def _note_of(entry: SuiteEntry) -> str:
    """What sets an attack apart from others of its name."""
    given = ", ".join(f"{name} {value}" for name, value in entry.parameters.items())
    return "; ".join(filter(None, [given, "where gradients lead nowhere" if entry.takes_over else ""]))


def _eps_curve(context: Context, units: Units, found: Sequence[Verdict]) -> list[dict[str, Any]]:
    eps, n = float(context.plan.eps), max(1, len(found))
    judged = [v for v in found if v.prediction == v.label and v.status not in _UNJUDGED]
    right = len(judged)
    ends = [[end.distance for end in (v.witness, v.no_answer) if end is not None] for v in judged]
    near = np.array([min(reached) for reached in ends if reached])
    most = max([2 * eps, *np.quantile(near, [0.9]).tolist()] if len(near) else [2 * eps])
    sizes = sorted({*np.linspace(0, most, _CURVE_POINTS).tolist(), eps})
    points = [{"eps": e, "accuracy": (right - int((near <= e).sum())) / n, "kind": "witness"} for e in sizes]
    for e in context.plan.eps_grid:
        mine = [u for (stage, _), u in units.items() if stage == f"eps-grid:{e}"]
        if mine:
            value = float(e)
            gone = {i for u in mine for i in (*u["broken_here"], *u.get("failed", ()))}
            gone |= {v.id for v in judged if v.no_answer is not None and v.no_answer.distance <= value}
            lost = len({v.id for v in judged} & gone)
            points.append({"eps": value, "accuracy": (right - lost) / n, "kind": "grid"})
    return points


def _radius_curve(found: Sequence[Verdict]) -> list[dict[str, float]]:
    radii = np.array(
        [v.certificate.radius for v in found if v.certificate and v.certificate.guarantee is not Guarantee.ESTIMATE]
    )
    if not len(radii):
        return []
    sizes = np.linspace(0, float(radii.max()), _CURVE_POINTS)
    return [{"radius": float(r), "accuracy": float((radii >= r).sum() / len(found))} for r in sizes]


def _query_curves(context: Context, units: Units, found: Sequence[Verdict]) -> list[dict[str, Any]]:
    n = max(1, len(found))
    unjudged = {v.id for v in found if v.status in _UNJUDGED}
    curves = []
    for entry in context.plan.entries:
        if entry.card.access is Access.WHITE_BOX:
            continue
        mine = [u for (stage, _), u in units.items() if stage == entry.stage]
        start = sum(i not in unjudged for u in mine for i in u["ids"]) / n
        if not start:
            continue
        at = sorted(q for u in mine for i, q in zip(u["ids"], u["found_at"], strict=True) if str(i) in u["witnesses"])
        end = max(q for u in mine for q in u["queries"])  # what withstood it withstood it that long
        points = [(0.0, start), *((float(q), start - (k + 1) / n) for k, q in enumerate(at))]
        curves.append({"attack": entry.name, "points": [*points, (float(max([end, *at])), points[-1][1])]})
    return curves


def _grid(context: Context, units: Units, found: Sequence[Verdict]) -> dict[str, Any] | None:
    mine = [u for (stage, _), u in units.items() if stage == "grid"]
    if context.grid is None or not mine:
        return None
    wrong = sum(v.status in (Status.MISCLASSIFIED, *_UNJUDGED) for v in found)
    lost = sum(len(u["broken_on_grid"]) for u in mine)
    n = max(1, len(found))
    return {
        "grid": context.plan.grid_text or str(context.grid),
        "empirical_robust_accuracy": (n - wrong - lost) / n,
        "pictures_saved": sum(u["saved"] for u in mine),
        "pictures_still_breaking": sum(u["still_breaking"] for u in mine),
    }


def _methods(context: Context, parts: Sequence[Standing]) -> list[dict[str, Any]]:
    tried = _tried(context, parts)
    ran = _distinct(r for r in context.plan.entries if tried[r.name])
    chosen: list[tuple[str, Mapping[str, Any]]] = [(r.method, r.parameters) for r in ran]
    certifier = {"none": None, "smoothing": "cohen"}.get(context.plan.certify, context.plan.certify.replace("-", "_"))
    if certifier is not None:
        chosen.append((certifier, {}))
    rows = []
    for name, given in chosen:
        kind = method(name)
        card = kind.card
        rows.append(
            {
                "name": name, "title": card.title, "paper": card.paper, "section": card.section, "summary": card.summary,
                "failure_modes": list(card.failure_modes),
                "parameters": [
                    {"name": p.name, "value": given.get(p.name, p.default), "meaning": p.meaning, "source": p.source}
                    for p in parameters_of(kind)
                ],
            }
        )  # fmt: skip
    return rows


def _distinct(entries: Iterable[SuiteEntry]) -> list[SuiteEntry]:
    seen: dict[str, SuiteEntry] = {}
    for entry in entries:
        seen.setdefault(entry.method, entry)
    return list(seen.values())


def _not_tested(context: Context) -> list[str]:
    plan = context.plan
    gaps = [f"other norms than {plan.norm} and perturbations that no lp ball holds (semantic, physical, universal)"]
    if plan.goal == "untargeted":
        gaps.append("targeted attacks on a chosen class")
    if plan.suite != "black-box":
        gaps.append("attackers who can only query: their cost is not measured here (--suite black-box)")
    elif not any(r.transfers for r in plan.entries):
        gaps.append("transfer from a surrogate (--surrogate)")
    if plan.certify == "none":
        gaps.append("certificates (--certify crown): no lower bound is claimed")
    gaps.append("attacks in training: poisoning and backdoors")
    return gaps


def _refusals(units: Units) -> list[dict[str, Any]]:
    found = []
    for text in sorted({u["refused"] for u in units.values() if "refused" in u}):
        found.append(
            {
                "code": "certificate.refused", "severity": "warning", "title": "no certificate for this model",
                "message": text, "remedy": "certify with --certify smoothing (l2), or rewrite the operation", "data": {},
            }
        )  # fmt: skip
    rejected = sorted({i for u in units.values() for i in u.get("rejected", ())})
    if rejected:
        found.append(
            {
                "code": "referee.rejected", "severity": "note", "title": "claims that the referee rejected",
                "message": f"{len(rejected)} claimed witnesses left their set and were not counted",
                "remedy": "", "data": {"samples": len(rejected)},
            }
        )  # fmt: skip
    failed = [u["fault"] for u in units.values() if "fault" in u]
    for text in sorted(set(failed)):
        found.append(
            {
                "code": "run.failed", "severity": "error", "title": "a unit of work failed",
                "message": text, "remedy": "mend the cause and run holdfast resume", "data": {"units": failed.count(text)},
            }
        )  # fmt: skip
    raised = sorted({(i, u["raised"]) for u in units.values() if "raised" in u for i in u["failed"]})
    if raised:
        ids = sorted({i for i, _ in raised})
        found.append(
            {
                "code": "model.raised", "severity": "error", "title": "the model raised on some samples",
                "message": f"samples {_some(ids)}: {raised[0][1]}; what no other stage settles of them is not judged",
                "remedy": "mend the cause and run holdfast resume", "data": {"samples": len(ids)},
            }
        )  # fmt: skip
    return found


def _clean_unanswered(units: Units, parts: Sequence[Standing]) -> list[dict[str, Any]]:
    """Samples that have no decision as they are; those that the model raised on are told by `_refusals`."""
    raised = {i for (stage, _), u in units.items() if stage == "clean" for i in u.get("failed", ())}
    ids = [i for s in parts for i in s.ids[s.error].tolist() if i not in raised]
    if not ids:
        return []
    return [
        {
            "code": "model.no_answer_as_it_is", "severity": "error", "title": "no answer that can be judged to clean inputs",
            "message": f"samples {_some(ids)}: the model answers them, as they are, with NaN, +infinity or -infinity for every "
            "class; they count as not judged",
            "remedy": "check the weights and the inputs' scale, or leave such samples out, and audit again",
            "data": {"samples": len(ids)},
        }
    ]  # fmt: skip


def _unanswered(found: Sequence[Verdict], eps: float) -> list[dict[str, Any]]:
    """Samples with an input in their set that the model gives no decision for."""
    lost = [(v, v.no_answer) for v in found if v.no_answer is not None and v.no_answer.distance <= eps]
    if not lost:
        return []
    left = sum(v.status is Status.ERROR for v, _ in lost)
    met = ", ".join(sorted({one.met for _, one in lost}))
    fate = f"{left} of them, which no witness breaks, count as not judged" if left else "witnesses break all of them"
    return [
        {
            "code": "model.no_answer", "severity": "error" if left else "warning",
            "title": "no answer that can be judged inside the set",
            "message": f"samples {_some([v.id for v, _ in lost])}: the model answers inputs within eps with {met}, the nearest "
            f"at {min(one.distance for _, one in lost):.4g}; {fate}",
            "remedy": "find the division, root, logarithm or overflow in forward that such inputs reach, or turn such inputs "
            "away before the model, and audit that; the inputs lie in witnesses/ under the hashes in report.json (no_answer)",
            "data": {"samples": len(lost), "not_judged": left},
        }
    ]  # fmt: skip


def _some(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids[:8])) + (", ..." if len(ids) > 8 else "")


def _stages(context: Context, units: Units, seconds: Mapping[str, float]) -> list[dict[str, Any]]:
    layout, rows = Layout.of(context), list[dict[str, Any]]()
    for stage in layout.order:
        done = [u for (name, _), u in units.items() if name == stage.name]
        status = "done" if len(done) == len(layout.units(stage.name)) else "partial" if done else "skipped"
        if any("fault" in u for u in done):
            status = "failed"
        rows.append(
            {"name": stage.name, "status": status, "chunks": len(done), "seconds": seconds.get(stage.name, 0.0)}
        )
    return rows
