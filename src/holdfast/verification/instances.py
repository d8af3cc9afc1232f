"""Verification of a whole list of instances: read, run with a journal, in workers that can be stopped, and summed up.

A list is the competition's (``onnx,vnnlib,timeout`` without a head) or a table with a head that names at least ``onnx``
and ``vnnlib``, and maybe ``benchmark``, ``timeout_s`` (or ``timeout``), ``verdict`` and ``confidence``. Paths are
relative to the list. Each finished instance is a row of the journal, so that a run that was killed goes on where it was.
"""

from __future__ import annotations

import csv
import hashlib
import json
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Empty, Queue
from statistics import median
from threading import Event, Thread
from time import monotonic
from typing import Any

from holdfast.certifiers.verification.solver import Decision
from holdfast.core.errors import DataError, HoldfastError, UsageError, did_you_mean
from holdfast.core.files import write_whole
from holdfast.core.store import locked
from holdfast.verification.decide import Effort, decide, rerun
from holdfast.verification.journal import Journal, Payload

__all__ = [
    "Contradiction",
    "Instance",
    "Summary",
    "Told",
    "contradictions",
    "read_instances",
    "run_instances",
    "summary",
]

ERROR = "error"
_STAGE = "instance"
_GRACE = 10.0  # seconds beyond a time limit until a worker is stopped
_KNOWN = (Decision.HOLDS, Decision.BROKEN)

Told = Callable[["Instance", Payload, int, int], None]
"""Told an instance, what came out, how many are done, and of how many."""


@dataclass(frozen=True)
class Instance:
    """A network with a property.

    Attributes:
        number: its row in the list, from 0.
        net: the ONNX file.
        prop: the VNN-LIB file.
        timeout: seconds of the list, or None.
        benchmark: what it belongs to.
        verdict: what is known: ``sat``, ``unsat``, or anything else for unknown.
        confidence: how well it is known, in the list's words.
    """

    number: int
    net: Path
    prop: Path
    timeout: float | None
    benchmark: str
    verdict: str = ""
    confidence: str = ""

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.net.stem} {self.prop.name.removesuffix('.gz').removesuffix('.vnnlib')}"


def read_instances(path: Path, only: Sequence[str] = ()) -> list[Instance]:
    """The instances of a list.

    Args:
        path: the list.
        only: benchmarks; all of them if empty.

    Raises:
        DataError: no such file, or not a list; the message names the line.
        UsageError: a benchmark that is not in it.
    """
    try:
        rows = [(k, row) for k, row in enumerate(csv.reader(path.read_text().splitlines()), 1) if any(row)]
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no list of instances: {error}") from None
    head = [name.strip() for name in rows[0][1]] if rows else []
    if {"onnx", "vnnlib"} <= set(head):
        rows = rows[1:]
    else:
        head = ["onnx", "vnnlib", "timeout"]
    found = [_instance(path, line, n, head, row) for n, (line, row) in enumerate(rows)]
    if not found:
        raise DataError(f"{path} lists nothing; a row is onnx,vnnlib,timeout")
    names = {instance.benchmark for instance in found}
    for name in only:
        if name not in names:
            raise UsageError(f"{path} has no benchmark '{name}'. {did_you_mean(name, names)}")
    return [instance for instance in found if not only or instance.benchmark in only]


def _instance(path: Path, line: int, number: int, head: Sequence[str], row: Sequence[str]) -> Instance:
    if len(row) < min(len(head), 2) or len(row) > len(head):
        raise DataError(f"{path}, line {line}: {len(row)} columns where there are {len(head)}: {','.join(head)}")
    cells = {name: cell.strip() for name, cell in zip(head, row, strict=False)}
    limit = cells.get("timeout_s") or cells.get("timeout") or ""
    try:
        timeout = float(limit) if limit else None
    except ValueError:
        raise DataError(f"{path}, line {line}: the time limit '{limit}' is no number of seconds") from None
    net = path.parent / cells["onnx"]
    first = Path(cells["onnx"]).parts[0]
    benchmark = cells.get("benchmark") or (path.absolute().parent.name if first in ("onnx", cells["onnx"]) else first)
    return Instance(
        number, net, path.parent / cells["vnnlib"], timeout, benchmark, cells.get("verdict", ""),
        cells.get("confidence", ""),
    )  # fmt: skip


