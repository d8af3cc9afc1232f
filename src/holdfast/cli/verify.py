"""``holdfast verify``: whether a property of a network holds, one by one or a list of them."""

from __future__ import annotations

import re
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from holdfast.api.folders import no_run
from holdfast.cli import options as o
from holdfast.cli.console import fault, note, say, say_json, table
from holdfast.core.errors import UsageError

if TYPE_CHECKING:
    from holdfast.graph.model import Graph
    from holdfast.verification.decide import Effort, Unread
    from holdfast.verification.instances import Instance
    from holdfast.verification.record import InstanceRecord

__all__ = ["verify"]

_BROKEN, _OPEN = 1, 3
_CODES = {"unsat": 0, "sat": _BROKEN, "unknown": _OPEN, "timeout": _OPEN}
_BEAT = 5.0  # seconds between two lines about how far it is
_HOW, _LIST = "How", "A list of instances"

Seconds = Annotated[
    float | None,
    typer.Option(
        help="Time for each property, files included.", metavar="S", show_default="60, or the list's",
        rich_help_panel=_HOW,
    ),
]  # fmt: skip


def verify(
    net: Annotated[
        str | None, typer.Argument(help="ONNX file; or weights with --arch and --shape.", metavar="NET", show_default=False)
    ] = None,
    prop: Annotated[
        Path | None,
        typer.Argument(
            help="What is unsafe: VNN-LIB 1.0, .vnnlib or .vnnlib.gz.", metavar="PROP.vnnlib", show_default=False
        ),
    ] = None,
    timeout: Seconds = None,
    method: Annotated[
        str,
        typer.Option(help="auto, or one method; see: holdfast methods.", metavar="NAME", rich_help_panel=_HOW),
    ] = "auto",
    memory: Annotated[
        str, typer.Option(help="For tensors of one pass and for what waits.", metavar="SIZE", rich_help_panel=_HOW)
    ] = "1G",
    deployed: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(
            help="Prove it of the network as computed in this type, not in real numbers.", rich_help_panel=_HOW
        ),
    ] = None,
    proof: Annotated[
        Path | None,
        typer.Option(help="Write a proof for: holdfast check.", metavar="FILE", rich_help_panel=_HOW),
    ] = None,
    counterexample: Annotated[
        Path | None,
        typer.Option(
            help="Write the counterexample here, and not to standard output.", metavar="FILE", rich_help_panel=_HOW
        ),
    ] = None,
    arch: o.Arch = None,
    shape: Annotated[
        str | None,
        typer.Option(
            help="One sample's shape, where weights with --arch are given: 1,28,28.", metavar="SIZES",
            rich_help_panel="Model and data",
        ),
    ] = None,
    trust: o.Trust = None,
    operations: Annotated[
        bool,
        typer.Option("--operations", help="Only list the operations of NET and whether each is served.", show_default=False),
    ] = False,
    instances: Annotated[
        Path | None,
        typer.Option(
            help="CSV: onnx,vnnlib,timeout; or with a head, and benchmark, verdict, confidence.", metavar="FILE.csv",
            rich_help_panel=_LIST,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Journal, counterexamples and tables; the same command goes on there.", metavar="FOLDER",
            show_default="runs/verify", rich_help_panel=_LIST,
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Benchmarks, with commas or repeated.", metavar="NAME,...", rich_help_panel=_LIST),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(
            help="Processes; 0: in this one, which cannot be stopped.", min=0, metavar="K", rich_help_panel=_LIST
        ),
    ] = 1,
    format_: o.Format = o.FormatName.TEXT,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:  # fmt: skip
    """Prove that a network never does what a property calls unsafe, or find an input where it does.

    The first line of the answer is unsat (it holds), sat (it does not; a counterexample in the competition's format
    follows), unknown or timeout. Exit codes: 0 unsat, 1 sat, 3 unknown or timeout, 2 usage; for a list: 3 if an instance
    failed or contradicts its known verdict, else 0.

    Example: holdfast verify net.onnx prop.vnnlib --timeout 60
    """
    from holdfast.verification.decide import Effort

    effort = Effort(
        timeout=60.0 if timeout is None else timeout, method=method, memory=_bytes(memory), deployed=deployed
    )  # fmt: skip
    if instances is not None:
        for name, value in (("NET", net), ("--proof", proof), ("--counterexample", counterexample), ("--arch", arch)):
            if value is not None:
                raise UsageError(f"--instances names the networks and properties itself; leave out {name}")
        folder = out or Path("runs/verify")
        no_run(folder, own=("journal.sqlite",))
        _listed(instances, folder, effort, timeout, o.several(only) or (), workers, format_)
        return
    for name, value in (("--out", out), ("--only", only)):
        if value is not None:
            raise UsageError(f"{name} belongs to a list; give --instances FILE.csv, or leave it out")
    if net is None:
        raise UsageError("what network? write: holdfast verify NET.onnx PROP.vnnlib, or --instances FILE.csv")
    if operations:
        _operations(net, arch, shape, bool(trust), format_)
        return
    if prop is None:
        raise UsageError(f"what property? write: holdfast verify {net} PROP.vnnlib")
    _one(_opened(net, arch, shape, bool(trust)), prop, effort, proof, counterexample, format_)


