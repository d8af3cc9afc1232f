"""A run's report files: the page with its pictures, SARIF and JUnit beside ``report.json``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from holdfast.cli.console import note
from holdfast.core.errors import DataError, ModelError, UsageError

if TYPE_CHECKING:
    from holdfast.audit.document import Document
    from holdfast.report import Picture

__all__ = ["render"]


def render(run: Path, document: Document) -> None:
    """Writes the report files of a run whose model and data can still be opened, or without pictures if they cannot."""
    from holdfast.report import write

    try:
        shown = _pictures(run, document)
    except (DataError, ModelError, UsageError) as fault:
        note(f"the page goes without pictures: {fault}")
        shown = []
    write(run, document, shown)


def _pictures(run: Path, document: Document) -> list[Picture]:
    """Broken samples spread evenly over the run; none where the data are no images or the model is an API."""
    import torch

    from holdfast.audit.context import Context
    from holdfast.audit.folder import RunFolder
    from holdfast.core.verdict import Status
    from holdfast.judge.desk import evaluating
    from holdfast.report import Picture
    from holdfast.report.pictures import MOST

    broken = [s for s in document.samples if s.status is Status.BROKEN and s.witness is not None]
    folder = RunFolder(run)
    plan = folder.plan()
    if plan.model is None or plan.remote or len(document.data.shape) != 3 or not broken:
        return []
    context = Context.open(plan, folder)
    if (context.subject.sha256, context.data.sha256) != (document.hashes.model, document.hashes.data):
        raise UsageError("the model or the data are not those of the run any more")
    shown: list[Picture] = []
    for s in broken[:: -(-len(broken) // MOST)]:
        if s.witness is None:
            continue
        x = folder.witness(s.witness.sha256).to(context.device)
        with torch.no_grad(), evaluating(context.model):
            after = int(context.model(x.view(1, *document.data.shape)).argmax())
        shown.append(
            Picture(
                s.id, s.label, s.prediction, after, s.witness.distance, s.witness.attack,
                context.data.x[s.id].numpy(), x.view(*document.data.shape).cpu().numpy(),
            )
        )  # fmt: skip
    return shown