def run_instances(
    listed: Path,
    out: Path,
    effort: Effort,
    *,
    timeout: float | None = None,
    only: Sequence[str] = (),
    workers: int = 1,
    told: Told | None = None,
) -> list[tuple[Instance, Payload]]:
    """Runs what the journal does not have yet.

    Args:
        listed: the list.
        out: the folder of the journal, counterexamples and tables.
        effort: how each is decided; its time limit counts where the list has none.
        timeout: seconds for each, whatever the list says.
        only: benchmarks; all if empty.
        workers: processes; one that dies, or takes 10 s and a tenth longer than it may, is replaced by a new one. 0: in
            this process, which cannot be stopped.
        told: told each instance that is done.

    Returns:
        All instances that were asked for, in the list's order, with their payloads: those of `Decided`, with the verdict
        ``error`` and its reason for an instance that raised.

    Raises:
        JournalError: the folder belongs to another list or other settings, or another process works on it.
    """
    instances = read_instances(listed, only)
    out.mkdir(parents=True, exist_ok=True)
    identity = {
        "list": hashlib.sha256(listed.read_bytes()).hexdigest(),
        "settings": json.dumps(asdict(effort) | {"for each": timeout}),
    }
    with locked(out):
        journal = Journal(out / "journal.sqlite", identity)
        try:
            done = {chunk: payload for (_, chunk), payload in journal.units().items()}
            todo = [i for i in instances if i.number not in done]
            efforts = {i.number: replace(effort, timeout=timeout or i.timeout or effort.timeout) for i in todo}
            work = ((i, efforts[i.number]) for i in todo)
            finished = len(instances) - len(todo)
            for instance, payload in _in_process(work) if workers < 1 else _in_workers(list(work), workers):
                journal.write(_STAGE, instance.number, payload, payload["seconds"])
                done[instance.number] = payload
                finished += 1
                if payload["counterexample"]:
                    write_whole(_counterexample(out, instance), payload["counterexample"])
                if told is not None:
                    told(instance, payload, finished, len(instances))
        finally:
            journal.close()
    return [(i, done[i.number]) for i in instances]


def _counterexample(out: Path, instance: Instance) -> Path:
    return out / "counterexamples" / f"{instance.number:05d} {instance.name}.txt"


def _failed(reason: str, seconds: float, verdict: str = ERROR) -> Payload:
    return {
        "verdict": verdict, "seconds": round(seconds, 3), "method": "", "reason": reason, "arithmetic": "",
        "domains": 0, "bound": None, "counterexample": None,
    }  # fmt: skip


def _attempt(instance: Instance, effort: Effort) -> Payload:
    begun = monotonic()
    try:
        return decide(instance.net, instance.prop, effort).payload
    except HoldfastError as error:
        return _failed(str(error), monotonic() - begun)
    except Exception as error:  # whatever it is, the other instances go on
        return _failed(f"{type(error).__name__}: {error}", monotonic() - begun)


def _in_process(work: Iterable[tuple[Instance, Effort]]) -> Iterator[tuple[Instance, Payload]]:
    for instance, effort in work:
        yield instance, _attempt(instance, effort)


