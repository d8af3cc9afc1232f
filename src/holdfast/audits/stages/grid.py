"""The witnesses as inputs that lie on the grid, saved as pictures where they are pictures, and judged after loading."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from holdfast.audits.context import Context
from holdfast.audits.evidence import Evidence
from holdfast.audits.pictures import altered, in_8_bits, pictured, through_png
from holdfast.audits.records import AnyRecord, GridRecord, Ids
from holdfast.audits.stage import Doubt, Stage, ids_of
from holdfast.core.criterion import Misclassified
from holdfast.core.problem import Problem
from holdfast.judge.referee import Judgement
from holdfast.numerics.evaluation import evaluating
from holdfast.numerics.project import snap_to_grid

__all__ = ["GridStage"]


@dataclass(frozen=True, kw_only=True)
class GridStage(Stage[GridRecord]):
    """Broken samples, where inputs must lie on a grid."""

    record: ClassVar[type[AnyRecord]] = GridRecord

    name: str = "grid"

    @override
    def chosen(self, context: Context, evidence: Evidence) -> np.ndarray:
        return np.array(sorted(evidence.broken), dtype=np.int64)

    @override
    def unit(self, context: Context, evidence: Evidence) -> GridRecord:
        ids = self.chosen(context, evidence)
        if not len(ids):
            return GridRecord()
        problem, ruling = _on_levels(context, ids, evidence)
        loaded = through_png(context, ids, ruling.x)
        return GridRecord(
            ids=ids_of(ids),
            broken_on_grid=ids_of(ids[ruling.holds.cpu().numpy()]),
            referee=ruling.forwards,
            saved=0 if loaded is None else len(ids),
            still_breaking=0 if loaded is None else _breaking(context, problem, loaded),
        )

    @override
    def failed(self, ids: Ids, why: str) -> GridRecord:
        return GridRecord(fault=self.fault(why, ids))

    @override
    def doubts(self, context: Context, evidence: Evidence, told: GridRecord) -> Iterator[Doubt]:
        yield from super().doubts(context, evidence, told)
        ids, holds, saved, breaking = self.chosen(context, evidence), Ids(), 0, 0
        if len(ids):
            problem, ruling = _on_levels(context, ids, evidence)
            holds = ids_of(ids[ruling.holds.cpu().numpy()])
            if pictured(context, ruling.x):
                saved, breaking = len(ids), _breaking(context, problem, in_8_bits(ruling.x))
                for i in altered(context, ids, ruling.x):
                    yield Doubt("its saved picture shows something else than its witness", sample=i)
        if told.broken_on_grid != holds:
            yield Doubt("has other witnesses on the grid than the model breaks on")
        same = (told.saved, told.still_breaking) == (saved, breaking)
        if not same and not context.randomised and not context.plan.remote:
            words = (
                f"says that {told.still_breaking} of {told.saved} pictures break the model, not {breaking} of {saved}"
            )
            yield Doubt(words)


def _on_levels(context: Context, ids: np.ndarray, evidence: Evidence) -> tuple[Problem, Judgement]:
    """The witnesses of broken samples moved to the grid, and judged there."""
    problem = context.problem(ids)
    problem = replace(problem, set=replace(problem.set, grid=context.grid))
    first = [evidence.broken[i].witness.sha256 for i in ids.tolist()]
    x = torch.stack([context.folder.witness(sha).to(context.device) for sha in first])
    snapped = snap_to_grid(problem.set, x, problem.x)
    return problem, context.referee().judge(problem, snapped)


def _breaking(context: Context, problem: Problem, loaded: Tensor) -> int:
    """How many witnesses break the model as they come back from pictures."""
    with torch.no_grad(), evaluating(context.model):
        return int(Misclassified().holds(context.model(loaded), problem.y, problem.target).sum())
