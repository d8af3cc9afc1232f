"""Nearer witnesses: bisection toward the clean input, then a short minimal-distortion attack that may only improve.

Its own stage and its own cost: what a suite spends to decide the verdict at eps stays comparable.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.engine import run
from holdfast.attacks.evasion.white.fab_t import FABT
from holdfast.audits.claims import claims_of
from holdfast.audits.context import Context
from holdfast.audits.evidence import Evidence
from holdfast.audits.records import AnyRecord, Ids, ShrinkRecord
from holdfast.audits.stage import Stage, ids_of
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Norm
from holdfast.judge.archive import Keep
from holdfast.judge.inquiry import Inquiry
from holdfast.judge.outcome import Outcome
from holdfast.numerics.evaluation import evaluating
from holdfast.numerics.search import bisect

__all__ = ["ShrinkStage"]

_HALVINGS = 12
_STEPS, _TARGETS = 20, 3


@dataclass(frozen=True, kw_only=True)
class ShrinkStage(Stage[ShrinkRecord]):
    """A nearer witness for each broken sample, and one beyond eps for those that are not."""

    record: ClassVar[type[AnyRecord]] = ShrinkRecord

    name: str = "shrink"
    title: str = "nearest witnesses"

    @override
    def chosen(self, context: Context, evidence: Evidence) -> np.ndarray:
        return evidence.ids[evidence.correct]

    @override
    def author(self, evidence: Evidence, i: int) -> str:
        """That of the witness that it was made of."""
        return evidence.nearest[i].witness.attack if i in evidence.nearest else self.name

    @override
    def unit(self, context: Context, evidence: Evidence) -> ShrinkRecord:
        ids = self.chosen(context, evidence)
        if not len(ids):
            return ShrinkRecord()
        known = {i: claim.witness for i, claim in evidence.nearest.items()}
        problem = context.problem(ids, float("inf"))
        witness = problem.x.clone()
        for k, i in enumerate(ids.tolist()):
            if i in known:
                witness[k] = context.folder.witness(known[i].sha256).to(context.device)
        has_witness = torch.tensor([i in known for i in ids.tolist()], device=context.device)
        scores = torch.as_tensor(evidence.scores_of(ids)).to(context.device, problem.x.dtype)
        outcome = _shrunk(context, problem, witness, has_witness, scores)
        authors = {i: one.attack for i, one in known.items()}
        claims, referee = claims_of(context, problem, outcome, self.name, authors)
        return ShrinkRecord(ids=ids_of(ids), claims=claims, referee=referee)

    @override
    def failed(self, ids: Ids, why: str) -> ShrinkRecord:
        return ShrinkRecord(fault=self.fault(why, ids))


def _shrunk(context: Context, problem: Problem, witness: Tensor, has_witness: Tensor, clean: Tensor) -> Outcome:
    """Minimal distortion from known witnesses.

    Args:
        context: the run.
        problem: the samples in the box alone (eps infinite).
        witness: (n, \\*features) known witnesses; anything where there is none.
        has_witness: (n,) bool: a witness is known.
        clean: (n, K) clean scores.

    Returns:
        The nearest witnesses; a sample without one may have gained one beyond eps. What the model raised on is left out:
        it is asked far beyond eps here, where nothing is claimed.
    """
    inquiry = Inquiry.of(context.search, problem, Keep.NEAREST, clean=clean, micro_batch=context.plan.slots)
    rows = has_witness.nonzero().squeeze(-1)
    if len(rows):
        part = problem.select(rows.cpu().numpy())
        path = _fewer_features if problem.set.norm is Norm.L0 else _toward

        def holds(t: Tensor) -> Tensor:
            scores, _ = inquiry.logits(path(part, witness[rows], t), part.rows)
            return part.criterion.holds(scores, part.y, part.target)

        with evaluating(context.search):
            t = torch.ones(len(rows), dtype=torch.float64, device=witness.device)
            _ = holds(t)
            bisect(holds, torch.zeros_like(t), t, _HALVINGS)
    first = inquiry.outcome(context.plan.slots)
    serves = FABT.supports(FABT.card, problem.set.norm, problem.goal) and context.differentiable
    if context.plan.access < Access.WHITE_BOX or not serves:
        return replace(first, failed=None)
    nearer = replace(problem, set=problem.set.with_eps(first.distance))
    second = run(
        FABT(steps=_STEPS, targets=_TARGETS),
        nearer,
        context.search,
        seed=context.plan.seed,
        keep=Keep.NEAREST,
        clean=clean,
        settings=context.settings,
    )
    better = second.distance < first.distance
    second = _nearer_no_answer(problem, first, second)
    return replace(
        second,
        x=torch.where(problem.flat(better), second.x, first.x),
        found=second.found | first.found,
        ledger=second.ledger + first.ledger,
        distance=torch.minimum(second.distance, first.distance),
        failed=None,
    )


def _nearer_no_answer(problem: Problem, first: Outcome, second: Outcome) -> Outcome:
    """The second outcome, with the nearer of both ones' inputs without an answer."""
    if first.no_answer is None or first.no_answer_at is None:
        return second
    if second.no_answer is None or second.no_answer_at is None:
        return replace(second, no_answer=first.no_answer, no_answer_at=first.no_answer_at)
    nearer = first.no_answer_at < second.no_answer_at
    return replace(
        second,
        no_answer=torch.where(problem.flat(nearer), first.no_answer, second.no_answer),
        no_answer_at=torch.minimum(first.no_answer_at, second.no_answer_at),
    )


def _toward(problem: Problem, witness: Tensor, t: Tensor) -> Tensor:
    """The point at share t of the way from the clean input to the witness."""
    return problem.x + problem.flat(t).to(problem.x.dtype) * (witness - problem.x)


def _fewer_features(problem: Problem, witness: Tensor, t: Tensor) -> Tensor:
    """The witness with only the share t of its changed features kept, the largest changes first."""
    delta = (witness - problem.x).flatten(1)
    rank = delta.abs().argsort(dim=1, descending=True).argsort(dim=1)
    keep = (t * (delta != 0).sum(1)).ceil().unsqueeze(1)
    return problem.x + torch.where(rank < keep, delta, torch.zeros_like(delta)).view_as(problem.x)