class _Worker:
    """A process that decides one instance after the other, and is stopped if one takes far too long."""

    def __init__(self, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, threads), daemon=True)
        self.process.start()
        theirs.close()

    def run(self, instance: Instance, effort: Effort) -> Payload:
        """What came out; afterwards `process` may be dead."""
        begun, limit = monotonic(), effort.timeout + max(_GRACE, effort.timeout / 10)
        try:
            self.pipe.send((instance, effort))
            self.pipe.recv()  # it was taken up: a process that begins needs seconds of its own
            begun = monotonic()
            if self.pipe.poll(limit):
                return self.pipe.recv()
        except (EOFError, OSError):
            self.stop()
            return _failed(f"its process died (exit code {self.process.exitcode}): out of memory?", monotonic() - begun)
        self.stop()
        return _failed("stopped, since it did not heed its time limit", monotonic() - begun, Decision.TIMEOUT)

    def stop(self) -> None:
        """Ends the process at once."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _serve(pipe: Connection, threads: int) -> None:
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
            pipe.send(_attempt(instance, effort))


def _follow() -> None:
    """Ends this process when the parent is gone, however it went."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _in_workers(work: Sequence[tuple[Instance, Effort]], count: int) -> Iterator[tuple[Instance, Payload]]:
    threads = max((os.cpu_count() or 1) // count, 1)
    tasks: Queue[tuple[Instance, Effort]] = Queue()
    results: Queue[tuple[Instance, Payload] | Exception] = Queue()
    workers: dict[int, _Worker] = {}
    ended = Event()
    for task in work:
        tasks.put(task)

    def drive(place: int) -> None:
        try:
            while not ended.is_set():
                instance, effort = tasks.get_nowait()
                if place not in workers or not workers[place].process.is_alive():
                    workers[place] = _Worker(threads)
                payload = workers[place].run(instance, effort)
                if not ended.is_set():
                    results.put((instance, payload))
        except Empty:
            pass
        except Exception as error:  # no process can be begun: the caller has to know
            results.put(error)

    for place in range(min(count, len(work))):
        Thread(target=drive, args=(place,), daemon=True).start()
    try:
        for _ in work:
            result = results.get()
            if isinstance(result, Exception):
                raise result
            yield result
    finally:
        ended.set()
        for worker in list(workers.values()):
            worker.process.kill()


# --- what it amounts to -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    """A benchmark's row of the table; ``wrong`` counts verdicts against a known one that is not a single tool's claim."""

    benchmark: str
    total: int
    solved: int
    sat: int
    unsat: int
    unknown: int
    timeout: int
    error: int
    known: int
    wrong: int
    median_seconds: float | None


@dataclass(frozen=True)
class Contradiction:
    """A verdict against the list's.

    Attributes:
        instance: which.
        found: our verdict.
        evidence: what the witness did when it was run again, in words, or what there is for ``unsat``.
        weak: the list's verdict is a single tool's claim.
    """

    instance: Instance
    found: str
    evidence: str
    weak: bool


def summary(results: Sequence[tuple[Instance, Payload]]) -> list[Summary]:
    """The table by benchmark, in the list's order."""
    found: list[Summary] = []
    for name in dict.fromkeys(i.benchmark for i, _ in results):
        rows = [(i, p) for i, p in results if i.benchmark == name]
        count = Counter(p["verdict"] for _, p in rows)
        seconds = [p["seconds"] for _, p in rows if p["verdict"] in _KNOWN]
        found.append(
            Summary(
                name, len(rows), len(seconds), count["sat"], count["unsat"], count["unknown"], count["timeout"],
                count[ERROR], sum(i.verdict in _KNOWN for i, _ in rows),
                sum(_against(i, p) and not _weak(i) for i, p in rows), median(seconds) if seconds else None,
            )
        )  # fmt: skip
    return found


def contradictions(results: Iterable[tuple[Instance, Payload]]) -> list[Contradiction]:
    """Verdicts against the list's; each witness is run again."""
    found: list[Contradiction] = []
    for instance, payload in results:
        if not _against(instance, payload):
            continue
        evidence = f"proved in {payload['arithmetic'] or 'no arithmetic'}, by {payload['method'] or 'nobody'}"
        if payload["verdict"] == Decision.BROKEN:
            try:
                failed = rerun(instance.net, instance.prop, payload["counterexample"])
                evidence = (
                    f"the witness does not hold in {', '.join(failed)}" if failed else "the witness holds, run again"
                )
            except Exception as error:  # a run again that fails is what there is to say
                evidence = f"the witness could not be run again: {error}"
        found.append(Contradiction(instance, payload["verdict"], evidence, _weak(instance)))
    return found


def document(results: Sequence[tuple[Instance, Payload]]) -> dict[str, Any]:
    """Everything, as JSON has it: ``summary``, ``contradictions``, ``instances``."""
    return {
        "summary": [asdict(row) for row in summary(results)],
        "contradictions": [
            {
                "benchmark": c.instance.benchmark, "name": c.instance.name, "found": c.found,
                "known": c.instance.verdict, "confidence": c.instance.confidence, "evidence": c.evidence, "weak": c.weak,
            }
            for c in contradictions(results)
        ],
        "instances": [
            {
                "number": i.number, "benchmark": i.benchmark, "net": str(i.net), "property": str(i.prop),
                "known": i.verdict, "confidence": i.confidence, **{k: v for k, v in p.items() if k != "counterexample"},
            }
            for i, p in results
        ],
    }  # fmt: skip


def heads() -> list[str]:
    """The heads of the table by benchmark."""
    return [f.name.replace("_", " ") for f in fields(Summary)]


def summary_row(row: Mapping[str, Any]) -> list[str]:
    """A row of the document's summary, as text."""
    return ["-" if v is None else f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()]


def write_tables(out: Path, told: Mapping[str, Any]) -> None:
    """Writes the document as ``verify.json``, and its tables as ``verify.md``."""
    lines = [heads(), ["---"] * len(heads()), *map(summary_row, told["summary"])]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    if told["contradictions"]:
        text += "\n## Against the list's verdicts\n\n"
    for c in told["contradictions"]:
        text += (
            f"- {c['benchmark']} {c['name']}: {c['found']}, known {c['known']} ({c['confidence']}); {c['evidence']}\n"
        )
    write_whole(out / "verify.md", text)
    write_whole(out / "verify.json", json.dumps(told, indent=1) + "\n")


def _against(instance: Instance, payload: Payload) -> bool:
    return {instance.verdict, payload["verdict"]} == set(map(str, _KNOWN))


def _weak(instance: Instance) -> bool:
    return instance.confidence == "one-tool"
