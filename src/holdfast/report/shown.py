"""Which broken samples the page shows, with what the model says of them."""

from __future__ import annotations

import torch

from holdfast.audit.context import Context
from holdfast.audit.document import Document
from holdfast.audit.plan import Plan
from holdfast.core.errors import UsageError
from holdfast.core.verdict import Status
from holdfast.judge.desk import evaluating
from holdfast.report.pictures import MOST, Picture

__all__ = ["pictured", "pictures"]


def pictured(plan: Plan, document: Document) -> bool:
    """Whether a page has pictures: broken images of a model that can be opened from its file."""
    broken = any(s.status is Status.BROKEN for s in document.samples)
    return plan.model is not None and not plan.remote and len(document.data.shape) == 3 and broken


def pictures(context: Context, document: Document) -> list[Picture]:
    """Broken samples spread evenly over the run.

    Raises:
        UsageError: the model or the data are not those of the document.
        JournalError: a witness is missing or was altered.
    """
    if (context.subject.sha256, context.data.sha256) != (document.hashes.model, document.hashes.data):
        raise UsageError("the model or the data are not those of the run any more")
    broken = [s for s in document.samples if s.status is Status.BROKEN and s.witness is not None]
    shown: list[Picture] = []
    for s in broken[:: -(-len(broken) // MOST)]:
        if s.witness is None:
            continue
        x = context.folder.witness(s.witness.sha256).to(context.device)
        with torch.no_grad(), evaluating(context.model):
            after = int(context.model(x.view(1, *document.data.shape)).argmax())
        shown.append(
            Picture(
                s.id, s.label, s.prediction, after, s.witness.distance, s.witness.attack,
                context.data.x[s.id].numpy(), x.view(*document.data.shape).cpu().numpy(),
            )
        )  # fmt: skip
    return shown
