"""What a run found, for other tools: the broken inputs as arrays and every sample as a row of a table."""

from __future__ import annotations

import csv
import io
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast.audit.context import Context
from holdfast.audit.document import Document
from holdfast.core.files import write_whole
from holdfast.core.verdict import Status
from holdfast.judge.desk import evaluating

__all__ = ["ARRAYS", "TABLE", "arrays", "export", "table"]

ARRAYS, TABLE = "adversarial.npz", "samples.csv"

_HEADS = (
    "id", "label", "prediction", "status", "distance", "attack", "radius", "method", "guarantee", "forwards", "backwards",
    "queries",
)  # fmt: skip
_STEERS = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would run what follows


def export(context: Context, document: Document) -> None:
    """Writes ``adversarial.npz`` and ``samples.csv`` into the run's folder, each whole or not at all."""
    file = io.BytesIO()
    np.savez_compressed(file, **arrays(context, document))
    write_whole(context.folder.path / ARRAYS, file.getvalue())
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
        "ids": ids, "x": _own(context, clean), "y": context.data.y.numpy()[ids], "adversarial": _own(context, adversarial),
    }  # fmt: skip
    if not context.plan.remote:
        said: list[Tensor] = []
        with torch.no_grad(), evaluating(context.model):
            for part in adversarial.to(context.device).split(context.plan.slots):
                if len(part):
                    said.append(context.model(part).nan_to_num(nan=-torch.inf).argmax(1).cpu())
        values["prediction"] = (torch.cat(said) if said else torch.zeros(0, dtype=torch.int64)).numpy()
    return values


def _own(context: Context, x: Tensor) -> np.ndarray:
    """Inputs as the data have them: a table's columns in their own ranges."""
    columns = context.plan.table
    return (x if columns is None else columns.own(x)).numpy()


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


def _cell(value: object) -> object:
    """A text that a spreadsheet cannot take for a formula.

    Example:
        >>> _cell("=1+1"), _cell(-1), _cell(None)
        ("'=1+1", -1, '')
    """
    if value is None:
        return ""
    return f"'{value}" if isinstance(value, str) and value.startswith(_STEERS) else value
