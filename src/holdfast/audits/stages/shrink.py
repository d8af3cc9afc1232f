"""Nearer witnesses: bisection toward the clean input, then a short minimal-distortion attack that may only improve.

Its own stage and its own cost: what a suite spends to decide the verdict at eps stays comparable.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from holdfast.attacks.engine import run
from holdfast.attacks.evasion.white.fab_t import FABT
from holdfast.audits.context import Context
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Norm
from holdfast.judge.desk import Desk
from holdfast.judge.outcome import Outcome
from holdfast.numerics.evaluation import evaluating
from holdfast.numerics.search import bisect

__all__ = ["shrink"]

_HALVINGS = 12
_STEPS, _TARGETS = 20, 3


def shrink(context: Context, problem: Problem, witness: Tensor, has: Tensor, clean: Tensor) -> Outcome:
    """Minimal distortion from known witnesses.

    Args:
        context: the run.
        problem: the samples in the box alone (eps infinite).
        witness: (n, \\*features) known witnesses; anything where ``has`` is false.
        has: (n,) bool: a witness is known.
        clean: (n, K) clean scores.

    Returns:
        The nearest witnesses; a sample without one may have gained one beyond eps. What the model raised on is left out:
        it is asked far beyond eps here, where nothing is claimed.
    """
    desk = Desk(context.search, problem, first=False, clean=clean, micro_batch=context.plan.slots)
    rows = has.nonzero().squeeze(-1)
    if len(rows):
        part = problem.select(rows.cpu().numpy())
        path = _fewer_features if problem.set.norm is Norm.L0 else _toward

        def holds(t: Tensor) -> Tensor:
            scores, _ = desk.logits(path(part, witness[rows], t), part.rows)
            return part.criterion.holds(scores, part.y, part.target)

        with evaluating(context.search):
            t = torch.ones(len(rows), dtype=torch.float64, device=witness.device)
            _ = holds(t)
            bisect(holds, torch.zeros_like(t), t, _HALVINGS)
    serves = FABT.supports(FABT.card, problem.set.norm, problem.goal) and context.differentiable
    if context.plan.access < Access.WHITE_BOX or not serves:
        return replace(desk.outcome(context.plan.slots), failed=None)
    nearer = replace(problem, set=problem.set.with_eps(desk.distance))
    found = run(
        FABT(steps=_STEPS, targets=_TARGETS), nearer, context.search, seed=context.plan.seed, first=False, clean=clean,
        settings=context.settings,
    )  # fmt: skip
    better = found.distance < desk.distance
    first = desk.outcome(context.plan.slots)
    found = _nearer_no_answer(problem, first, found)
    return replace(
        found, x=torch.where(problem.flat(better), found.x, first.x), found=found.found | first.found,
        distance=torch.minimum(found.distance, first.distance), ledger=found.ledger + desk.ledger, failed=None,
    )  # fmt: skip


def _nearer_no_answer(problem: Problem, first: Outcome, second: Outcome) -> Outcome:
    """The second outcome, with the nearer of both ones' inputs without an answer."""
    if first.no_answer is None or first.no_answer_at is None:
        return second
    if second.no_answer is None or second.no_answer_at is None:
        return replace(second, no_answer=first.no_answer, no_answer_at=first.no_answer_at)
    nearer = first.no_answer_at < second.no_answer_at
    return replace(
        second, no_answer=torch.where(problem.flat(nearer), first.no_answer, second.no_answer),
        no_answer_at=torch.minimum(first.no_answer_at, second.no_answer_at),
    )  # fmt: skip


def _toward(problem: Problem, witness: Tensor, t: Tensor) -> Tensor:
    """The point at share t of the way from the clean input to the witness."""
    return problem.x + problem.flat(t).to(problem.x.dtype) * (witness - problem.x)


def _fewer_features(problem: Problem, witness: Tensor, t: Tensor) -> Tensor:
    """The witness with only the share t of its changed features kept, the largest changes first."""
    delta = (witness - problem.x).flatten(1)
    rank = delta.abs().argsort(dim=1, descending=True).argsort(dim=1)
    keep = (t * (delta != 0).sum(1)).ceil().unsqueeze(1)
    return problem.x + torch.where(rank < keep, delta, torch.zeros_like(delta)).view_as(problem.x)
