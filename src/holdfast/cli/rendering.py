"""A run's report files: the page with the broken samples, SARIF and JUnit beside ``report.json``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from holdfast.cli.console import note
from holdfast.core.errors import BudgetError, DataError, JournalError, ModelError, UsageError

if TYPE_CHECKING:
    from holdfast.audits.document import Document
    from holdfast.audits.plan import Plan

__all__ = ["render"]


def render(run: Path, document: Document, at: Plan | None = None) -> None:
    """Writes the report files of a run; the page goes without the broken samples where its model or data cannot be
    opened any more.

    Args:
        run: the run's folder.
        document: what the audit found.
        at: its plan as the caller gave it, with its files where they are now; None: the folder's own, which is trusted
            with nothing.
    """
    from holdfast.audits.context import Context
    from holdfast.audits.folder import RunFolder
    from holdfast.audits.places import Places
    from holdfast.report.audits import write
    from holdfast.report.audits.shown import broken_rows, pictured, pictures

    folder, shown, rows = RunFolder(run), [], None
    plan = folder.plan()
    if pictured(plan, document):
        try:
            context = Context.open(plan, folder, at=Places().located(plan, folder) if at is None else at)
            shown, rows = pictures(context, document), broken_rows(context, document)
        except (BudgetError, DataError, JournalError, ModelError, UsageError) as fault:
            note(f"the page goes without the broken samples: {fault}")
    write(run, document, shown, rows)
