"""Who does the units of a run: this process, or several that share them.

Several processes take whatever can be done next, the earlier stage first: certificates, which hang on no attack, fill the
time in which the attacks of one unit wait for each other. The units and their records are the same for any number.
"""

from __future__ import annotations

import ctypes
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

import torch

from holdfast.audits.context import Context
from holdfast.audits.evidence import Evidence
from holdfast.audits.journal import Key, Records
from holdfast.audits.records import AnyRecord
from holdfast.audits.stage import AnyStage, ids_of
from holdfast.audits.units import Layout
from holdfast.core.errors import BudgetError, HoldfastError, ModelError

__all__ = ["Done", "Progress", "Work", "guarded", "take_a_gradient"]

Done = tuple[Key, AnyRecord, float]
"""A unit, its record and its seconds."""
Progress = Callable[[str, int, int], None]
"""Told (stage title, samples done, samples)."""

_TRIES = 2


@dataclass(kw_only=True)
class Work:
    """The units of a run that are still to be done.

    Attributes:
        context: the run.
        layout: its units.
        records: those so far; whoever takes a `Done` enters it here before he asks for the next.
        workers: processes; 1 is this one.
        opener: opens the run in another process, for processes that do not inherit it; picklable.
        progress: told of samples.
    """

    context: Context
    layout: Layout
    records: Records
    workers: int
    opener: Callable[[], Context]
    progress: Progress | None = None
    _lanes: list[_Lane] = field(default_factory=list["_Lane"])

    def run(self) -> Iterator[Done]:
        """Does all that is left, unit by unit."""
        todo = [key for key in self.layout.all_keys() if key not in self.records]
        left = {stage for stage, _ in todo}
        for stage in self.layout.order:
            if stage.name not in left:  # done by an earlier start
                self._tell(stage.name)
        work = self._alone(todo) if self.workers == 1 or len(todo) < 2 else self._together(todo)
        for key, record, seconds in work:
            yield key, record, seconds
            self._tell(key[0])

    def _tell(self, stage: str, more: int = 0) -> None:
        if self.progress is not None:
            done = sum(
                len(self.layout.ids((stage, k)))
                for k in range(len(self.layout.units(stage)))
                if (stage, k) in self.records
            )
            self.progress(self.layout.stage(stage).title, min(done + more, self.layout.samples), self.layout.samples)

    # one process

    def _alone(self, todo: list[Key]) -> Iterator[Done]:
        for key in todo:
            evidence = self.layout.before(self.records, key)

            def inside(done: int, total: int, stage: str = key[0], size: int = len(evidence.ids)) -> None:
                self._tell(stage, size * done // max(1, total))

            self._tell(key[0])
            self.context.progress = inside
            try:
                record, seconds = _done(self.context, self.layout.stage(key[0]), evidence)
            finally:
                self.context.progress = None
            yield key, record, seconds

    # several

    def _together(self, todo: list[Key]) -> Iterator[Done]:
        tries = dict.fromkeys(todo, _TRIES)
        self._lanes = [_Lane(self.context, self.opener) for _ in range(self.workers)]
        captures = ThreadPoolExecutor(1)
        captured: Future[None] | None = None
        try:
            while tries:
                running = {lane.key for lane in self._lanes if lane.job is not None}
                for lane in self._lanes:
                    if lane.job is not None:
                        continue
                    for key in (k for k in tries if k not in running and self._ready(k)):
                        stage = self.layout.stage(key[0])
                        if stage.uses_graph and _inherits():
                            # one capture of the graph serves all processes that are begun after it
                            captured = captured or captures.submit(self._capture)
                            if not captured.done():
                                continue
                        lane.begin(key, self.layout.before(self.records, key), uses_graph=stage.uses_graph)
                        running.add(key)
                        self._tell(key[0])
                        break
                waiting: list[Future[Any]] = [lane.job for lane in self._lanes if lane.job is not None]
                waiting += [captured] if captured is not None and not captured.done() else []
                wait(waiting, return_when=FIRST_COMPLETED)
                for lane in self._lanes:
                    if lane.job is None or not lane.job.done():
                        continue
                    key = lane.key
                    try:
                        record, seconds = lane.end()
                    except BrokenProcessPool:
                        tries[key] -= 1
                        if tries[key]:
                            continue
                        died = RuntimeError("a worker process died on it twice")
                        evidence = self.layout.before(self.records, key)
                        record, seconds = _failed(self.context, self.layout.stage(key[0]), evidence, died), 0.0
                    del tries[key]
                    yield key, record, seconds
        finally:
            captures.shutdown(wait=True, cancel_futures=True)
            for lane in self._lanes:
                lane.close()

    def _ready(self, key: Key) -> bool:
        ids, needed = self.layout.ids(key), self.layout.needed(key[0])
        return all(before in self.records for name in needed for before in self.layout.covering(name, ids))

    def _capture(self) -> None:
        with suppress(Exception):  # the unit that needs it meets the same, and says so
            _ = self.context.graph


class _Lane:
    """One process, and the unit that it is at."""

    def __init__(self, context: Context, opener: Callable[[], Context]) -> None:
        self._context, self._opener = context, opener
        self._pool: Executor | None = None
        self._has_graph = False
        self.job: Future[tuple[AnyRecord, float]] | None = None
        self.key: Key = ("", -1)

    def begin(self, key: Key, evidence: Evidence, *, uses_graph: bool) -> None:
        if self._pool is not None and uses_graph and not self._has_graph and _inherits():
            self.close()  # begun before the graph was there
        if self._pool is None:
            self._pool = self._start()
            self._has_graph = "_captured" in vars(self._context)
        self.key, self.job = key, self._pool.submit(_in_worker, key[0], evidence)

    def end(self) -> tuple[AnyRecord, float]:
        job, self.job = self.job, None
        if job is None:
            raise RuntimeError("the process is at no unit")
        try:
            return job.result()
        except BrokenProcessPool:
            self.close()
            raise

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def _start(self) -> Executor:
        if _inherits():
            with warnings.catch_warnings():  # the child has one thread and takes no lock of another
                warnings.simplefilter("ignore", DeprecationWarning)
                pool = ProcessPoolExecutor(1, get_context("fork"), _inherit, (self._context,))
                pool.submit(_nothing).result()
            return pool
        return ProcessPoolExecutor(1, get_context("spawn"), _open, (self._opener, torch.get_num_threads()))


def take_a_gradient() -> None:
    """Uses autograd once, before anything is captured.

    PyTorch refuses backward in a copy of a process whose first gradient came after a ``torch.export``; one that came
    before makes copies able to go on.
    """
    x = torch.zeros(1, requires_grad=True)
    torch.autograd.grad(x.sum(), x)


def _inherits() -> bool:
    """Whether a process may be a copy of this one, which spares it loading everything anew.

    Not beside an accelerator, whose driver does not survive it, nor with several threads: GNU's OpenMP hangs in a copy
    that uses them (PyTorch's own loaders copy the process and use one thread, as is done here).
    """
    return sys.platform == "linux" and torch.get_num_threads() == 1 and not torch.cuda.is_initialized()


_worker: Context | None = None


def _inherit(context: Context) -> None:
    global _worker
    torch.set_num_threads(1)
    _die_with_parent()
    _worker = context


def _open(opener: Callable[[], Context], threads: int) -> None:
    global _worker
    torch.set_num_threads(threads)
    _worker = opener()


def _nothing() -> None:
    """The first job of a process: it is there then."""


def _die_with_parent() -> None:
    """A copy holds the lock of the run's folder: it must not outlive a process that was killed."""
    set_death_signal = 1  # PR_SET_PDEATHSIG
    ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's to handle


def _in_worker(name: str, evidence: Evidence) -> tuple[AnyRecord, float]:
    if _worker is None:
        raise RuntimeError("the worker was not opened")
    return _done(_worker, Layout.of(_worker).stage(name), evidence)


def _done(context: Context, stage: AnyStage, evidence: Evidence) -> tuple[AnyRecord, float]:
    """One unit of work and its seconds."""
    context.begin(f"{stage.name} {evidence.ids.tolist()}")
    return guarded(
        context, lambda: stage.unit(context, evidence), lambda error: _failed(context, stage, evidence, error)
    )


def guarded(
    context: Context, work: Callable[[], AnyRecord], failed: Callable[[Exception], AnyRecord]
) -> tuple[AnyRecord, float]:
    """Work and its seconds; a fault of the model makes a record that says so, instead of ending the run."""
    start = time.monotonic()
    try:
        record = work()
    except HoldfastError as error:
        spent = isinstance(error, BudgetError)  # what was found so far is reported, and a larger budget goes on
        if not spent and (context.plan.remote or not isinstance(error, ModelError)):
            raise  # about the command, the folder or the line to an API, not about these samples
        record = failed(error)
    except Exception as error:  # a user's model may raise anything
        record = failed(error)
    return record, time.monotonic() - start


def _failed(context: Context, stage: AnyStage, evidence: Evidence, error: Exception) -> AnyRecord:
    """The record of a unit that failed: errors are the samples that it was run on."""
    return stage.failed(ids_of(stage.lost(context, evidence)), f"{type(error).__name__}: {error}")
