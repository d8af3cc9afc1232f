"""The files of a list that was run: ``verify.json``, and its tables as ``verify.md``."""

from __future__ import annotations

import json
from dataclasses import astuple, fields
from pathlib import Path

from holdfast.core.files import write_whole
from holdfast.verification.summary import BenchmarkSummary, VerifiedList

__all__ = ["cells", "heads", "write_tables"]


def heads() -> list[str]:
    """The heads of the table by benchmark."""
    return [f.name.replace("_", " ") for f in fields(BenchmarkSummary)]


def cells(row: BenchmarkSummary) -> list[str]:
    """A row of the table, as text."""
    return ["-" if v is None else f"{v:.2f}" if isinstance(v, float) else str(v) for v in astuple(row)]


def write_tables(out: Path, verified: VerifiedList) -> None:
    """Writes both files into a folder, each whole or not at all."""
    lines = [heads(), ["---"] * len(heads()), *map(cells, verified.summary)]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    if verified.disagreements:
        text += "\n## Against the list's verdicts\n\n"
    for d in verified.disagreements:
        i = d.instance
        text += f"- {i.benchmark} {i.name}: {d.found}, known {i.verdict} ({i.confidence}); {d.evidence}\n"
    write_whole(out / "verify.md", text)
    write_whole(out / "verify.json", json.dumps(verified.to_dict(), indent=1) + "\n")
