"""Which broken samples the page shows, as pictures or as rows of a table, with what the model says of them."""

from __future__ import annotations

import numpy as np

from holdfast.audits.document import Document
from holdfast.audits.export import BrokenInputs
from holdfast.audits.inputs import RunInputs
from holdfast.core.errors import UsageError
from holdfast.core.verdict import Status
from holdfast.report.audits.pictures import MOST, Picture
from holdfast.report.audits.rows import BrokenRows, TableRow

__all__ = ["broken_rows", "pictured", "pictures"]


def pictured(document: Document) -> bool:
    """Whether a page may have pictures or rows: there are broken samples, of a shape that either can show."""
    return len(document.data.shape) in (1, 3) and any(s.status is Status.BROKEN for s in document.samples)


def pictures(run: RunInputs, document: Document) -> list[Picture]:
    """Broken samples spread evenly over the run; none where they are no pictures.

    Raises:
        UsageError: the data are not those of the document.
        JournalError: a witness is missing or was altered.
    """
    _check_same(run, document)
    if len(document.data.shape) != 3:
        return []
    broken = [s for s in document.samples if s.status is Status.BROKEN and s.witness is not None]
    shown: list[Picture] = []
    for s in broken[:: -(-len(broken) // MOST)]:
        if s.witness is None:
            continue
        x = run.folder.witness(s.witness.sha256)
        shown.append(
            Picture(
                id=s.id,
                label=s.label,
                prediction=s.prediction,
                adversarial_prediction=s.witness.prediction,
                distance=s.witness.distance,
                attack=s.witness.attack,
                clean=run.data.x[s.id].numpy(),
                adversarial=x.view(*document.data.shape).numpy(),
            )
        )
    return shown


def broken_rows(run: RunInputs, document: Document) -> BrokenRows | None:
    """All broken samples as rows of a table, in own units; None where columns have no names.

    Raises:
        UsageError: the data are not those of the document.
        JournalError: a witness is missing or was altered.
    """
    _check_same(run, document)
    names, table = run.data.features, run.plan.table
    if names is None or len(document.data.shape) != 1:
        return None
    broken, by_id = BrokenInputs.of(run, document), {s.id: s for s in document.samples}
    width = np.full(len(names), run.plan.high - run.plan.low) if table is None else table.width.numpy()
    rows = [
        TableRow(
            id=i,
            label=by_id[i].label,
            prediction=by_id[i].prediction,
            adversarial_prediction=witness.prediction,
            distance=witness.distance,
            attack=witness.attack,
            clean=clean.astype(np.float64),
            adversarial=adversarial.astype(np.float64),
        )
        for i, clean, adversarial in zip(broken.ids.tolist(), broken.clean, broken.adversarial, strict=True)
        if (witness := by_id[i].witness) is not None
    ]
    return BrokenRows(tuple(rows), names, width) if rows else None


def _check_same(run: RunInputs, document: Document) -> None:
    if run.data.sha256 != document.hashes.data:
        raise UsageError(f"{run.data.name} holds other data than those of the run")
