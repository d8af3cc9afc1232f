"""Tables of numbers with a header and a label column."""

from __future__ import annotations

import csv
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from holdfast.core.errors import DataError, did_you_mean
from holdfast.data.archive import human
from holdfast.data.dataset import Dataset, class_order

__all__ = ["MAX_CELLS", "MAX_FILE", "load_csv"]

MAX_FILE = 2 << 30
MAX_CELLS = 500_000_000

_USUAL = ("label", "y", "target", "class")


def load_csv(
    path: str | Path,
    *,
    label: str | None = None,
    classes: Sequence[str] | None = None,
    max_file: int = MAX_FILE,
    max_cells: int = MAX_CELLS,
) -> Dataset:
    """Read a table whose first row names the columns; every column but the label is a float32 feature.

    Labels are integers; if any is text, all are names: their order is that of ``classes``, else the alphabet's, with a
    note of it.

    Args:
        path: the file; UTF-8, comma-separated, cells quoted with ``"`` where needed.
        label: name of the label column; otherwise the one called label, y, target or class.
        classes: names of the classes in the model's order.
        max_file: most bytes that the file may have, looked at before reading.
        max_cells: most cells that are read.

    Raises:
        DataError: too large, no header or label column, a row of another length, a cell that is no number.
    """
    path = Path(path)
    if path.stat().st_size > max_file:
        raise DataError(f"{path} has {human(path.stat().st_size)}; at most {human(max_file)} are read; use an npz file")
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file, strict=True)
        try:
            header = next(rows, list[str]())
            at = _label_column(header, label, path)
            cells, labels = _read(rows, header, at, path, max_cells)
        except (csv.Error, UnicodeDecodeError) as fault:
            raise DataError(f"{path}, line {rows.line_num}: not a readable table ({fault})") from None
    if not labels:
        raise DataError(f"{path} has a header and no rows")
    x = np.frombuffer(cells, np.float32).reshape(len(labels), len(header) - 1).copy()
    y, found, notes = _numbered(labels, classes, path)
    features = [name.strip() for i, name in enumerate(header) if i != at]
    return Dataset.of(x, y, name=path.name, notes=notes, classes=found, features=features)


def _label_column(header: list[str], label: str | None, path: Path) -> int:
    names = [name.strip() for name in header]
    if len(names) < 2 or all(_is_number(name) for name in names):
        raise DataError(
            f"{path}: the first row must name a label column and at least one feature, got {', '.join(names)[:200]!r}"
        )
    if len(set(names)) != len(names):
        raise DataError(f"{path}: two columns have the same name")
    if label is not None:
        if label not in names:
            raise DataError(f"{path} has no column '{label}'. {did_you_mean(label, names)}")
        return names.index(label)
    found = [i for i, name in enumerate(names) if name.lower() in _USUAL]
    if len(found) != 1:
        raise DataError(f"{path}: {len(found)} columns are called {', '.join(_USUAL)}; name the labels' column 'label'")
    return found[0]


def _read(
    rows: Iterator[list[str]], header: list[str], at: int, path: Path, max_cells: int
) -> tuple[array[float], list[str]]:
    cells, labels = array("f"), list[str]()
    for number, row in enumerate(rows, 2):
        if not row:
            continue
        if len(row) != len(header):
            raise DataError(f"{path}, row {number}: {len(row)} cells, but the header has {len(header)}")
        if len(cells) + len(labels) + len(row) > max_cells:
            raise DataError(f"{path} has more than {max_cells} cells; use an npz file")
        for i, cell in enumerate(row):
            if i == at:
                labels.append(cell.strip())
            elif _is_number(cell):
                cells.append(float(cell))
            else:
                raise DataError(f"{path}, row {number}, column '{header[i]}': {cell[:40]!r} is no number")
    return cells, labels


def _numbered(
    labels: list[str], classes: Sequence[str] | None, path: Path
) -> tuple[np.ndarray, Sequence[str] | None, list[str]]:
    try:
        return np.array([int(text) for text in labels], np.int64), classes, []
    except ValueError:
        order, notes = class_order(labels, classes, str(path))
        number = {name: i for i, name in enumerate(order)}
        return np.array([number[name] for name in labels], np.int64), order, notes


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
