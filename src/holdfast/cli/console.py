"""What the commands say: results to standard output, progress and errors to standard error.

On a terminal progress is a bar with an estimate of what is left; off it, a plain line for each stage, and more if it is
long. Colours are rich's, which leaves them out off a terminal and under NO_COLOR.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Stages", "fault", "note", "out", "progress", "say", "say_json", "table", "voice"]


@dataclass
class Voice:
    """How much is said; set by -q and -v."""

    quiet: bool = False
    verbose: bool = False


voice = Voice()
_EVERY = 30.0  # seconds between two lines about the same stage, off a terminal
Stages = Callable[[str, int, int], None]
"""Told the stage, how much of it is done, and of how much."""


def out() -> Console:
    """Standard output."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


def _err() -> Console:
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str, style: str | None = None) -> None:
    """A line of the answer; nothing in it is read as markup."""
    out().print(text, style=style, markup=False)


def say_json(value: Any) -> None:
    """The answer as JSON."""
    print(json.dumps(value, indent=1, default=str, ensure_ascii=False))


def note(text: str) -> None:
    """A line about what is going on, unless --quiet."""
    if not voice.quiet:
        _err().print(text, style="bright_black", markup=False)


def fault(text: str) -> None:
    """An error, in one red line."""
    _err().print(f"error: {' '.join(text.split())}", style="red", markup=False)


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Rows in columns: drawn on a terminal, separated by tabs off it."""
    console = out()
    if not console.is_terminal:
        for row in [heads, *rows]:
            print("\t".join(str(cell) for cell in row))
        return
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, header_style="bold", pad_edge=False)
    for head in heads:
        drawn.add_column(head, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(str(cell)) for cell in row))
    console.print(drawn, soft_wrap=False)


@contextmanager
def progress(interrupted: str = "") -> Iterator[Stages]:
    """Reports of progress for the time being: ``with progress() as tell: tell("attack", 3, 10)``.

    Args:
        interrupted: what to say when a person stops the work: how to go on.
    """
    console = _err()
    try:
        if voice.quiet:
            yield lambda stage, done, total: None
        elif console.is_terminal:
            with _bars(console) as tell:
                yield tell
        else:
            yield _lines(console)
    except KeyboardInterrupt:
        if interrupted:
            console.print(f"interrupted; {interrupted}", markup=False)
        raise


@contextmanager
def _bars(console: Console) -> Iterator[Stages]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<28}", markup=False), BarColumn(bar_width=24), MofNCompleteColumn(),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as bars:
        tasks = {}

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield tell


def _lines(console: Console) -> Stages:
    """One line when a stage ends, and one every half minute of a stage that takes long."""
    begun: dict[str, float] = {}
    said: dict[str, float] = {}
    ended: set[str] = set()

    def tell(stage: str, done: int, total: int) -> None:
        now = monotonic()
        if stage in ended:
            return
        if done < total and stage not in begun:
            begun[stage] = said[stage] = now  # it begins with what an earlier start has done
            return
        start = begun.setdefault(stage, now)
        if done >= total:
            ended.add(stage)
            console.print(f"{stage}: {total} of {total}, {now - start:.1f} s", markup=False)
        elif now - said[stage] >= _EVERY:
            said[stage] = now
            console.print(f"{stage}: {done} of {total} after {now - start:.0f} s", markup=False)

    return tell
