"""Writes the report files of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from holdfast.audits.document import Document
from holdfast.core.files import write_whole
from holdfast.report.audits import junit, page, sarif
from holdfast.report.audits.pictures import Picture
from holdfast.report.audits.rows import BrokenRows

__all__ = ["write"]


def write(run: Path, document: Document, pictures: Sequence[Picture] = (), rows: BrokenRows | None = None) -> None:
    """Writes ``report.json``, ``report.html``, ``report.sarif`` and ``junit.xml``, each whole or not at all.

    Args:
        run: the run folder, which exists.
        document: what the audit found.
        pictures: broken samples to show; grey or RGB, the first dozen are used.
        rows: the broken rows of a table.
    """
    document.save(run / "report.json")
    write_whole(run / "report.html", page.render(document, pictures, rows))
    write_whole(run / "report.sarif", sarif.render(document))
    write_whole(run / "junit.xml", junit.render(document))
