"""What a journal claims of inputs, held against the model: witnesses judged anew, inputs without an answer asked anew."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from holdfast.audits.claims import ALONE, answered_with, as_number
from holdfast.audits.context import Context
from holdfast.audits.evidence import Claim
from holdfast.core.cost import Cost
from holdfast.core.verdict import NoAnswer
from holdfast.judge.referee import Judgement
from holdfast.numerics.distance import contains, measured

__all__ = ["Notes", "is_deterministic", "reask", "rejudge"]

_CLOSE = 1e-3  # of the largest score: another machine's float32 stays far within it
_SAME = 1e-9  # of a distance


@dataclass(kw_only=True)
class Notes:
    """What a look at a journal comes to.

    Attributes:
        witnesses: how many claims were judged.
        certificates: how many were proved again.
        marginal: ids of claims that flip within the rounding.
        problems: what does not hold.
        unread: what cannot be derived for this plan.
        cost: what was asked of the model to judge the claims and to draw the certificates of smoothing again.
    """

    witnesses: int = 0
    certificates: int = 0
    marginal: list[int] = field(default_factory=list[int])
    problems: list[str] = field(default_factory=list[str])
    unread: list[str] = field(default_factory=list[str])
    cost: Cost = field(default_factory=Cost)

    def sample(self, i: int, text: str) -> None:
        """A problem with one sample."""
        self.problems.append(f"sample {i}: {text}")


def is_deterministic(context: Context) -> bool:
    """The model can be asked again, and answers the same."""
    return not context.randomised and not context.plan.remote


def rejudge(
    context: Context, claims: Iterable[tuple[int, Claim]], eps: float, score_sizes: Mapping[int, float], notes: Notes
) -> None:
    """Claims of one stage, judged by a referee that has not seen them.

    Args:
        context: the run.
        claims: (id, claim); one of no stage is on the edge and need only lie in the set.
        eps: the set's size.
        score_sizes: by id, the largest clean score.
        notes: takes what is found.
    """
    kept = sorted(claims, key=lambda pair: pair[0])
    if not kept:
        return
    tensors = [context.folder.witness(claim.witness.sha256).to(context.device) for _, claim in kept]
    problem = context.problem(np.array([i for i, _ in kept]), eps)
    stored = torch.stack(tensors)
    distance: list[float] = measured(problem.set, stored, problem.x).cpu().numpy().tolist()
    ruling = context.referee().judge(problem, stored)
    notes.witnesses += len(kept)
    notes.cost += Cost(forwards=ruling.forwards, queries=ruling.forwards)
    for k, (i, claim) in enumerate(kept):
        _compare(context, i, claim, _Anew.of(ruling, k, distance[k], score_sizes.get(i, 0.0)), notes)


@dataclass(frozen=True, kw_only=True)
class _Anew:
    """A claim as the referee finds it now.

    Attributes:
        stored_at: distance of the stored input.
        distance: of the input as the referee leaves it.
        close: how far margins may lie apart on another machine.
    """

    stored_at: float
    distance: float
    inside: bool
    holds: bool
    margin: float
    close: float
    prediction: int | None
    arithmetics: tuple[str, ...]

    @classmethod
    def of(cls, ruling: Judgement, k: int, stored_at: float, score_size: float) -> _Anew:
        margin, label = as_number(ruling.margin[k]), int(ruling.prediction[k])
        return cls(
            stored_at=stored_at,
            distance=float(ruling.distance[k]),
            inside=bool(ruling.inside[k]),
            holds=bool(ruling.holds[k]),
            margin=margin,
            # of the scores that made the margin; rounding that the model's own inside makes of them shows here too
            close=max(_CLOSE * max(score_size, abs(margin)), 4 * as_number(ruling.rounding[k])),
            prediction=None if label < 0 else label,
            arithmetics=ruling.arithmetics,
        )


def _compare(context: Context, i: int, claim: Claim, due: _Anew, notes: Notes) -> None:
    told, rounding = claim.witness, claim.rounding
    if rounding > due.close:
        notes.sample(i, f"the rounding of its witness, {rounding:.3g}, is none of this model's")
    slack = min(rounding, due.close) + 1e-9 * abs(told.margin)
    moved = abs(due.distance - told.distance) > _SAME * max(1.0, told.distance)
    if abs(due.stored_at - told.distance) > _SAME * max(1.0, due.stored_at):
        notes.sample(i, f"its witness lies at {due.stored_at:.6g}, not at {told.distance:.6g}")
    elif not due.inside:
        notes.sample(i, "its witness does not lie in the set")
    elif claim.stage == "":
        return
    elif told.arithmetics != due.arithmetics:
        notes.sample(
            i,
            f"its witness is said to hold in {_listed(told.arithmetics)}; the model is asked in {_listed(due.arithmetics)}",
        )
    elif due.holds and not moved:
        if is_deterministic(context):
            _compare_answer(i, claim, due, slack, notes)
    elif max(due.margin, 0.0) - told.margin <= slack:
        # where the referee had to move it, it did not hold where it was stored: the margin there was at least 0
        notes.marginal.append(i)
    else:
        notes.sample(i, f"its witness does not break the model any more (margin {due.margin:.3g})")


def _compare_answer(i: int, claim: Claim, due: _Anew, slack: float, notes: Notes) -> None:
    told = claim.witness
    if abs(told.margin - due.margin) > max(slack, 1e-3 * due.close):
        notes.sample(i, f"its witness is said to have the margin {told.margin:.3g}, not {due.margin:.3g}")
    elif told.prediction != due.prediction:
        notes.sample(i, f"its witness is said to be of class {told.prediction}, not {due.prediction}")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def reask(context: Context, told: Mapping[int, NoAnswer], notes: Notes) -> None:
    """Inputs that the model is said to have no decision for: where they lie, and what it answers."""
    if not told:
        return
    ids = np.array(sorted(told), dtype=np.int64)
    ends = [told[i] for i in ids.tolist()]
    x = torch.stack([context.folder.witness(end.sha256) for end in ends]).to(context.device)
    problem = context.problem(ids, float("inf"))
    inside: list[bool] = contains(problem.set, x, problem.x).cpu().numpy().tolist()
    distance: list[float] = measured(problem.set, x, problem.x).cpu().numpy().tolist()
    answers = answered_with(context, x) if is_deterministic(context) else [end.met for end in ends]
    for i, end, within, far, met in zip(ids.tolist(), ends, inside, distance, answers, strict=True):
        if not within or abs(far - end.distance) > _SAME * max(1.0, far):
            notes.sample(i, f"the input without an answer lies at {far:.6g}, not where it is said to")
        elif met != end.met:
            notes.sample(i, f"the model is said to answer with {end.met}, and answers with {met}")
        elif met == ALONE:
            notes.unread.append(f"sample {i}: that the model gave no answer to an input; asked alone, it does")
