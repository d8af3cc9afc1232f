"""``holdfast columns``: a first version of the file that says what the columns of a table may be."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli import options as o
from holdfast.cli.console import note, say
from holdfast.cli.spread import Without, spread
from holdfast.core.errors import UsageError

__all__ = ["columns"]


@spread
def columns(
    data: Annotated[str, typer.Argument(help="The table: csv, or npz with rows of columns.", metavar="FILE")],
    out: Annotated[
        Path | None, typer.Option(help="Where it goes; without it, it is printed.", metavar="FILE", show_default=False)
    ] = None,
    *,
    talk: Annotated[o.TalkOptions, Without("format_")],
) -> None:
    """Write what the columns of a table may be, as --table takes it: a first version, by the values that are there.

    Widen each range to what the column can be, and mark what an attacker cannot change: 'immutable: true'.

    Example: holdfast columns test.csv --out columns.yaml
    """
    from holdfast.core.files import write_whole
    from holdfast.data.load import load_data
    from holdfast.data.table import Table

    if out is not None and out.exists():
        raise UsageError(f"{out} exists; choose another --out, or remove it")
    text = Table.seen_in(load_data(data)).to_yaml()
    note(
        "the ranges are those of the values that are there, widened to whole steps; correct them to what a column can be, "
        "and add 'immutable: true' to what an attacker cannot change"
    )
    if out is None:
        say(text.rstrip())
        return
    write_whole(out, text)
    note(f"columns: {out}; use it with --table {out}")
