"""Workers that decide instances, each in a process that can be stopped.

This is not the pool of an audit's units (`holdfast.audits.workers`), and cannot be. There a worker is a copy of a process
that has the model and its captured graph open, is never stopped for taking long, since a journalled run decides nothing
by the clock, and is given a unit again when it dies. Here an instance has a time limit that the other side may not heed, so
that its process must be killed while the others go on; each process opens its own files, and is begun afresh rather than
copied, since the parent has a thread for each of them, and the copy of a process keeps the locks of threads that it does not
have.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Empty, Queue
from threading import Event, Thread
from time import monotonic
from typing import TypeAlias

from holdfast.core.errors import HoldfastError
from holdfast.verification.decide import Effort, decide
from holdfast.verification.instances import Instance
from holdfast.verification.record import InstanceRecord

__all__ = ["InstanceWorkers", "Task", "attempt", "serve"]

Task: TypeAlias = tuple[Instance, Effort]
Done: TypeAlias = tuple[Instance, InstanceRecord]


def attempt(instance: Instance, effort: Effort) -> InstanceRecord:
    """Decides one instance; whatever it raises is its record, so that the others go on."""
    begun = monotonic()
    try:
        return decide(instance.net, instance.prop, effort).record
    except HoldfastError as error:
        return InstanceRecord.failed(str(error), monotonic() - begun)
    except Exception as error:  # whatever it is, the other instances go on
        return InstanceRecord.failed(f"{type(error).__name__}: {error}", monotonic() - begun)


def serve(pipe: Connection, threads: int) -> None:
    """What a worker's process does until its pipe is closed: takes a task, says so, and answers with its record."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("900")  # short of memory, this process goes and not the parent
    Thread(target=_follow, daemon=True).start()
    torch.set_num_threads(threads)
    with suppress(EOFError, OSError):
        while True:
            instance, effort = pipe.recv()
            pipe.send(None)
            pipe.send(attempt(instance, effort))


def _follow() -> None:
    """Ends this process when the parent is gone, however it went."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@dataclass(kw_only=True)
class InstanceWorkers:
    """Processes that share a list; one that dies, or takes far too long, is replaced by a new one.

    Attributes:
        count: how many.
        grace: seconds beyond a time limit, and no less than a tenth of it, until a process is stopped.
        serve: what a process does; picklable.
    """

    count: int
    grace: float = 10.0
    serve: Callable[[Connection, int], None] = serve
    _workers: dict[int, _Worker] = field(default_factory=dict[int, "_Worker"])
    _ended: Event = field(default_factory=Event)

    def run(self, tasks: Sequence[Task]) -> Iterator[Done]:
        """Decides all, in the order in which they end."""
        queue: Queue[Task] = Queue()
        results: Queue[Done | Exception] = Queue()
        for task in tasks:
            queue.put(task)
        for place in range(min(self.count, len(tasks))):
            Thread(target=self._drive, args=(place, queue, results), daemon=True).start()
        try:
            for _ in tasks:
                result = results.get()
                if isinstance(result, Exception):
                    raise result
                yield result
        finally:
            self._ended.set()
            for worker in list(self._workers.values()):
                worker.process.kill()

    def _drive(self, place: int, queue: Queue[Task], results: Queue[Done | Exception]) -> None:
        """Keeps one process at work."""
        threads = max((os.cpu_count() or 1) // self.count, 1)
        try:
            while not self._ended.is_set():
                instance, effort = queue.get_nowait()
                if place not in self._workers or not self._workers[place].process.is_alive():
                    self._workers[place] = _Worker(self.serve, threads)
                record = self._workers[place].run(instance, effort, max(self.grace, effort.timeout / 10))
                if not self._ended.is_set():
                    results.put((instance, record))
        except Empty:
            pass
        except Exception as error:  # no process can be begun: the caller has to know
            results.put(error)


class _Worker:
    """A process that decides one instance after the other, and is stopped if one takes far too long."""

    def __init__(self, serve: Callable[[Connection, int], None], threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, threads), daemon=True)
        self.process.start()
        theirs.close()

    def run(self, instance: Instance, effort: Effort, grace: float) -> InstanceRecord:
        """What came out; afterwards `process` may be dead."""
        begun, limit = monotonic(), effort.timeout + grace
        try:
            self.pipe.send((instance, effort))
            self.pipe.recv()  # it was taken up: a process that begins needs seconds of its own
            begun = monotonic()
            if self.pipe.poll(limit):
                return self.pipe.recv()
        except (EOFError, OSError):
            self.stop()
            reason = f"its process died (exit code {self.process.exitcode}): out of memory?"
            return InstanceRecord.failed(reason, monotonic() - begun)
        self.stop()
        return InstanceRecord.failed("stopped, since it did not heed its time limit", monotonic() - begun, "timeout")

    def stop(self) -> None:
        """Ends the process at once."""
        self.process.kill()
        self.process.join()
        self.pipe.close()
