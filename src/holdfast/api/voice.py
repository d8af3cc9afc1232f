"""What is said while a verb works: notes, and how far it is; a caller hears as much as he wants.

On a terminal and in a notebook progress is a bar with an estimate of what is left; nothing is shown elsewhere.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Progress", "Stages", "Voice", "bars", "shown"]

Stages = Callable[[str, int, int], None]
"""Told the stage, how much of it is done, and of how much."""
Progress = bool | Stages
"""Whether progress is shown where a person looks, or who is told of it."""


class Voice:
    """Keeps notes for the result, and shows progress where that is wanted and a person looks.

    Attributes:
        notes: what was said so far.
    """

    def __init__(self, progress: Progress = True) -> None:
        """Takes what a caller says of progress."""
        self.notes: list[str] = []
        self._progress = progress

    def note(self, text: str) -> None:
        """Something that a reader of the result must know."""
        self.notes.append(text)

    def progress(self, interrupted: str = "") -> AbstractContextManager[Stages]:
        """Reports of progress for the time being: ``with voice.progress() as tell: tell("attack", 3, 10)``.

        Args:
            interrupted: what to say when a person stops the work: how to go on.
        """
        if callable(self._progress):
            return nullcontext(self._progress)
        if not self._progress or not shown():
            return nullcontext(_silent)
        from rich.console import Console

        return bars(Console(stderr=True, highlight=False, soft_wrap=True))


def shown() -> bool:
    """Whether a person looks: standard error is a terminal, or this is a notebook.

    Example:
        >>> isinstance(shown(), bool)
        True
    """
    return sys.stderr.isatty() or _in_a_notebook()


def _in_a_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


def _silent(stage: str, done: int, total: int) -> None:
    """Tells nobody."""


@contextmanager
def bars(console: Console) -> Generator[Stages, None, None]:
    """A bar for each stage, with the time that is left."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<28}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as drawn:
        tasks: dict[str, TaskID] = {}

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = drawn.add_task(stage, total=total)
            drawn.update(tasks[stage], completed=done, total=total)

        yield tell
