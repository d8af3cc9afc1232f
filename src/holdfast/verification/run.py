"""Runs a list of instances with a journal, so that a run that was killed goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeAlias

from holdfast.core.files import write_whole
from holdfast.core.store import locked
from holdfast.verification.decide import Effort
from holdfast.verification.instances import Instance, read_instances
from holdfast.verification.journal import InstanceJournal
from holdfast.verification.record import InstanceRecord
from holdfast.verification.workers import InstanceWorkers, Task, attempt

__all__ = ["InstanceProgress", "InstanceResult", "run_instances"]

InstanceProgress: TypeAlias = Callable[[Instance, InstanceRecord, int, int], None]
"""Told an instance, what came out, how many are done, and of how many."""


@dataclass(frozen=True, kw_only=True)
class InstanceResult:
    """An instance with what came out.

    Attributes:
        instance: of the list.
        record: its outcome.
    """

    instance: Instance
    record: InstanceRecord

    @property
    def contradicts(self) -> bool:
        """The list and we are both sure, and not of the same."""
        return self.instance.is_known and self.record.is_decided and self.instance.verdict != self.record.verdict


def run_instances(
    listed: Path,
    out: Path,
    effort: Effort,
    *,
    timeout: float | None = None,
    only: Sequence[str] = (),
    workers: int = 1,
    progress: InstanceProgress | None = None,
) -> list[InstanceResult]:
    """Runs what the journal does not have yet.

    Args:
        listed: the list.
        out: the folder of the journal, counterexamples and tables.
        effort: how each is decided; its time limit counts where the list has none.
        timeout: seconds for each, whatever the list says.
        only: benchmarks; all if empty.
        workers: processes; one that dies, or takes 10 s and a tenth longer than it may, is replaced by a new one. 0: in
            this process, which cannot be stopped.
        progress: told each instance that is done.

    Returns:
        All instances that were asked for, in the list's order; the verdict of one that raised is ``error``.

    Raises:
        JournalError: the folder belongs to another list or other settings, its journal is of an earlier form, or another
            process works on it.
    """
    instances = read_instances(listed, only)
    out.mkdir(parents=True, exist_ok=True)
    identity = {
        "list": hashlib.sha256(listed.read_bytes()).hexdigest(),
        "settings": json.dumps(asdict(effort) | {"method": str(effort.method), "for each": timeout}),
    }
    with locked(out):
        journal = InstanceJournal(out / "journal.sqlite", identity)
        try:
            done = journal.instances()
            todo = [
                (i, replace(effort, timeout=timeout or i.timeout or effort.timeout))
                for i in instances
                if i.number not in done
            ]
            finished = len(instances) - len(todo)
            for instance, record in _here(todo) if workers < 1 else InstanceWorkers(count=workers).run(todo):
                journal.enter(instance.number, record)
                done[instance.number] = record
                finished += 1
                if record.counterexample is not None:
                    name = f"{instance.number:05d} {instance.name}.txt"
                    write_whole(out / "counterexamples" / name, record.counterexample)
                if progress is not None:
                    progress(instance, record, finished, len(instances))
        finally:
            journal.close()
    return [InstanceResult(instance=i, record=done[i.number]) for i in instances]


def _here(tasks: Sequence[Task]) -> Iterator[tuple[Instance, InstanceRecord]]:
    for instance, effort in tasks:
        yield instance, attempt(instance, effort)
