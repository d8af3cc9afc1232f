"""What a run found, for other tools: the broken inputs as arrays, and as rows where they are a table's; every sample as a row."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast.audits.context import Context
from holdfast.audits.document import Document
from holdfast.core.files import write_whole
from holdfast.core.verdict import Status
from holdfast.numerics.evaluation import evaluating
from holdfast.session.session import Session

__all__ = ["ARRAYS", "ROWS", "TABLE", "arrays", "export", "own_rows", "own_values", "rows", "table"]

ARRAYS, ROWS, TABLE = "adversarial.npz", "adversarial.csv", "samples.csv"

_HEADS = (
    "id", "label", "prediction", "status", "distance", "attack", "radius", "method", "guarantee", "forwards", "backwards",
    "queries",
)  # fmt: skip
_STEERS = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would run what follows


def export(context: Context, document: Document) -> None:
    """Writes ``adversarial.npz``, ``samples.csv`` and a table's ``adversarial.csv`` into the run's folder, each whole or not
    at all."""
    file, values = io.BytesIO(), arrays(context, document)
    np.savez_compressed(file, **values)
    write_whole(context.folder.path / ARRAYS, file.getvalue())
    if context.data.features is not None:
        write_whole(context.folder.path / ROWS, rows(context, document, values))
    write_whole(context.folder.path / TABLE, table(document))


def arrays(context: Context, document: Document) -> dict[str, Any]:
    """The broken samples: ``ids`` (m,), ``x`` and ``adversarial`` (m, \\*features), ``y`` (m,) and ``prediction`` (m,).

    Inputs are in the data's own values; the prediction is what the model says of the adversarial one, and is left out for a
    prediction API, which is not asked for it.
    """
    broken = [s for s in document.samples if s.status is Status.BROKEN and s.witness is not None]
    ids = np.array([s.id for s in broken], dtype=np.int64)
    clean = context.data.x[torch.from_numpy(ids)]
    found = [context.folder.witness(s.witness.sha256) for s in broken if s.witness is not None]
    adversarial = torch.stack(found) if found else clean
    values: dict[str, Any] = {
        "ids": ids, "x": own_values(context, clean), "y": context.data.y.numpy()[ids],
        "adversarial": own_values(context, adversarial),
    }  # fmt: skip
    if not context.plan.remote:
        said: list[Tensor] = []
        with torch.no_grad(), evaluating(context.model):
            for part in adversarial.to(context.device).split(context.plan.slots):
                if len(part):
                    said.append(context.model(part.clone()).nan_to_num(nan=-torch.inf).argmax(1).cpu())
        values["prediction"] = (torch.cat(said) if said else torch.zeros(0, dtype=torch.int64)).numpy()
    return values


def rows(context: Context, document: Document, values: Mapping[str, Any]) -> str:
    """The arrays of a table's broken samples as rows with the columns' names, in their own units."""
    far = {s.id: s.witness.distance for s in document.samples if s.witness is not None}
    distance = np.array([far[i] for i in values["ids"].tolist()])
    return own_rows(context, values["ids"], values["adversarial"], distance, values.get("prediction"))


def own_rows(
    session: Session, ids: np.ndarray, own: np.ndarray, distance: np.ndarray, answers: np.ndarray | None
) -> str:
    """Adversarial rows (m, columns) in own units as a table: id, label, what the model says of them, distance, columns."""
    names = dict(enumerate(session.data.classes or ()))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([_cell(name) for name in ("id", "label", "prediction", "distance", *(session.data.features or ()))])
    labels = session.data.y.numpy()[ids].tolist()
    said: list[int | None] = [None] * len(ids) if answers is None else answers.tolist()
    for i, label, answer, far, row in zip(ids.tolist(), labels, said, distance.tolist(), own.tolist(), strict=True):
        answered = "" if answer is None else names.get(answer, answer)
        cells = (i, names.get(label, label), answered, _number(far), *map(_number, row))
        writer.writerow([_cell(cell) for cell in cells])
    return file.getvalue()


def own_values(session: Session, x: Tensor) -> np.ndarray:
    """Inputs as the data have them: a table's columns in their own ranges."""
    columns = session.spec.table
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
            s.id, names.get(s.label, s.label), names.get(s.prediction, s.prediction), str(s.status),
            w and w.distance, w and w.attack, c and c.radius, c and c.method, c and str(c.guarantee),
            s.forwards, s.backwards, s.queries,
        )  # fmt: skip
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
