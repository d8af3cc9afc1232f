"""Which broken samples the page shows, as pictures or as rows of a table, with what the model says of them."""

from __future__ import annotations

import numpy as np

from holdfast.audits.context import Context
from holdfast.audits.document import Document
from holdfast.audits.export import BrokenInputs
from holdfast.audits.plan import Plan
from holdfast.core.errors import UsageError
from holdfast.core.verdict import Status
from holdfast.report.audits.pictures import MOST, Picture
from holdfast.report.audits.rows import BrokenRows, TableRow

__all__ = ["broken_rows", "pictured", "pictures"]


def pictured(plan: Plan, document: Document) -> bool:
    """Whether a page may have pictures or rows: broken samples of a model that can be opened from what its plan names."""
    broken = any(s.status is Status.BROKEN for s in document.samples)
    return plan.model is not None and len(document.data.shape) in (1, 3) and broken


def pictures(context: Context, document: Document) -> list[Picture]:
    """Broken samples spread evenly over the run; none where they are no pictures.

    Raises:
        UsageError: the model or the data are not those of the document.
        JournalError: a witness is missing or was altered.
    """
    _same(context, document)
    if len(document.data.shape) != 3:
        return []
    broken = [s for s in document.samples if s.status is Status.BROKEN and s.witness is not None]
    shown: list[Picture] = []
    for s in broken[:: -(-len(broken) // MOST)]:
        if s.witness is None:
            continue
        x = context.folder.witness(s.witness.sha256)
        shown.append(
            Picture(
                id=s.id,
                label=s.label,
                prediction=s.prediction,
                adversarial_prediction=s.witness.prediction,
                distance=s.witness.distance,
                attack=s.witness.attack,
                clean=context.data.x[s.id].numpy(),
                adversarial=x.view(*document.data.shape).numpy(),
            )
        )
    return shown


def broken_rows(context: Context, document: Document) -> BrokenRows | None:
    """All broken samples as rows of a table, in own units; None where columns have no names.

    Raises:
        UsageError: the model or the data are not those of the document.
        JournalError: a witness is missing or was altered.
    """
    _same(context, document)
    names, table = context.data.features, context.plan.table
    if names is None or len(document.data.shape) != 1:
        return None
    broken, by_id = BrokenInputs.of(context, document), {s.id: s for s in document.samples}
    width = np.full(len(names), context.plan.high - context.plan.low) if table is None else table.width.numpy()
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


def _same(context: Context, document: Document) -> None:
    if (context.subject.sha256, context.data.sha256) != (document.hashes.model, document.hashes.data):
        raise UsageError("the model or the data are not those of the run any more")
