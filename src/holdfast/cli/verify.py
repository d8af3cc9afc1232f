"""``holdfast verify``: whether a property of a network holds, one by one or a list of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from holdfast.api.folders import no_run
from holdfast.cli import options as o
from holdfast.cli import single_options as one
from holdfast.cli.console import fault, note, say, say_json, table
from holdfast.cli.spread import spread
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


@dataclass(frozen=True, kw_only=True)
class HowOptions:
    """How a property is decided."""

    timeout: Annotated[
        float | None,
        typer.Option(
            help="Time for each property, files included.",
            metavar="S",
            show_default="60, or the list's",
            rich_help_panel=_HOW,
        ),
    ] = None
    method: Annotated[
        str,
        typer.Option(help="auto, or one method; see: holdfast methods.", metavar="NAME", rich_help_panel=_HOW),
    ] = "auto"
    memory: Annotated[
        str, typer.Option(help="For tensors of one pass and for what waits.", metavar="SIZE", rich_help_panel=_HOW)
    ] = "1G"
    deployed: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(
            help="Prove it of the network as computed in this type, not in real numbers.", rich_help_panel=_HOW
        ),
    ] = None
    proof: Annotated[
        Path | None,
        typer.Option(help="Write a proof for: holdfast check.", metavar="FILE", rich_help_panel=_HOW),
    ] = None
    counterexample: Annotated[
        Path | None,
        typer.Option(
            help="Write the counterexample here, and not to standard output.", metavar="FILE", rich_help_panel=_HOW
        ),
    ] = None

    def effort(self) -> Effort:
        """As the library takes it."""
        from holdfast.api.verify import size_in_bytes
        from holdfast.verification.decide import Effort

        timeout = 60.0 if self.timeout is None else self.timeout
        return Effort(timeout=timeout, method=self.method, memory=size_in_bytes(self.memory), deployed=self.deployed)


@dataclass(frozen=True, kw_only=True)
class NetOptions:
    """A network that does not tell what it is."""

    arch: one.Arch = None
    shape: Annotated[
        str | None,
        typer.Option(
            help="One sample's shape, where weights with --arch are given: 1,28,28.",
            metavar="SIZES",
            rich_help_panel="Model and data",
        ),
    ] = None
    trust: one.Trust = None

    def open(self, net: str) -> Path | Unread:
        """The network, as its path where it tells all."""
        from holdfast.api.verify import open_network

        shape = None
        if self.shape is not None:
            fits = re.fullmatch(r"[1-9]\d*([,x][1-9]\d*)*", self.shape)
            shape = tuple(map(int, re.split("[,x]", self.shape))) if fits else ()
        opened, notes = open_network(net, arch=self.arch, shape=shape, trust=bool(self.trust))
        for line in notes:
            note(f"note: {line}")
        return opened


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """A list of properties."""

    instances: Annotated[
        Path | None,
        typer.Option(
            help="CSV: onnx,vnnlib,timeout; or with a head, and benchmark, verdict, confidence.",
            metavar="FILE.csv",
            rich_help_panel=_LIST,
        ),
    ] = None
    out: Annotated[
        Path | None,
        typer.Option(
            help="Journal, counterexamples and tables; the same command goes on there.",
            metavar="FOLDER",
            show_default="runs/verify",
            rich_help_panel=_LIST,
        ),
    ] = None
    only: Annotated[
        list[str] | None,
        typer.Option(help="Benchmarks, with commas or repeated.", metavar="NAME,...", rich_help_panel=_LIST),
    ] = None
    workers: Annotated[
        int,
        typer.Option(
            help="Processes; 0: in this one, which cannot be stopped.", min=0, metavar="K", rich_help_panel=_LIST
        ),
    ] = 1


@spread
def verify(
    net: Annotated[
        str | None,
        typer.Argument(help="ONNX file; or weights with --arch and --shape.", metavar="NET", show_default=False),
    ] = None,
    prop: Annotated[
        Path | None,
        typer.Argument(
            help="What is unsafe: VNN-LIB 1.0, .vnnlib or .vnnlib.gz.", metavar="PROP.vnnlib", show_default=False
        ),
    ] = None,
    *,
    how: HowOptions,
    about: NetOptions,
    operations: Annotated[
        bool,
        typer.Option(
            "--operations", help="Only list the operations of NET and whether each is served.", show_default=False
        ),
    ] = False,
    listed: ListOptions,
    talk: o.TalkOptions,
) -> None:
    """Prove that a network never does what a property calls unsafe, or find an input where it does.

    The first line of the answer is unsat (it holds), sat (it does not; a counterexample in the competition's format
    follows), unknown or timeout. Exit codes: 0 unsat, 1 sat, 3 unknown or timeout, 2 usage; for a list: 3 if an instance
    failed or contradicts its known verdict, else 0.

    Example: holdfast verify net.onnx prop.vnnlib --timeout 60
    """
    effort = how.effort()
    if listed.instances is not None:
        given = (("NET", net), ("--proof", how.proof), ("--counterexample", how.counterexample), ("--arch", about.arch))
        for name, value in given:
            if value is not None:
                raise UsageError(f"--instances names the networks and properties itself; leave out {name}")
        _listed(listed.instances, listed, effort, how.timeout, talk)
        return
    for name, value in (("--out", listed.out), ("--only", listed.only)):
        if value is not None:
            raise UsageError(f"{name} belongs to a list; give --instances FILE.csv, or leave it out")
    if net is None:
        raise UsageError("what network? write: holdfast verify NET.onnx PROP.vnnlib, or --instances FILE.csv")
    if operations:
        _operations(about.open(net), talk)
        return
    if prop is None:
        raise UsageError(f"what property? write: holdfast verify {net} PROP.vnnlib")
    _one(about.open(net), prop, effort, how, talk)


def _one(net: Path | Unread, prop: Path, effort: Effort, how: HowOptions, talk: o.TalkOptions) -> None:
    from holdfast.api.verify import run_verifier
    from holdfast.core.files import write_whole

    found = run_verifier(net, prop, effort, proof=how.proof, progress=_Heartbeat())
    text, held = found.counterexample, found.decided.held_against
    if text is not None and how.counterexample is not None:
        write_whole(how.counterexample, text)
    if talk.json:
        say_json(found.to_dict())
    else:
        print(text if text is not None and how.counterexample is None else f"{found.decision}\n", end="")
    if held:
        note(f"the graph was held against {held}, on the property's box")
    note(found.about)
    if how.proof is not None:
        check = f"proof: {found.proof}; check it with: holdfast check {found.proof}"
        note("no proof was written" if found.proof is None else check)
    raise typer.Exit(_CODES[str(found.decision)])


def _listed(instances: Path, options: ListOptions, effort: Effort, timeout: float | None, talk: o.TalkOptions) -> None:
    from holdfast.verification.pages import cells, heads, write_tables
    from holdfast.verification.run import run_instances
    from holdfast.verification.summary import summarised

    out, only = options.out or Path("runs/verify"), o.several(options.only) or ()
    no_run(out, own=("journal.sqlite",))

    def told(instance: Instance, record: InstanceRecord, done: int, total: int) -> None:
        known = f" (known: {instance.verdict})" if instance.verdict not in ("", record.verdict) else ""
        why = f": {record.reason}" if record.reason else f" by {record.method}" if record.method else ""
        note(
            f"[{done:>{len(str(total))}}/{total}] {instance.benchmark} {instance.name}: "
            f"{record.verdict}{known}, {record.seconds:.2f} s{why}"
        )

    try:
        results = run_instances(
            instances, out, effort, timeout=timeout, only=only, workers=options.workers, progress=told
        )
    except KeyboardInterrupt:
        note(f"interrupted; the same command goes on where {out} is")
        raise
    verified = summarised(results)
    write_tables(out, verified)
    if talk.json:
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


def _operations(found: Path | Unread, talk: o.TalkOptions) -> None:
    from holdfast.certifiers.propagation.table import covered
    from holdfast.core.errors import HoldfastError
    from holdfast.graph.onnx import read_onnx
    from holdfast.graph.survey import survey

    refused = ""
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
    if talk.json:
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


class _Heartbeat:
    """Says every few seconds how far it is."""

    def __init__(self) -> None:
        self.begun = self.last = monotonic()

    def __call__(self, done: int, waiting: int, bound: float) -> None:
        if monotonic() - self.last >= _BEAT:
            self.last = monotonic()
            note(f"{self.last - self.begun:.0f} s: {done} domains done, {waiting} open, bound {bound:.6g}")
