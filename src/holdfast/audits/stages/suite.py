"""The stages of an audit. A stage does one unit of work for one chunk; a unit is a pure function of the plan, the chunk and
the payloads of the chunk's earlier stages.

A payload is plain JSON: ``witnesses`` and ``marginal`` by sample id, what was spent for each of ``ids``, and what else the
stage found. Witness tensors lie beside the journal under their hashes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast.attacks.engine import run
from holdfast.audits.context import Context
from holdfast.audits.evidence import Standing, encoded
from holdfast.audits.journal import Payload
from holdfast.audits.plan import Plan
from holdfast.audits.stages.shrink import shrink
from holdfast.audits.suite import SPARED_SHARE, SuiteEntry
from holdfast.core.criterion import Misclassified, usable
from holdfast.core.errors import ModelError
from holdfast.core.problem import Problem
from holdfast.core.threat import size_text
from holdfast.judge.asking import Model, ModelFault, ask
from holdfast.judge.judged import judged
from holdfast.judge.ledger import Budget
from holdfast.judge.outcome import Outcome
from holdfast.judge.referee import Judgement
from holdfast.numerics.evaluation import evaluating

__all__ = [
    "ALONE",
    "Stage",
    "as_number",
    "attacked",
    "met_at",
    "no_answers",
    "on_levels",
    "stages",
    "standing_of",
    "still_breaking",
]

_PROOF, _DEAR, _HEAVY = 8, 16, 32  # samples of a unit
ALONE = "scores, asked again alone"
"""What is met at an input that the model gave no usable answer to among others, and does give one to by itself."""
_MANY = 400  # forwards and backwards of a sample
Unit = Callable[[Context, np.ndarray, Mapping[str, Payload]], Payload]
RunsOn = Callable[[Context, np.ndarray, Mapping[str, Payload]], np.ndarray]


@dataclass(frozen=True)
class Stage:
    """A named stage and its unit of work.

    Attributes:
        name: key in the journal.
        unit: what is done for one chunk.
        title: for the progress line.
        most: samples of a unit at most; None is as many as the plan's chunk.
        most_if_heavy: likewise, for models of which a pass is dear.
        needs: the stages that a unit reads; None is all earlier ones that do not stand apart.
        apart: only stages that name it read it.
        bounds: it needs the model's graph.
        runs_on: the ids of a unit that it is run on, from what is known before it; None is all. A fault is theirs alone.
    """

    name: str
    unit: Unit
    title: str
    most: int | None = None
    most_if_heavy: int | None = None
    needs: tuple[str, ...] | None = None
    apart: bool = False
    bounds: bool = False
    runs_on: RunsOn | None = None


def stages(plan: Plan) -> list[Stage]:
    """The stages of a plan, in order; the whole-run ones (pre-flight, diagnostics, reconciliation) are the driver's."""
    from holdfast.audits.stages.certificates import certificates, triage
    from holdfast.audits.stages.gradients import hindered
    from holdfast.audits.stages.probe import probe

    # what goes over a line to an API is paid for, so that little of it may be lost
    search = {"most": _DEAR if plan.remote else None, "most_if_heavy": _HEAVY}
    bounds = plan.certify in ("crown", "ibp", "alpha-crown")
    todo = [Stage("clean", clean, "clean predictions", **search)]
    attacks = [_searching(plan, entry, search) for entry in plan.entries]
    if plan.composition.uses_gradients:  # asked once there is something to compare with
        attacks.insert(1, Stage("gradients", hindered, "use of the gradients", **search))
    if plan.composition.proves_early and bounds:
        # what the first attack breaks needs no proof, what is proved may be spared the dear ones
        attacks.insert(1, Stage("triage", triage, "certificates at eps", most=_DEAR, bounds=True))
    todo += attacks
    todo.append(Stage("probe", probe, "random points and single steps", **search))
    todo += [Stage(f"eps-grid:{e}", _at_eps(e), f"attack at eps {size_text(e)}", **search) for e in plan.eps_grid]
    todo.append(Stage("shrink", shrinking, "nearest witnesses", **search))
    if plan.grid is not None:
        todo.append(Stage("grid", on_grid, f"witnesses on the grid {plan.grid_text}"))
    elif plan.table is not None and plan.table.grid is not None:
        todo.append(Stage("grid", on_grid, "witnesses with whole numbers in integer columns"))
    if plan.certify != "none":
        todo.append(_certifying(plan, certificates, bounds))
    return todo


