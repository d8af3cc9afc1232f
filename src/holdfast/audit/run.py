"""The driver: plan -> stages -> chunks -> journal -> document. Interrupted at any moment, it resumes where it was."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import nn

from holdfast.audit.context import Context
from holdfast.audit.diagnostics import diagnose
from holdfast.audit.document import Document
from holdfast.audit.folder import RunFolder
from holdfast.audit.journal import Journal, Payload
from holdfast.audit.plan import Plan
from holdfast.audit.reconcile import compose, standings
from holdfast.audit.stages import Stage, stages
from holdfast.core.errors import DataError, HoldfastError, ModelError, UsageError
from holdfast.core.findings import Severity
from holdfast.models.checks import preflight

__all__ = ["Progress", "audit", "resume"]

Progress = Callable[[str, int, int], None]
"""Told (stage title, chunks done, chunks)."""

_PREFLIGHT, _DIAGNOSTICS = "preflight", "diagnostics"
_WHOLE = -1  # the chunk number of stages that look at the whole run
_TRIES = 2


def audit(
    plan: Plan,
    out: Path | str,
    *,
    model: nn.Module | None = None,
    workers: int = 1,
    command: str = "",
    progress: Progress | None = None,
) -> Document:
    """Audits a model: both sides of every sample, in a folder that anyone can recheck.

    Args:
        plan: what to do.
        out: the run's folder; made if it is not there. A run of the same plan is continued.
        model: the module, where the plan names no file.
        workers: processes; more than one needs a model that the plan names.
        command: the command line that repeats the run, for the report.
        progress: told about each finished chunk.

    Returns:
        The document, which is also written to ``out/report.json``.

    Raises:
        UsageError: something about the plan or the folder; the message names the fix.
        DataError: the pre-flight found an error in the data or the model.
        JournalError: the folder belongs to something else.
    """
    folder = RunFolder(Path(out))
    folder.create(plan)
    with folder.locked():
        context = Context.open(plan, folder, model)
        if workers > 1 and model is not None:
            raise UsageError(
                "several workers need a model that they can load; name a file in the plan, or use workers=1"
            )
        journal = Journal(folder.journal_file, context.identity)
        units = journal.units()
        threads, crew = torch.get_num_threads(), _Crew(workers)
        try:
            torch.set_num_threads(max(1, threads // workers))
            context = _preflight(context, journal, units)
            for stage in stages(plan):
                _run_stage(context, stage, journal, units, crew, progress)
            if (_DIAGNOSTICS, _WHOLE) not in units:
                payload, spent = _diagnosed(context, units)
                _enter(journal, units, _DIAGNOSTICS, _WHOLE, payload, spent)
        finally:
            crew.dismiss()
            torch.set_num_threads(threads)
            seconds = journal.seconds()
            sha256 = journal.close()
        when = datetime.now(UTC).isoformat(timespec="seconds")
        failed = any("fault" in u for u in units.values())
        document = compose(
            context, units, seconds, command=command or f"holdfast audit --plan {folder.plan_file}", when=when,
            journal=sha256, complete=not failed,
        )  # fmt: skip
        document.save(folder.report_file)
    return document


def resume(
    out: Path | str, *, model: nn.Module | None = None, workers: int = 1, command: str = "",
    progress: Progress | None = None,
) -> Document:  # fmt: skip
    """Continues a run that was interrupted; gives what an uninterrupted run gives.

    Raises:
        UsageError: there is no run in the folder.
    """
    plan = RunFolder(Path(out)).plan()
    return audit(plan, out, model=model, workers=workers, command=command, progress=progress)


def _enter(journal: Journal, units: dict[tuple[str, int], Payload], stage: str, chunk: int, payload: Payload,
           seconds: float) -> None:  # fmt: skip
    journal.write(stage, chunk, payload, seconds)
    units[stage, chunk] = payload


def _preflight(context: Context, journal: Journal, units: dict[tuple[str, int], Payload]) -> Context:
    """What is wrong with the pair of model and data; an error stops the run before anything is spent."""
    if (_PREFLIGHT, _WHOLE) not in units:
        start = time.monotonic()
        found = preflight(context.base, context.data, context.plan.threat, device=context.device)
        errors = [f for f in found if f.severity is Severity.ERROR]
        if errors:
            lines = "\n".join(f"  {f.title}: {f.message} -> {f.remedy}" for f in errors)
            raise DataError(f"the pre-flight found {len(errors)} error(s):\n{lines}")
        randomised = any(f.code == "model.randomised" for f in found)
        if not randomised:
            found += [f for f in [context.referee().finding(context.inputs(np.arange(1)))] if f is not None]
        payload: Payload = {"findings": [_plain(f.as_dict()) for f in found], "randomised": randomised}
        _enter(journal, units, _PREFLIGHT, _WHOLE, payload, time.monotonic() - start)
    return replace(context, randomised=units[_PREFLIGHT, _WHOLE]["randomised"])


def _plain(finding: dict[str, object]) -> dict[str, object]:
    data = finding.get("data")
    if isinstance(data, dict):
        kept = {k: v if not isinstance(v, float) or np.isfinite(v) else str(v) for k, v in data.items()}
        finding = finding | {"data": kept}
    return finding


def _run_stage(
    context: Context,
    stage: Stage,
    journal: Journal,
    units: dict[tuple[str, int], Payload],
    crew: _Crew,
    progress: Progress | None,
) -> None:
    chunks = context.chunks()
    todo = [k for k in range(len(chunks)) if (stage.name, k) not in units]
    done = len(chunks) - len(todo)
    if progress is not None:
        progress(stage.title, done, len(chunks))
    for k, payload, seconds in _work(context, stage, chunks, todo, units, crew):
        _enter(journal, units, stage.name, k, payload, seconds)
        done += 1
        if progress is not None:
            progress(stage.title, done, len(chunks))


def _work(
    context: Context, stage: Stage, chunks: list[np.ndarray], todo: list[int],
    units: Mapping[tuple[str, int], Payload], crew: _Crew,
) -> Iterator[tuple[int, Payload, float]]:  # fmt: skip
    def before(k: int) -> dict[str, Payload]:
        return {s.name: units[s.name, k] for s in stages(context.plan) if (s.name, k) in units}

    if crew.workers == 1 or len(todo) < 2:
        for k in todo:
            yield (k, *_unit(context, stage, chunks[k], before(k)))
        return
    tries = dict.fromkeys(todo, _TRIES)
    while tries:
        try:
            pool = crew.pool(context)
            jobs: dict[Future[tuple[Payload, float]], int] = {
                pool.submit(_in_worker, stage.name, k, before(k)): k for k in tries
            }
            for job in as_completed(jobs):
                result = job.result()
                del tries[jobs[job]]
                yield (jobs[job], *result)
        except BrokenProcessPool:
            crew.dismiss()
            for k in list(tries):
                tries[k] -= 1
                if tries[k] == 0:
                    del tries[k]
                    yield k, _fault(chunks[k], stage, RuntimeError("a worker process died on it twice")), 0.0


class _Crew:
    """The worker processes of a run; made when they are first needed, and anew after one has died."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool: ProcessPoolExecutor | None = None

    def pool(self, context: Context) -> ProcessPoolExecutor:
        if self._pool is None:
            given = (context.plan, context.folder.path, context.randomised, torch.get_num_threads())
            self._pool = ProcessPoolExecutor(self.workers, get_context("spawn"), _open_worker, given)
        return self._pool

    def dismiss(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


_worker: Context | None = None


def _open_worker(plan: Plan, out: Path, randomised: bool, threads: int) -> None:
    global _worker
    torch.set_num_threads(threads)
    _worker = replace(Context.open(plan, RunFolder(out)), randomised=randomised)


def _in_worker(name: str, k: int, units: dict[str, Payload]) -> tuple[Payload, float]:
    if _worker is None:
        raise RuntimeError("the worker was not opened")
    stage = next(s for s in stages(_worker.plan) if s.name == name)
    return _unit(_worker, stage, _worker.chunks()[k], units)


def _diagnosed(context: Context, units: Mapping[tuple[str, int], Payload]) -> tuple[Payload, float]:
    """The diagnostics; where they fail nothing is known of the upper bound, and the run is incomplete."""

    def unit(context: Context, ids: np.ndarray, before: Mapping[str, Payload]) -> Payload:
        return diagnose(context, standings(context, units))

    return _unit(context, Stage(_DIAGNOSTICS, unit, "diagnostics"), np.zeros(0, dtype=np.int64), {})


def _unit(context: Context, stage: Stage, ids: np.ndarray, units: Mapping[str, Payload]) -> tuple[Payload, float]:
    """One unit of work; a fault of the model makes its samples errors instead of ending the run."""
    start = time.monotonic()
    try:
        payload = stage.unit(context, ids, units)
    except HoldfastError as error:
        if context.plan.remote or not isinstance(error, ModelError):
            raise  # about the command, the folder or the line to an API, not about these samples
        payload = _fault(ids, stage, error)
    except Exception as error:  # a user's model may raise anything
        payload = _fault(ids, stage, error)
    return payload, time.monotonic() - start


def _fault(ids: np.ndarray, stage: Stage, error: Exception) -> Payload:
    empty = {k: [] for k in ("ids", "forwards", "backwards", "queries", "found_at", "low_margin", "broken_here")}
    extra: Payload = {"broken_on_grid": [], "saved": 0, "still_breaking": 0, "witnesses": {}}
    if stage.name == "clean":
        extra |= {
            "ids": ids.tolist(),
            "scores": [[]] * len(ids),
            "prediction": [-1] * len(ids),
            "forwards": [0] * len(ids),
        }
    return empty | extra | {"failed": ids.tolist(), "fault": f"{stage.title}: {type(error).__name__}: {error}"}
