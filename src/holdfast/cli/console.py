"""What the commands say: results to standard output, progress and errors to standard error.

On a terminal progress is a bar with an estimate of what is left; off it, a plain line for each stage, and more if it is
long. Colours are rich's, which leaves them out off a terminal and under NO_COLOR.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from holdfast.api.results import Block, Rows
from holdfast.api.voice import Stages, Voice, bars

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Spoken", "Stages", "fault", "note", "out", "progress", "say", "say_json", "show", "table", "volume"]


@dataclass
class Volume:
    """How much is said; set by -q and -v."""

    quiet: bool = False
    verbose: bool = False


volume = Volume()
_EVERY = 30.0  # seconds between two lines about the same stage, off a terminal


class Spoken(Voice):
    """Says at once what a verb has to say."""

    @override
    def note(self, text: str) -> None:
        super().note(text)
        note(text)

    @override
    def progress(self, interrupted: str = "") -> AbstractContextManager[Stages]:
        return progress(interrupted)


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
    if not volume.quiet:
        _err().print(text, style="bright_black", markup=False)


def fault(text: str) -> None:
    """An error, in one red line."""
    _err().print(f"error: {' '.join(text.split())}", style="red", markup=False)


def show(blocks: Iterable[Block]) -> None:
    """The face of a result: its lines and tables."""
    for block in blocks:
        if isinstance(block, Rows):
            table(block.heads, block.rows)
        else:
            say(block)


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
def progress(interrupted: str = "") -> Generator[Stages, None, None]:
    """Reports of progress for the time being: ``with progress() as tell: tell("attack", 3, 10)``.

    Args:
        interrupted: what to say when a person stops the work: how to go on.
    """
    console = _err()
    try:
        if volume.quiet:
            yield lambda stage, done, total: None
        elif console.is_terminal:
            with bars(console) as tell:
                yield tell
        else:
            yield _lines(console)
    except KeyboardInterrupt:
        if interrupted:
            console.print(f"interrupted; {interrupted}", markup=False)
        raise


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
