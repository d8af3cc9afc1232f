"""From what a search found to what its record claims: ruled on by the referee, its inputs stored beside the journal."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from holdfast.audits.context import Context
from holdfast.audits.records import Claims, Fault, Ids, Spent, WitnessRecord
from holdfast.core.criterion import usable
from holdfast.core.problem import Problem
from holdfast.core.verdict import NoAnswer
from holdfast.judge.asking import ModelFault, ask
from holdfast.judge.judged import Judged, judged
from holdfast.judge.ledger import Ledger
from holdfast.judge.outcome import Outcome
from holdfast.numerics.evaluation import evaluating

__all__ = ["ALONE", "answered_with", "as_number", "claims_of", "raised_on", "spent", "unanswered"]

ALONE = "scores, asked again alone"
"""What is met at an input that the model gave no usable answer to among others, and does give one to by itself."""


def claims_of(
    context: Context, problem: Problem, outcome: Outcome, name: str, authors: Mapping[int, str] | None = None
) -> tuple[Claims, int]:
    """The claims of a search, and the rows with which the referee judged them.

    Args:
        context: the run.
        problem: the samples that were searched.
        outcome: of the search.
        name: whose witnesses these are.
        authors: by id, whose instead, if the referee upholds them.
    """
    done = judged(context.referee(), problem, outcome.away_from_clean())

    def records(which: Tensor, authors: Mapping[int, str]) -> dict[int, WitnessRecord]:
        rows: list[int] = which.nonzero().flatten().cpu().numpy().tolist()
        ids: list[int] = problem.ids[rows].tolist()
        return {i: _record(context, done, row, authors.get(i, name)) for i, row in zip(ids, rows, strict=True)}

    found_at: list[int] = outcome.found_at.cpu().numpy().tolist()
    low_margin: list[float] = outcome.low_margin.clamp(-1e30, 1e30).cpu().numpy().tolist()
    claims = Claims(
        witnesses=records(done.broken, authors or {}),
        marginal=records(done.marginal, {}),
        rejected=tuple(problem.ids[done.rejected.cpu().numpy()].tolist()),
        unanswered=unanswered(context, problem, outcome, name),
        spent=spent(outcome.ledger),
        found_at=tuple(found_at),
        low_margin=tuple(low_margin),
    )
    return claims, done.judging.forwards


def _record(context: Context, done: Judged, row: int, attack: str) -> WitnessRecord:
    prediction = int(done.prediction[row])
    return WitnessRecord(
        distance=float(done.claimed_distance[row]),
        attack=attack,
        sha256=context.folder.store(done.x[row]),
        margin=as_number(done.margin[row]),
        rounding=as_number(done.rounding[row]),
        arithmetics=done.arithmetics,
        prediction=None if prediction < 0 else prediction,
    )


def unanswered(context: Context, problem: Problem, outcome: Outcome, name: str) -> dict[int, NoAnswer]:
    """By id, the nearest input in its set that the model gives no usable answer to."""
    if outcome.no_answer is None or outcome.no_answer_at is None:
        return {}
    rows = outcome.no_answer_at.isfinite().nonzero().squeeze(-1)
    if not len(rows):
        return {}
    x = outcome.no_answer[rows]
    ids: list[int] = problem.ids[rows.cpu().numpy()].tolist()
    distances: list[float] = outcome.no_answer_at[rows].cpu().numpy().tolist()
    records = zip(ids, x, distances, answered_with(context, x), strict=True)
    return {
        i: NoAnswer(distance=distance, attack=name, sha256=context.folder.store(at), met=met)
        for i, at, distance, met in records
    }


def answered_with(context: Context, x: Tensor) -> list[str]:
    """What the model that attacks search on answers to inputs x (n, \\*features) to which it gave no usable answer, in words."""
    if context.plan.remote:
        return ["no scores that can be judged"] * len(x)
    words, rows = list[str](), torch.split(x, 1)
    with torch.no_grad(), evaluating(context.search):
        for row in rows:
            try:
                scores = ask(context.search, row).flatten()
            except ModelFault:
                words.append("an exception, asked again alone")
                continue
            if bool(scores.isnan().any()):
                words.append("NaN")
            elif bool((scores == torch.inf).any()):
                words.append("+infinity")
            else:
                words.append(ALONE if bool(usable(scores)) else "-infinity for every class")
    return words


def as_number(value: Tensor) -> float:
    """A margin as the journal has it: JSON knows no infinity."""
    return float(value.nan_to_num(nan=0.0, posinf=1e30, neginf=-1e30))


def spent(ledger: Ledger) -> Spent:
    """What each sample cost, as a record has it."""
    return Spent(
        forwards=_counts(ledger.forwards), backwards=_counts(ledger.backwards), queries=_counts(ledger.queries)
    )


def _counts(column: Tensor) -> tuple[int, ...]:
    return tuple(column.cpu().numpy().tolist())


def raised_on(ids: np.ndarray, raised: Tensor | None, why: str | None) -> Fault | None:
    """The samples that the model raised on, and what it raised first; None where it raised on none."""
    if raised is None or not bool(raised.any()):
        return None
    lost: Ids = tuple(ids[raised.cpu().numpy()].tolist())
    return Fault(ids=lost, why=why or "")
