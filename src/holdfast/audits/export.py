"""What a run found, for other tools: the broken inputs as arrays, and as rows where they are a table's; every sample as a row."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast.audits.document import Document
from holdfast.audits.inputs import RunInputs
from holdfast.core.files import write_whole
from holdfast.core.verdict import Status
from holdfast.data.dataset import Dataset
from holdfast.data.table import Table

__all__ = ["ARRAYS", "ROWS", "TABLE", "BrokenInputs", "export", "own_rows", "own_values", "rows", "table"]

ARRAYS, ROWS, TABLE = "adversarial.npz", "adversarial.csv", "samples.csv"

_HEADS = (
    "id", "label", "prediction", "status", "distance", "attack", "radius", "method", "guarantee", "forwards", "backwards",
    "queries",
)  # fmt: skip
_STEERS = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would run what follows


@dataclass(frozen=True, kw_only=True)
class BrokenInputs:
    """The broken samples of a run, in the data's own values.

    Attributes:
        ids: (m,) rows of the data.
        labels: (m,).
        clean: (m, \\*features).
        adversarial: (m, \\*features).
        distance: (m,) between the two, in the threat model's norm.
        prediction: (m,) what the model says of the adversarial ones; None where its answers name no class.
    """

    ids: np.ndarray
    labels: np.ndarray
    clean: np.ndarray
    adversarial: np.ndarray
    distance: np.ndarray
    prediction: np.ndarray | None

    @classmethod
    def of(cls, run: RunInputs, document: Document) -> BrokenInputs:
        """Those of a document: what lies beside its journal, and what it says of them.

        Raises:
            JournalError: a witness is missing or was altered.
        """
        pairs = [(s, s.witness) for s in document.samples if s.status is Status.BROKEN and s.witness is not None]
        ids = np.array([s.id for s, _ in pairs], dtype=np.int64)
        clean = run.data.x[torch.as_tensor(ids)]
        stored = [run.folder.witness(witness.sha256) for _, witness in pairs]
        predictions = [witness.prediction for _, witness in pairs if witness.prediction is not None]
        return cls(
            ids=ids,
            labels=run.data.y.numpy()[ids],
            clean=own_values(run.plan.table, clean),
            adversarial=own_values(run.plan.table, torch.stack(stored) if stored else clean),
            distance=np.array([witness.distance for _, witness in pairs], dtype=np.float64),
            prediction=np.array(predictions, dtype=np.int64) if len(predictions) == len(pairs) else None,
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """By the names that ``adversarial.npz`` has."""
        named = {"ids": self.ids, "x": self.clean, "y": self.labels, "adversarial": self.adversarial}
        return named if self.prediction is None else named | {"prediction": self.prediction}


def export(run: RunInputs, document: Document) -> None:
    """Writes ``adversarial.npz``, ``samples.csv`` and a table's ``adversarial.csv`` into the run's folder, each whole or not
    at all."""
    file, broken = io.BytesIO(), BrokenInputs.of(run, document)
    named: dict[str, Any] = broken.arrays()
    np.savez_compressed(file, **named)
    write_whole(run.folder.path / ARRAYS, file.getvalue())
    if run.data.features is not None:
        write_whole(run.folder.path / ROWS, rows(run.data, broken))
    write_whole(run.folder.path / TABLE, table(document))


def rows(data: Dataset, broken: BrokenInputs) -> str:
    """The broken samples of a table as rows with the columns' names, in their own units."""
    return own_rows(data, broken.ids, broken.adversarial, broken.distance, broken.prediction)


def own_rows(data: Dataset, ids: np.ndarray, own: np.ndarray, distance: np.ndarray, answers: np.ndarray | None) -> str:
    """Adversarial rows (m, columns) in own units as a table: id, label, what the model says of them, distance, columns."""
    names = dict(enumerate(data.classes or ()))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([_cell(name) for name in ("id", "label", "prediction", "distance", *(data.features or ()))])
    labels = data.y.numpy()[ids].tolist()
    said: list[int | None] = [None] * len(ids) if answers is None else answers.tolist()
    for i, label, answer, far, row in zip(ids.tolist(), labels, said, distance.tolist(), own.tolist(), strict=True):
        answered = "" if answer is None else names.get(answer, answer)
        cells = (i, names.get(label, label), answered, _number(far), *map(_number, row))
        writer.writerow([_cell(cell) for cell in cells])
    return file.getvalue()


def own_values(columns: Table | None, x: Tensor) -> np.ndarray:
    """Inputs as the data have them: a table's columns in their own ranges."""
    return (x if columns is None else columns.own(x)).detach().cpu().numpy()


def table(document: Document) -> str:
    """One row a sample, labels by their names where these are known."""
    names = dict(enumerate(document.data.class_names))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_HEADS)
    for s in document.samples:
        w, c = s.witness, s.certificate
        row = (
            s.id,
            names.get(s.label, s.label),
            names.get(s.prediction, s.prediction),
            str(s.status),
            w and w.distance,
            w and w.attack,
            c and c.radius,
            c and c.method,
            c and str(c.guarantee),
            s.forwards,
            s.backwards,
            s.queries,
        )
        writer.writerow([_cell(value) for value in row])
    return file.getvalue()


def _number(value: float) -> float | int:
    """With the digits that its float32 has, whole where it is.

    Example:
        >>> _number(10.9399995803833), _number(37.0)
        (10.94, 37)
    """
    short = float(str(np.float32(value)))
    return int(short) if short.is_integer() else short


def _cell(value: object) -> object:
    """A text that a spreadsheet cannot take for a formula.

    Example:
        >>> _cell("=1+1"), _cell(-1), _cell(None)
        ("'=1+1", -1, '')
    """
    if value is None:
        return ""
    return f"'{value}" if isinstance(value, str) and value.startswith(_STEERS) else value
