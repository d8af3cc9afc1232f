"""The driver: plan -> stages -> units -> journal -> document. Interrupted at any moment, it resumes where it was."""

from __future__ import annotations

import shlex
import time
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
from holdfast.audits.folder import RunFolder
from holdfast.audits.journal import DIAGNOSTICS, PREFLIGHT, Journal, Key, diagnosed, lost, preflighted
from holdfast.audits.needs import PREFLIGHT_ROWS, need
from holdfast.audits.places import Places
from holdfast.audits.plan import Plan
from holdfast.audits.reconcile import compose, environment
from holdfast.audits.records import AnyRecord, DiagnosticsRecord, Fault, PreflightRecord, findings_of
from holdfast.audits.stages.diagnostics import diagnose
from holdfast.audits.units import Layout
from holdfast.audits.workers import Progress, Work, guarded, take_a_gradient
from holdfast.core.errors import UsageError
from holdfast.models.checks import admitted, preflight
from holdfast.models.http import HttpModel

__all__ = ["Progress", "audit", "resume"]


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
    out: Path | str,
    *,
    model: nn.Module | None = None,
    places: Places | None = None,
    workers: int = 1,
    command: str = "",
    progress: Progress | None = None,
) -> Document:
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
    looked: tuple[PreflightRecord, float] | None = None
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
            records = journal.units()
            before = len(records)
            torch.set_num_threads(max(1, threads // workers))
            look = preflighted(records)
            if look is None:
                look, spent = looked or _preflight(context)
                _enter(journal, records, PREFLIGHT, look, spent)
            context = replace(context, randomised=look.randomised)
            opener = partial(_reopen, plan, at, folder.path, context.randomised)
            work = Work(
                context=context, layout=layout, records=records, workers=workers, opener=opener, progress=progress
            )
            for key, record, spent in work.run():
                _enter(journal, records, key, record, spent)
            if diagnosed(records) is None:
                record, spent = _diagnosed(context, layout, records)
                _enter(journal, records, DIAGNOSTICS, record, spent)
            if len(records) > before or "environment" not in journal.facts():
                named = folder.about().get("command") or _command(folder, plan)
                journal.note({"command": named, "environment": environment(plan.device).model_dump_json()})
            facts = journal.facts()
        finally:
            torch.set_num_threads(threads)
            seconds_by_stage = journal.seconds()
            sha256 = journal.close()
        document = compose(context, records, seconds_by_stage, facts=facts, journal=sha256)
        export(context.run_inputs, document)
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
    records = journal.units()
    failed = lost(records)
    if failed:
        stale = layout.stale(failed) | {DIAGNOSTICS}
        journal.forget([*sorted(stale & records.keys() - set(failed)), *failed])


def _enter(journal: Journal, records: dict[Key, AnyRecord], key: Key, record: AnyRecord, seconds: float) -> None:
    records[key] = journal.write(*key, record, seconds)


def _preflight(context: Context, *, anyway: bool = False) -> tuple[PreflightRecord, float]:
    """What is wrong with the pair of model and data; an error stops the run before anything is spent or written."""
    start = time.monotonic()
    remote = context.plan.remote
    if remote:
        need(context.plan, len(context.data)).told((context.at or context.plan).max_queries)
    context.begin(PREFLIGHT[0])
    findings = preflight(
        context.base,
        context.data,
        context.plan.threat,
        device=context.device,
        samples=PREFLIGHT_ROWS if remote else 200,
    )
    findings = admitted(findings, anyway=anyway)
    if context.plan.classes is not None:
        _ = context.classes  # refuses another number than the model's
    randomised = any(f.code == "model.randomised" for f in findings)
    if not randomised:
        findings += [f for f in [context.referee().finding(context.inputs(np.arange(1)))] if f is not None]
    return PreflightRecord(findings=findings_of(findings), randomised=randomised), time.monotonic() - start


def _diagnosed(context: Context, layout: Layout, records: dict[Key, AnyRecord]) -> tuple[AnyRecord, float]:
    """The diagnostics; where they fail nothing is known of the upper bound, and the run is incomplete."""

    def work() -> DiagnosticsRecord:
        record = diagnose(context, layout.whole(records))
        if not isinstance(context.base, HttpModel):
            return record
        more = findings_of(list(context.base.findings()))
        return record.model_copy(update={"findings": (*record.findings, *more)})

    def failed(error: Exception) -> DiagnosticsRecord:
        return DiagnosticsRecord(fault=Fault(ids=(), why=f"diagnostics: {type(error).__name__}: {error}"))

    context.begin(f"{DIAGNOSTICS[0]} []")
    return guarded(context, work, failed)


def _reopen(plan: Plan, at: Plan | None, out: Path, randomised: bool) -> Context:
    """The run, opened in a process of its own."""
    return replace(Context.open(plan, RunFolder(out), at=at), randomised=randomised)
