"""The audit in a terminal: a table where there is one, plain lines where there is not."""

from __future__ import annotations

from textwrap import wrap

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from holdfast.audits.document import Document
from holdfast.core.verdict import Status
from holdfast.core.words import counted, sentences
from holdfast.report.audits.bar import PARTS
from holdfast.report.audits.words import banners, judged, verdict_of
from holdfast.report.markup import count, interval, percent, printable, span

__all__ = ["plain", "rich_summary", "show"]

_COLOURS = {Status.CERTIFIED: "cyan", Status.BROKEN: "red", Status.MISCLASSIFIED: "magenta"}
_BAR = {Status.CERTIFIED: "█", Status.BROKEN: "▓", Status.MISCLASSIFIED: "▒"}
_WIDTH = 60
_LINE = 140


def _clean(text: str) -> str:
    return printable(text.replace("\u00a0", " ").replace("\u202f", " "))


def _figures(document: Document) -> list[tuple[str, str, str]]:
    """(name, value, 95 % interval) of the headline."""
    head, bounds = document.headline, document.headline.intervals
    weak = " (weak)" if head.upper_bound_weak else ""
    return [
        ("clean accuracy", percent(head.clean_accuracy), interval(bounds.clean)),
        (f"empirical robust accuracy{weak}", percent(head.empirical_robust_accuracy), interval(bounds.empirical)),
        ("certified robust accuracy", percent(head.certified_robust_accuracy), interval(bounds.certified)),
        ("unknown, never counted as robust", percent(head.unknown), ""),
    ]


def _about(document: Document) -> list[str]:
    threat, cost, suite = document.threat, document.cost, f"suite {document.suite.name}; seed {document.seed}"
    spent = f"{count(cost.forwards)} forwards, {count(cost.backwards)} backwards, {count(cost.queries)} queries"
    held = document.model.held_against
    return [
        f"{document.model.source}, {counted(document.headline.samples, 'sample')} of {document.data.source}",
        f"{threat.norm} <= {threat.eps}, {threat.access}, {threat.goal}; {suite}",
        f"{spent}, {span(cost.seconds)} of work",
        *([] if document.subject.kind == "model" else [f"judged: {judged(document)}"]),
        *([f"the graph under the certificates was held against {held}"] if held else []),
    ]


def plain(document: Document) -> str:
    """The summary without colour or drawing, for files and pipes; figures and names are fit for scripts to find."""
    counts = ", ".join(f"{status} {n}" for status, n in document.counts().items() if n)
    out = [*_about(document), "", document.headline.statement, ""]
    for name, value, bounds in _figures(document):
        out.append(f"{name:<36}{value:>8}" + (f"   95 % interval {bounds}" if bounds else ""))
    out += ["", counts]
    if document.gate is not None:
        out.append(f"gate {verdict_of(document.gate)}")
    out += [f"{b.title}: {b.text}" for b in banners(document)]
    for f in document.findings:
        said = " ".join(f"{f.severity}: {f.title}. {sentences(f.message, f.remedy)} [{f.code}]".split())
        out += wrap(said, _LINE, subsequent_indent="    ", break_on_hyphens=False)
    return _clean("\n".join(out)) + "\n"


def _bar(document: Document) -> Text:
    """The statuses as one line of blocks, rounded so that the line keeps its width."""
    counts, n, out, done, drawn = document.counts(), max(1, len(document.samples)), Text(), 0, 0
    for status in PARTS:
        done += counts[status]
        width = round(_WIDTH * done / n) - drawn
        out.append(_BAR.get(status, "░") * width, style=_COLOURS.get(status, "bright_black"))
        drawn += width
    return out


def rich_summary(document: Document) -> RenderableType:
    """The summary for a terminal. Names come from files: nothing in them is read as markup or steers the terminal."""
    about = [Text(_clean(line), style="bright_black") for line in _about(document)]
    figures = Table(box=None, show_header=False, pad_edge=False)
    figures.add_column()
    figures.add_column(justify="right", style="bold")
    figures.add_column(style="bright_black")
    for name, value, bounds in _figures(document):
        figures.add_row(Text(name), Text(_clean(value)), Text(_clean(f"95 % interval {bounds}") if bounds else ""))
    key = Text()
    for status, n in ((s, document.counts()[s]) for s in PARTS):
        if n:
            key.append(f"{status} {n}  ", style=_COLOURS.get(status, "bright_black"))
    rest: list[Text] = []
    if (gate := document.gate) is not None:
        rest.append(Text(_clean(f"gate {verdict_of(gate)}"), style="bold green" if gate.passed else "bold red"))
    for b in banners(document):
        style = "bold red" if b.kind == "bad" else "bold yellow"
        rest.append(Text.assemble((f"{b.title}  ", style), _clean(b.text)))
    for f in document.findings:
        style = {"error": "red", "warning": "yellow"}.get(f.severity, "bright_black")
        rest.append(Text.assemble((f"{f.severity}  ", style), _clean(f.title), (f"  {_clean(f.code)}", "bright_black")))
        for line in (f.message, f.remedy):
            if line:
                rest.append(Text(f"    {_clean(line)}"))
    title = Text(_clean(document.headline.statement), style="bold")
    return Group(
        *about, Text(), title, Text(), _bar(document), key, Text(), figures, *([Text()] if rest else []), *rest
    )


def show(document: Document, console: Console) -> None:
    """Prints the summary: drawn on a terminal, plain off it."""
    if console.is_terminal:
        console.print(rich_summary(document))
    else:
        console.file.write(plain(document))
