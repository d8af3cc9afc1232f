"""Predictions on the clean inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from holdfast.audits.claims import raised_on
from holdfast.audits.context import Context
from holdfast.audits.evidence import Evidence
from holdfast.audits.records import AnyRecord, CleanRecord, Ids, Spent
from holdfast.audits.stage import Doubt, Repeatable, ids_of
from holdfast.core.errors import ModelError
from holdfast.judge.asking import Model, ModelFault, ask
from holdfast.numerics.evaluation import evaluating

__all__ = ["CleanStage"]

_CLOSE = 1e-3  # of the largest score: another machine's float32 stays far within it


@dataclass(frozen=True, kw_only=True)
class CleanStage(Repeatable[CleanRecord]):
    """What the model says of each sample as it is."""

    record: ClassVar[type[AnyRecord]] = CleanRecord

    name: str = "clean"
    title: str = "clean predictions"

    @override
    def chosen(self, context: Context, evidence: Evidence) -> np.ndarray:
        return evidence.ids

    @override
    def unit(self, context: Context, evidence: Evidence) -> CleanRecord:
        ids, x = evidence.ids, context.inputs(evidence.ids)
        with torch.no_grad(), evaluating(context.model):
            scores, raised, why = _each(context.model, x, context.plan.slots)
            prediction = scores.nan_to_num(nan=-np.inf).argmax(1).masked_fill(raised, -1)
            if (
                context.subject.kind == "smoothed"
            ):  # g abstains with not-a-number; the stand-in's scores guide the search
                prediction = prediction.masked_fill(scores.isnan().any(1), -1)
                parts = torch.split(x, context.plan.slots)
                scores = torch.cat([context.search(part) for part in parts]).double().cpu()
        predicted: list[int] = prediction.cpu().numpy().tolist()
        return CleanRecord(
            ids=ids_of(ids),
            scores=_rows(scores),
            prediction=tuple(predicted),
            spent=Spent(forwards=(1,) * len(ids), backwards=(0,) * len(ids), queries=(1,) * len(ids)),
            raised=raised_on(ids, raised, why),
        )

    @override
    def failed(self, ids: Ids, why: str) -> CleanRecord:
        none = (0,) * len(ids)
        return CleanRecord(
            ids=ids,
            scores=((),) * len(ids),
            prediction=(-1,) * len(ids),
            spent=Spent(forwards=none, backwards=none, queries=none),
            fault=self.fault(why, ids),
        )

    @override
    def differences(self, told: CleanRecord, due: CleanRecord) -> Iterator[Doubt]:
        yield from self.differing(told, due, ("ids", "prediction"))
        if len(told.scores) != len(due.scores) or not all(
            map(_close, told.scores, due.scores, [_size(due)] * len(due.ids))
        ):
            yield Doubt("has other scores than the model gives")


def _close(told: tuple[float, ...], due: tuple[float, ...], size: float) -> bool:
    return len(told) == len(due) and np.allclose(told, due, rtol=0, atol=_CLOSE * size, equal_nan=True)


def _size(record: CleanRecord) -> float:
    scores = np.array(record.scores, dtype=np.float64)
    return max(1.0, float(np.abs(scores[np.isfinite(scores)]).max(initial=0)))


def _rows(scores: Tensor) -> tuple[tuple[float, ...], ...]:
    """Scores as a record has them: plus infinity is no score."""
    rows: list[list[float]] = scores.masked_fill(scores == torch.inf, torch.nan).cpu().numpy().tolist()
    return tuple(tuple(row) for row in rows)


def _each(model: Model, x: Tensor, slots: int) -> tuple[Tensor, Tensor, str]:
    """(n, K) float64 scores, (n,) bool the rows that the model raises on, NaN in the scores, and what it raised first.

    Raises:
        ModelError: it raises on every row.
    """
    rows, fault = list[Tensor | None](), ""
    parts = [*torch.split(x, slots)][::-1]
    while parts:
        part = parts.pop()
        try:
            rows += ask(model, part).double().cpu().unbind()
        except ModelFault as error:
            fault = fault or str(error)
            if len(part) == 1:
                rows.append(None)
            else:
                parts += [*torch.tensor_split(part, 2)][::-1]
    known = [row for row in rows if row is not None]
    if not known:
        raise ModelError(f"the model raises {fault}")
    lost = torch.full_like(known[0], torch.nan)
    scores = torch.stack([lost if row is None else row for row in rows])
    return scores, torch.tensor([row is None for row in rows]), fault