def _searching(plan: Plan, entry: SuiteEntry, search: dict[str, int | None]) -> Stage:
    """An attack that asks hundreds of times about nearly every sample is dear on any model."""
    everyone = entry.takes_over or plan.composition.runs_on_everyone
    dear = everyone and entry.attack().passes >= _MANY
    return Stage(
        entry.stage, _attacking(entry), f"attack {entry.name}", most=search["most"] or (_HEAVY if dear else None),
        most_if_heavy=_HEAVY, runs_on=_chosen(entry),
    )  # fmt: skip


def _certifying(plan: Plan, unit: Unit, bounds: bool) -> Stage:
    """The lower bound hangs on nothing that attacks found."""
    title = f"certificates ({plan.certify})"
    return Stage("certificates", unit, title, most=_PROOF, needs=("clean",), apart=True, bounds=bounds)


def standing_of(context: Context, ids: np.ndarray, units: Mapping[str, Payload]) -> Standing:
    """The standing of a chunk."""
    return Standing.of(ids, context.data.y.numpy()[ids], float(context.plan.eps), units)


def clean(context: Context, ids: np.ndarray, units: Mapping[str, Payload]) -> Payload:
    """Predictions on the clean inputs."""
    x = context.inputs(ids)
    with torch.no_grad(), evaluating(context.model):
        scores, raised, fault = _each(context.model, x, context.plan.slots)
        prediction = scores.nan_to_num(nan=-np.inf).argmax(1).masked_fill(raised, -1)
        if context.subject.kind == "smoothed":  # g abstains with not-a-number; the stand-in's scores guide the search
            prediction = prediction.masked_fill(scores.isnan().any(1), -1)
            scores = torch.cat([context.search(part) for part in x.split(context.plan.slots)]).double().cpu()
    return {
        "ids": ids.tolist(),
        "scores": encoded(scores.numpy()),
        "prediction": prediction.tolist(),
        "forwards": [1] * len(ids),
    } | _raised(ids, raised, fault)


def _each(model: Model, x: Tensor, slots: int) -> tuple[Tensor, Tensor, str]:
    """(n, K) float64 scores, (n,) bool the rows that the model raises on, NaN in the scores, and what it raised first.

    Raises:
        ModelError: it raises on every row.
    """
    rows, fault = list[Tensor | None](), ""
    parts = [*x.split(slots)][::-1]
    while parts:
        part = parts.pop()
        try:
            rows += ask(model, part).double().cpu().unbind()
        except ModelFault as error:
            fault = fault or str(error)
            if len(part) == 1:
                rows.append(None)
            else:
                parts += [*part.tensor_split(2)][::-1]
    known = [row for row in rows if row is not None]
    if not known:
        raise ModelError(f"the model raises {fault}")
    lost = torch.full_like(known[0], torch.nan)
    scores = torch.stack([lost if row is None else row for row in rows])
    return scores, torch.tensor([row is None for row in rows]), fault


def _raised(ids: np.ndarray, raised: Tensor | None, fault: str | None) -> Payload:
    """The samples that the model raised on, by name, and what it raised; nothing where it raised on none."""
    if raised is None or not bool(raised.any()):
        return {}
    return {"failed": ids[raised.cpu().numpy()].tolist(), "raised": fault or ""}


def attack(
    context: Context,
    entry: SuiteEntry,
    ids: np.ndarray,
    standing: Standing,
    *,
    eps: float | Tensor | None = None,
) -> Payload:
    """One attack on some samples of the chunk, its witnesses judged; at the plan's eps unless another is given."""
    if not len(ids):
        return _spent(ids, None)
    plan = context.plan
    rows = np.searchsorted(standing.ids, ids)
    problem = context.problem(ids, eps)
    scores = torch.from_numpy(standing.scores[rows]).to(context.device, problem.x.dtype)
    method = entry.attack()
    judge = context.model if entry.transfers else None
    search = context.surrogate if entry.transfers else context.search
    outcome = run(
        method, problem, search, judge=judge, seed=plan.seed,
        budget=Budget(queries=plan.queries), top_k=plan.top_k, clean=scores, settings=context.settings, progress=context.progress,
    )  # fmt: skip
    if entry.transfers and context.subject.kind == "smoothed":  # g answers with not-a-number where it abstains
        outcome = replace(outcome, no_answer=None)
    failed, answered = outcome.failed, outcome.low_margin.isfinite() | outcome.found
    if len(ids) > 1 and failed is not None and bool(failed.all()) and not bool(answered.any()):
        raise ModelError(f"the model raises {outcome.fault}")  # whatever it is asked here: the stage's fault
    return ruled(context, problem, outcome, entry.name)


