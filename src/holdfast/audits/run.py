"""The driver: plan -> stages -> units -> journal -> document. Interrupted at any moment, it resumes where it was."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from holdfast.audits.consent import needs_trust
from holdfast.audits.context import Context
from holdfast.audits.document import Document
from holdfast.audits.export import export
from holdfast.audits.folder import PREFLIGHT, RunFolder
from holdfast.audits.journal import Journal, Payload
from holdfast.audits.needs import PREFLIGHT_ROWS, need
from holdfast.audits.places import Places
from holdfast.audits.plan import Plan
from holdfast.audits.reconcile import compose, environment, standings
from holdfast.audits.stages.diagnostics import diagnose
from holdfast.audits.stages.suite import Stage
from holdfast.audits.units import Layout
from holdfast.audits.workers import Progress, Work, take_a_gradient, unit_of
from holdfast.core.errors import UsageError
from holdfast.models.checks import admitted, preflight
from holdfast.models.http import HttpModel

__all__ = ["Progress", "audit", "resume"]

_DIAGNOSTICS = "diagnostics"
_WHOLE = -1  # the chunk number of stages that look at the whole run


def audit(
    plan: Plan,
    out: Path | str,
    *,
    model: nn.Module | None = None,
    workers: int = 1,
    command: str = "",
    progress: Progress | None = None,
    anyway: bool = False,
) -> Document:
    """Audits a model: both sides of every sample, in a folder that anyone can recheck.

    Args:
        plan: what to do.
        out: the run's folder; made if it is not there. A run of the same plan is continued.
        model: the module, where the plan names no file.
        workers: processes; more than one needs a model that the plan names.
        command: the command line that repeats the run, for the report.
        progress: told (stage title, samples done, samples).
        anyway: start although the model does worse than guessing.

    Returns:
        The document, which is also written to ``out/report.json``.

    Raises:
        UsageError: something about the plan or the folder; the message names the fix.
        DataError: the pre-flight found an error in the data or the model.
        JournalError: the folder belongs to something else.
    """
    return _run(plan, RunFolder(Path(out)), model, None, workers, command, progress, anyway=anyway)


def resume(
    out: Path | str, *, model: nn.Module | None = None, places: Places | None = None, workers: int = 1,
    command: str = "", progress: Progress | None = None,
) -> Document:  # fmt: skip
    """Continues a run that was interrupted; gives what an uninterrupted run gives.

    Args:
        out: the run's folder.
        model: the module, where the plan names no file.
        places: where files are that moved since, and what the plan may do that only its file says.
        workers: processes.
        command: as in `audit`; that of the first start is kept.
        progress: told (stage title, samples done, samples).

    Raises:
        UsageError: there is no run in the folder.
        UnsafeFileError: the plan names code to run, and nobody said that it may.
        BudgetError: the plan names a prediction API, and nobody said that it may be asked.
        JournalError: the model or the data are not those of the run.
    """
    folder = RunFolder(Path(out))
    plan = folder.plan()
    located = (places or Places()).located(plan, folder)
    return _run(plan, folder, model, located, workers, command, progress)


def _run(
    plan: Plan, folder: RunFolder, model: nn.Module | None, at: Plan | None, workers: int, command: str,
    progress: Progress | None, *, anyway: bool = False,
) -> Document:  # fmt: skip
    """Everything that may refuse comes before the folder is touched; the journal is written to from then on."""
    if workers > 1 and model is not None:
        raise UsageError("several workers need a model that they can load; name a file in the plan, or use workers=1")
    if workers > 1 and plan.remote:
        raise UsageError(
            "a prediction API is asked by one process, which sends several requests at a time; use --workers 1"
        )
    going_on = folder.check(plan)
    if workers > 1:
        take_a_gradient()
    context = Context.open(plan, folder, model, at=at)
    context.check_suite()
    looked: tuple[Payload, float] | None = None
    if going_on:
        Journal(folder.journal_file, context.identity)
    else:
        looked = _preflight(context, anyway=anyway)
    with folder.begin(plan, command):
        journal = Journal(folder.journal_file, context.identity)
        layout = Layout.of(context)
        threads = torch.get_num_threads()
        try:
            _forget_failed(journal, layout)
            units = journal.units()
            before = len(units)
            torch.set_num_threads(max(1, threads // workers))
            if PREFLIGHT not in units:
                payload, seconds = looked or _preflight(context)
                _enter(journal, units, *PREFLIGHT, payload, seconds)
            context = replace(context, randomised=units[PREFLIGHT]["randomised"])
            opener = partial(_reopen, plan, at, folder.path, context.randomised)
            for key, payload, spent in Work(context, layout, units, workers, opener, progress).run():
                _enter(journal, units, *key, payload, spent)
            if (_DIAGNOSTICS, _WHOLE) not in units:
                payload, spent = _diagnosed(context, units)
                _enter(journal, units, _DIAGNOSTICS, _WHOLE, payload, spent)
            if len(units) > before or "environment" not in journal.facts():
                told = folder.about().get("command") or _command(folder, plan)
                journal.note({"command": told, "environment": json.dumps(environment(plan.device))})
            facts = journal.facts()
        finally:
            torch.set_num_threads(threads)
            seconds_by_stage = journal.seconds()
            sha256 = journal.close()
        document = compose(context, units, seconds_by_stage, facts=facts, journal=sha256)
        export(context, document)
        document.save(folder.report_file)
    return document


def _command(folder: RunFolder, plan: Plan) -> str:
    """What repeats the run, where it was not begun by a command line."""
    if plan.model is None:
        return f"audit(Plan.read(Path({str(folder.plan_file)!r})), {str(folder.path)!r}, model=...)"
    consent = ["--model", plan.model] if plan.remote else ["--trust"] if plan.trust or needs_trust(plan) else []
    return shlex.join(["holdfast", "audit", "--plan", str(folder.plan_file), *consent, "--out", str(folder.path)])


def _forget_failed(journal: Journal, layout: Layout) -> None:
    """Takes out the units that failed and what was built on them: the cause may be mended by now.

    What failed goes last, so that a run which is killed in between finds all of it again.
    """
    units = journal.units()
    failed = [key for key, unit in units.items() if "fault" in unit or "raised" in unit]
    if failed:
        stale = layout.stale(failed) | {(_DIAGNOSTICS, _WHOLE)}
        journal.forget([*sorted(stale & units.keys() - set(failed)), *failed])


def _enter(journal: Journal, units: dict[tuple[str, int], Payload], stage: str, chunk: int, payload: Payload,
           seconds: float) -> None:  # fmt: skip
    units[stage, chunk] = journal.write(stage, chunk, payload, seconds)


def _preflight(context: Context, *, anyway: bool = False) -> tuple[Payload, float]:
    """What is wrong with the pair of model and data; an error stops the run before anything is spent or written."""
    start = time.monotonic()
    remote = context.plan.remote
    if remote:
        need(context.plan, len(context.data)).told((context.at or context.plan).max_queries)
    context.begin(PREFLIGHT[0])
    found = preflight(
        context.base,
        context.data,
        context.plan.threat,
        device=context.device,
        samples=PREFLIGHT_ROWS if remote else 200,
    )
    found = admitted(found, anyway=anyway)
    if context.plan.classes is not None:
        _ = context.classes  # refuses another number than the model's
    randomised = any(f.code == "model.randomised" for f in found)
    if not randomised:
        found += [f for f in [context.referee().finding(context.inputs(np.arange(1)))] if f is not None]
    payload: Payload = {"findings": [_plain(f.as_dict()) for f in found], "randomised": randomised}
    return payload, time.monotonic() - start


def _plain(finding: dict[str, object]) -> dict[str, object]:
    data = finding.get("data")
    if isinstance(data, dict):
        kept = {k: v if not isinstance(v, float) or np.isfinite(v) else str(v) for k, v in data.items()}
        finding = finding | {"data": kept}
    return finding


def _diagnosed(context: Context, units: Mapping[tuple[str, int], Payload]) -> tuple[Payload, float]:
    """The diagnostics; where they fail nothing is known of the upper bound, and the run is incomplete."""

    def unit(context: Context, ids: np.ndarray, before: Mapping[str, Payload]) -> Payload:
        payload = diagnose(context, standings(context, units))
        if isinstance(context.base, HttpModel):
            payload["findings"] += [_plain(f.as_dict()) for f in context.base.findings()]
        return payload

    return unit_of(context, Stage(_DIAGNOSTICS, unit, "diagnostics"), np.zeros(0, dtype=np.int64), {})


def _reopen(plan: Plan, at: Plan | None, out: Path, randomised: bool) -> Context:
    """The run, opened in a process of its own."""
    return replace(Context.open(plan, RunFolder(out), at=at), randomised=randomised)
