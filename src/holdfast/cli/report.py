"""``holdfast report`` and ``diff``: reading runs that are there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from holdfast.api.folders import no_run
from holdfast.cli import options as o
from holdfast.cli.console import Spoken, note, say, say_json
from holdfast.cli.console import out as standard_out
from holdfast.cli.spread import spread
from holdfast.core.errors import DataError, UsageError

__all__ = ["diff", "report", "write_comparison"]


@spread
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folder of a run, or several with --compare.", metavar="RUN...")],
    compare: Annotated[
        bool, typer.Option("--compare", help="Put several runs on one page: table, trade-off, curves.")
    ] = False,
    out: Annotated[Path, typer.Option(help="The page that --compare writes.", metavar="FILE.html")] = Path(
        "compare.html"
    ),
    *,
    talk: o.TalkOptions,
) -> None:
    """Write a run's report anew, or compare runs."""
    if compare:
        no_run(out.parent)
        say(f"comparison of {write_comparison(runs, out)} runs: {out}")
        return
    if len(runs) > 1:
        raise UsageError("several runs on one page need --compare")
    from holdfast.api.report import Report
    from holdfast.report.audits.text import show

    found = Report.load(runs[0])
    found.write(Spoken())
    if talk.json:
        say_json(found.to_dict())
    else:
        show(found.document, standard_out())
        note(f"report: {runs[0] / 'report.html'}")


def write_comparison(runs: list[Path], page: Path) -> int:
    """One page about several runs, each named after its folder (its path, where two folders share a name).

    What is no finished run is left out with a note, so that ``runs/*`` can be given.

    Returns:
        How many were compared.
    """
    from holdfast.audits.document import Document
    from holdfast.report.audits.compare import write_compare

    finished: list[tuple[Path, Document]] = []
    for run in runs:
        try:
            finished.append((run, Document.load(run)))
        except DataError as fault:
            note(f"left out: {fault}")
    names = [run.name for run, _ in finished]
    twice = len(set(names)) < len(names)
    page.parent.mkdir(parents=True, exist_ok=True)
    write_compare(page, [(str(run) if twice else run.name, document) for run, document in finished])
    return len(finished)


@spread
def diff(
    before: Annotated[Path, typer.Argument(help="Folder of the earlier run.", metavar="A")],
    after: Annotated[Path, typer.Argument(help="Folder of the later run.", metavar="B")],
    *,
    talk: o.TalkOptions,
) -> None:
    """What changed from one run to another: figures, and which samples moved."""
    from holdfast.audits.document import Document
    from holdfast.report.audits.diff import diff as compared

    found = compared(Document.load(before), Document.load(after))
    if talk.json:
        say_json(found.as_dict())
    else:
        say(found.text().rstrip())