def ruled(context: Context, problem: Problem, outcome: Outcome, name: str) -> Payload:
    """The payload of an attack: its claims, ruled on by the referee, where the model had no answer, and what it spent."""
    payload = _spent(problem.ids, outcome) | no_answers(context, problem, outcome, name)
    done = judged(context.referee(), problem, outcome.away_from_clean())
    payload["referee"] = done.judging.forwards
    payload["rejected"] = problem.ids[done.rejected.cpu().numpy()].tolist()
    for kind, which in (("witnesses", done.broken), ("marginal", done.marginal)):
        for row in which.nonzero().flatten().tolist():
            prediction = int(done.prediction[row])
            payload[kind][str(problem.ids[row])] = {
                "attack": name,
                "sha256": context.folder.store(done.x[row]),
                "distance": float(done.claimed_distance[row]),
                "margin": as_number(done.margin[row]),
                "rounding": as_number(done.rounding[row]),
                "arithmetics": list(done.arithmetics),
                "prediction": None if prediction < 0 else prediction,
            }
    return payload


def no_answers(context: Context, problem: Problem, outcome: Outcome, name: str) -> Payload:
    """The nearest input in its set of each sample that the model gives no usable answer to; nothing where there is none."""
    if outcome.no_answer is None or outcome.no_answer_at is None:
        return {}
    rows = outcome.no_answer_at.isfinite().nonzero().squeeze(-1)
    if not len(rows):
        return {}
    x = outcome.no_answer[rows]
    records = zip(
        problem.ids[rows.cpu().numpy()].tolist(), x, outcome.no_answer_at[rows].tolist(), met_at(context, x), strict=True
    )  # fmt: skip
    return {
        "no_answer": {
            str(i): {"attack": name, "sha256": context.folder.store(at), "distance": distance, "met": met}
            for i, at, distance, met in records
        }
    }


def met_at(context: Context, x: Tensor) -> list[str]:
    """What the model that attacks search on answers to inputs x (n, \\*features) to which it gave no usable answer, in words."""
    if context.plan.remote:
        return ["no scores that can be judged"] * len(x)
    words = list[str]()
    with torch.no_grad(), evaluating(context.search):
        for row in x.split(1):
            try:
                scores = ask(context.search, row).flatten()
            except ModelFault:
                words.append("an exception, asked again alone")
                continue
            if bool(scores.isnan().any()):
                words.append("NaN")
            elif bool((scores == torch.inf).any()):
                words.append("+infinity")
            else:
                words.append(ALONE if bool(usable(scores)) else "-infinity for every class")
    return words


def as_number(value: Tensor) -> float:
    """A margin as the journal has it: JSON knows no infinity."""
    return float(value.nan_to_num(nan=0.0, posinf=1e30, neginf=-1e30))


def _spent(ids: np.ndarray, outcome: Outcome | None) -> Payload:
    payload: dict[str, Any] = {"ids": ids.tolist(), "witnesses": {}, "marginal": {}, "rejected": [], "referee": 0}
    if outcome is None:
        return payload | {k: [] for k in ("forwards", "backwards", "queries", "found_at", "low_margin")}
    ledger = outcome.ledger
    return (
        payload
        | {
            "forwards": ledger.forwards.tolist(),
            "backwards": ledger.backwards.tolist(),
            "queries": ledger.queries.tolist(),
            "found_at": outcome.found_at.tolist(),
            "low_margin": outcome.low_margin.clamp(-1e30, 1e30).tolist(),
        }
        | _raised(ids, outcome.failed, outcome.fault)
    )


def _attacking(entry: SuiteEntry) -> Unit:
    def unit(context: Context, ids: np.ndarray, units: Mapping[str, Payload]) -> Payload:
        standing, wanted = standing_of(context, ids, units), chosen(context, ids, units)
        eps = _reach(context, entry, wanted, standing) if entry.nearest else None
        return attack(context, entry, wanted, standing, eps=eps)

    chosen = _chosen(entry)
    return unit


def _chosen(entry: SuiteEntry) -> RunsOn:
    def chosen(context: Context, ids: np.ndarray, units: Mapping[str, Payload]) -> np.ndarray:
        return ids[attacked(context, entry, standing_of(context, ids, units))]

    return chosen


def attacked(context: Context, entry: SuiteEntry, standing: Standing) -> np.ndarray:
    """(n,) bool: the samples of a chunk that an attack is run on, from what is known after the stages before it."""
    wanted = entry.wants(standing)
    if entry.spares:  # proved samples are spared, but for a keyed share that sees the whole suite
        proved = np.isin(standing.ids, list(standing.proved))
        wanted = np.where(proved, _keyed(standing.ids, context.plan.seed) % SPARED_SHARE == 0, wanted)
    return wanted & (standing.correct if entry.nearest else standing.open)


