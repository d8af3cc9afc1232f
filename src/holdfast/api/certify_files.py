"""Certified radii as files: arrays, a table and a page with the curves."""

from __future__ import annotations

import csv
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from holdfast.api.results import Rows, Saved
from holdfast.core.files import write_whole
from holdfast.report.studies import page
from holdfast.session.session import Session
from holdfast.studies.common.columns import RadiiColumn
from holdfast.studies.radii import RadiiResult

__all__ = ["own_rows", "save_columns"]


def save_columns(session: Session, result: RadiiResult, out: Path, command: str) -> Saved:
    """Writes what some methods say of every sample: an npz for each, ``radii.csv`` and ``radii.html``."""
    out.mkdir(parents=True, exist_ok=True)
    files = [_array(session, column, out) for column in result.columns]
    write_whole(out / "radii.csv", _table(result))
    write_whole(out / "radii.html", page(result, f"{session.source}, {session.data.name}", command))
    return Saved(files=(*files, out / "radii.csv", out / "radii.html"))


def _array(session: Session, column: RadiiColumn, out: Path) -> Path:
    values: dict[str, Any] = {
        "id": np.arange(len(column.radius)),
        "y": session.data.y.numpy(),
        "radius": column.radius,
    }
    if column.fit is not None:
        values["fit"] = column.fit
    np.savez(out / f"{column.name}.npz", **values)
    return out / f"{column.name}.npz"


def _table(result: RadiiResult) -> str:
    text, columns = StringIO(), result.columns
    rows = csv.writer(text, lineterminator="\n")
    own = {f"{c}: {name}": far for c, changes in result.own.items() for name, far in changes.items()}
    rows.writerow(["id", "label", *(c.name for c in columns), *own])
    rows.writerows(
        [i, y, *(float(c.radius[i]) for c in columns), *(float(far[i]) for far in own.values())]
        for i, y in enumerate(result.labels)
    )
    return text.getvalue()


def own_rows(result: RadiiResult) -> Rows | None:
    """How far each column of a table may change, in its own units; None where the data are no such table."""
    own = result.own_medians()
    if not own:
        return None
    together = "all columns at once" if str(result.norm) == "linf" else "one column alone"
    return Rows(
        (f"median change in own units, {together}", *(c.name for c in result.columns)),
        tuple((name, *(f"{far:.4g}" for far in values)) for name, values in own),
    )