def _one(
    net: Path | Unread, prop: Path, effort: Effort, proof: Path | None, counterexample: Path | None, kind: o.FormatName
) -> None:
    from holdfast.verification.decide import decide

    record = decide(net, prop, effort, proof=proof, progress=_Heartbeat()).record
    text, verdict = record.counterexample, record.verdict
    if text is not None and counterexample is not None:
        from holdfast.core.files import write_whole

        write_whole(counterexample, text)
    if kind is o.FormatName.JSON:
        say_json(record.model_dump())
    else:
        print(text if text is not None and counterexample is None else f"{verdict}\n", end="")
    about = [f"{record.seconds:.2f} s"]
    about += [f"by {record.method}"] if record.method else []
    about += [f"{record.domains} domains"] if record.domains > 1 else []
    about += [f"bound {record.bound:.6g}"] if record.bound is not None and verdict != "sat" else []
    about += [f"in {record.arithmetic}"] if record.arithmetic and verdict == "unsat" else []
    if record.held_against:
        note(f"the graph was held against {record.held_against}, on the property's box")
    note(f"{verdict}: {', '.join(about)}{': ' + record.reason if record.reason else ''}")
    if proof is not None:
        note(f"proof: {proof}; check it with: holdfast check {proof}" if verdict == "unsat" else "no proof was written")
    raise typer.Exit(_CODES[verdict])


def _listed(
    listed: Path, out: Path, effort: Effort, timeout: float | None, only: tuple[str, ...], workers: int,
    kind: o.FormatName,
) -> None:  # fmt: skip
    from holdfast.verification.pages import cells, heads, write_tables
    from holdfast.verification.run import run_instances
    from holdfast.verification.summary import summarised

    def told(instance: Instance, record: InstanceRecord, done: int, total: int) -> None:
        known = f" (known: {instance.verdict})" if instance.verdict not in ("", record.verdict) else ""
        why = f": {record.reason}" if record.reason else f" by {record.method}" if record.method else ""
        note(
            f"[{done:>{len(str(total))}}/{total}] {instance.benchmark} {instance.name}: "
            f"{record.verdict}{known}, {record.seconds:.2f} s{why}"
        )

    try:
        results = run_instances(listed, out, effort, timeout=timeout, only=only, workers=workers, progress=told)
    except KeyboardInterrupt:
        note(f"interrupted; the same command goes on where {out} is")
        raise
    verified = summarised(results)
    write_tables(out, verified)
    if kind is o.FormatName.JSON:
        say_json(verified.to_dict())
    else:
        table(heads(), map(cells, verified.summary))
        note(f"tables: {out / 'verify.md'}, {out / 'verify.json'}; counterexamples: {out / 'counterexamples'}")
    for d in verified.disagreements:
        line = (
            f"{d.instance.benchmark} {d.instance.name}: {d.found}, but the list says {d.instance.verdict} "
            f"({d.instance.confidence or 'known'}); {d.evidence}"
        )
        say(line) if d.is_weak else fault(f"contradiction: {line}")
    if not verified.ok:
        raise typer.Exit(_OPEN)


def _operations(net: str, arch: str | None, shape: str | None, trust: bool, kind: o.FormatName) -> None:
    from holdfast.certifiers.propagation.table import covered
    from holdfast.core.errors import HoldfastError
    from holdfast.graph.onnx import read_onnx
    from holdfast.graph.survey import survey

    found, refused = _opened(net, arch, shape, trust), ""
    model: Path | Graph = found if isinstance(found, Path) else _captured(found)
    rows: list[dict[str, Any]] = []
    if isinstance(model, Path):
        rows += [{"operation": u.name, "in": "file", "uses": u.times, "served": u.known} for u in survey(model)]
        try:
            model = read_onnx(model)
        except HoldfastError as error:
            refused = str(error)
    if not isinstance(model, Path):
        uses = [node.op for node in model.nodes]
        rows += [
            {"operation": op, "in": "graph", "uses": uses.count(op), "served": served}
            for op, served in covered(model).items()
        ]
    if kind is o.FormatName.JSON:
        say_json({"operations": rows, "refused": refused})
    else:
        words = {"file": ("read", "not known to the reader"), "graph": ("bounded", "no bounds")}
        table(
            ("operation", "in", "uses", "served"),
            [(r["operation"], r["in"], r["uses"], words[r["in"]][not r["served"]]) for r in rows],
        )
        if refused:
            say(f"refused: {refused}", style="red")
    if refused or not all(r["served"] for r in rows):
        raise typer.Exit(_OPEN)


def _captured(found: Unread) -> Graph:
    import torch

    from holdfast.graph import trace

    return trace(found.module, torch.zeros(1, *found.shape))


def _opened(net: str, arch: str | None, shape: str | None, trust: bool) -> Path | Unread:
    """An ONNX file as its path, anything else as a module."""
    from holdfast.models.guard import Format, inspect_file

    if inspect_file(Path(net)).format is Format.ONNX:
        if arch is not None or shape is not None:
            raise UsageError(f"{net} is an ONNX file, which holds its own architecture; leave out --arch and --shape")
        return Path(net)
    from holdfast.models.load import load_model
    from holdfast.verification.decide import Unread

    model = load_model(net, arch=arch, trust=trust)
    for line in model.notes:
        note(f"note: {line}")
    if shape is None or not re.fullmatch(r"[1-9]\d*([,x][1-9]\d*)*", shape):
        raise UsageError(f"{net} does not tell the shape of an input; give it: --shape 1,28,28")
    return Unread(model.module, tuple(map(int, re.split("[,x]", shape))))


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise UsageError(f"--memory {text} is no size; write 500M or 2G")
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))


class _Heartbeat:
    """Says every few seconds how far it is."""

    def __init__(self) -> None:
        self.begun = self.last = monotonic()

    def __call__(self, done: int, waiting: int, bound: float) -> None:
        if monotonic() - self.last >= _BEAT:
            self.last = monotonic()
            note(f"{self.last - self.begun:.0f} s: {done} domains done, {waiting} open, bound {bound:.6g}")