def _reach(context: Context, entry: SuiteEntry, ids: np.ndarray, standing: Standing) -> Tensor | float:
    """Where an attack looks that is after the nearest witness: anywhere, or just inside what is known."""
    if entry.under is None:
        return float("inf")
    known = [standing.nearest[i].witness.distance if i in standing.nearest else None for i in ids.tolist()]
    eps = float(context.plan.eps)
    return torch.tensor(
        [eps if d is None else entry.under * d for d in known], dtype=torch.float64, device=context.device
    )


def _keyed(ids: np.ndarray, seed: int) -> np.ndarray:
    """A mixing of ids that looks random and depends on nothing but id and seed."""
    mixed = [(int(i) + seed * 0x9E3779B97F4A7C15) * 0xBF58476D1CE4E5B9 % (1 << 64) >> 33 for i in ids]
    return np.array(mixed, dtype=np.int64)


def _at_eps(eps: Fraction) -> Unit:
    def unit(context: Context, ids: np.ndarray, units: Mapping[str, Payload]) -> Payload:
        size = float(eps)
        standing = standing_of(context, ids, units)
        near = np.array([i in standing.nearest and standing.nearest[i].witness.distance <= size for i in ids.tolist()])
        entry = context.plan.entries[0]
        payload = attack(context, entry, ids[standing.correct & ~near], standing, eps=size)
        held = ids[near & standing.correct].tolist() + [int(i) for i in payload["witnesses"]]
        return payload | {"broken_here": sorted(held)}

    return unit


def shrinking(context: Context, ids: np.ndarray, units: Mapping[str, Payload]) -> Payload:
    """A nearer witness for each broken sample, and one beyond eps for those that are not."""
    standing = standing_of(context, ids, units)
    chosen = ids[standing.correct]
    if not len(chosen):
        return _spent(chosen, None)
    known = {i: c.witness for i, c in standing.nearest.items()}
    problem = context.problem(chosen, float("inf"))
    witness = problem.x.clone()
    for k, i in enumerate(chosen.tolist()):
        if i in known:
            witness[k] = context.folder.witness(known[i].sha256).to(context.device)
    has = torch.tensor([i in known for i in chosen.tolist()], device=context.device)
    scores = torch.from_numpy(standing.scores[standing.correct]).to(context.device, problem.x.dtype)
    outcome = shrink(context, problem, witness, has, scores)
    payload = ruled(context, problem, outcome, "shrink")
    for key, record in payload["witnesses"].items():
        if int(key) in known:
            record["attack"] = known[int(key)].attack
    return payload


def on_levels(context: Context, chosen: np.ndarray, standing: Standing) -> tuple[Problem, Judgement]:
    """The witnesses of broken samples moved to the grid, and judged there."""
    from holdfast.numerics.project import snap_to_grid

    problem = context.problem(chosen)
    problem = replace(problem, set=replace(problem.set, grid=context.grid))
    first = [standing.broken[i].witness.sha256 for i in chosen.tolist()]
    x = torch.stack([context.folder.witness(sha).to(context.device) for sha in first])
    snapped = snap_to_grid(problem.set, x, problem.x)
    return problem, context.referee().judge(problem, snapped)


def on_grid(context: Context, ids: np.ndarray, units: Mapping[str, Payload]) -> Payload:
    """The witnesses as inputs that lie on the grid, saved as pictures where they are pictures, and judged after loading."""
    from holdfast.audits.pictures import through_png

    standing = standing_of(context, ids, units)
    chosen = np.array(sorted(standing.broken), dtype=np.int64)
    payload: Payload = {"ids": chosen.tolist(), "broken_on_grid": [], "saved": 0, "still_breaking": 0, "referee": 0}
    if not len(chosen):
        return payload
    problem, ruling = on_levels(context, chosen, standing)
    payload["broken_on_grid"] = chosen[ruling.holds.cpu().numpy()].tolist()
    payload["referee"] = ruling.forwards
    loaded = through_png(context, chosen, ruling.x)
    if loaded is not None:
        payload["saved"], payload["still_breaking"] = len(chosen), still_breaking(context, problem, loaded)
    return payload


def still_breaking(context: Context, problem: Problem, loaded: Tensor) -> int:
    """How many witnesses break the model as they come back from pictures."""
    with torch.no_grad(), evaluating(context.model):
        return int(Misclassified().holds(context.model(loaded), problem.y, problem.target).sum())
