"""Certified radii as files: arrays, a table and a page with the curves."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from holdfast.api.results import Rows, Saved
from holdfast.core.files import write_whole
from holdfast.report.radii import render
from holdfast.session.session import Session
from holdfast.studies.radii import Column, by_column

__all__ = ["own_rows", "save_columns"]


def save_columns(session: Session, columns: Sequence[Column], out: Path, command: str) -> Saved:
    """Writes what some methods say of every sample: an npz for each, ``radii.csv`` and ``radii.html``."""
    out.mkdir(parents=True, exist_ok=True)
    files = [_array(session, column, out) for column in columns]
    write_whole(out / "radii.csv", _table(session, columns))
    page = render(
        columns, session.data.y.tolist(), norm=str(session.threat.norm), eps=float(session.threat.eps),
        about=f"{session.source}, {session.data.name}", command=command, own=_in_own_units(session, columns),
    )  # fmt: skip
    write_whole(out / "radii.html", page)
    return Saved(files=(*files, out / "radii.csv", out / "radii.html"))


def _array(session: Session, column: Column, out: Path) -> Path:
    values: dict[str, Any] = {
        "id": np.arange(len(column.radius)),
        "y": session.data.y.numpy(),
        "radius": column.radius,
    }
    if column.fit is not None:
        values["fit"] = column.fit
    np.savez(out / f"{column.name}.npz", **values)
    return out / f"{column.name}.npz"


def _table(session: Session, columns: Sequence[Column]) -> str:
    text = StringIO()
    rows = csv.writer(text, lineterminator="\n")
    own = {f"{c.name}: {name}": far for c in columns for name, far in by_column(session, c).items()}
    rows.writerow(["id", "label", *(c.name for c in columns), *own])
    rows.writerows(
        [i, y, *(float(c.radius[i]) for c in columns), *(float(far[i]) for far in own.values())]
        for i, y in enumerate(session.data.y.tolist())
    )
    return text.getvalue()


def own_rows(session: Session, columns: Sequence[Column]) -> Rows | None:
    """How far each column of a table may change, in its own units; None where the data are no such table."""
    own = _in_own_units(session, columns)
    if not own:
        return None
    together = "all columns at once" if str(session.threat.norm) == "linf" else "one column alone"
    return Rows(
        (f"median change in own units, {together}", *(c.name for c in columns)),
        tuple((name, *(f"{far:.4g}" for far in values)) for name, values in own),
    )


def _in_own_units(session: Session, columns: Sequence[Column]) -> list[tuple[str, list[float]]]:
    """For each column of a table, the median change in its own units that each method allows; no radius counts as none."""
    far = [by_column(session, c) for c in columns]
    return [(name, [float(np.median(np.nan_to_num(f[name], posinf=0.0))) for f in far]) for name in far[0]]
