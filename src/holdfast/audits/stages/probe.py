"""Cheap probes of samples that the suite left open: random points of the set, and one gradient step.

A suite that they beat was hindered; what they find counts all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from holdfast.audits.claims import claims_of, raised_on
from holdfast.audits.context import Context
from holdfast.audits.evidence import Evidence
from holdfast.audits.records import AnyRecord, Ids, ProbeRecord
from holdfast.audits.stage import Doubt, Repeatable, ids_of
from holdfast.core.draws import Draws
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Norm
from holdfast.judge.inquiry import Inquiry
from holdfast.numerics.evaluation import evaluating
from holdfast.numerics.losses import margin, margin_targeted
from holdfast.numerics.project import project
from holdfast.numerics.sampling import uniform_in_ball
from holdfast.numerics.steps import steepest

__all__ = ["ProbeStage"]

_POINTS = 20


@dataclass(frozen=True, kw_only=True)
class ProbeStage(Repeatable[ProbeRecord]):
    """Random points, then one steepest step, on the samples that are still open."""

    record: ClassVar[type[AnyRecord]] = ProbeRecord

    name: str = "probe"
    title: str = "random points and single steps"

    @override
    def chosen(self, context: Context, evidence: Evidence) -> np.ndarray:
        return evidence.ids[evidence.open & (not context.plan.remote)]

    @override
    def unit(self, context: Context, evidence: Evidence) -> ProbeRecord:
        ids = self.chosen(context, evidence)
        if not len(ids):
            return ProbeRecord()
        problem = context.problem(ids)
        problem = replace(problem, draws=Draws(context.plan.seed, "probe", context.device).of(ids))
        scores = torch.as_tensor(evidence.scores_of(ids)).to(context.device, problem.x.dtype)
        inquiry = Inquiry.of(context.search, problem, clean=scores, micro_batch=context.plan.slots)
        with evaluating(context.search):
            for k in range(_POINTS):
                inquiry.logits(_random_point(problem, k), problem.rows)
            noise = int(inquiry.outcome(context.plan.slots).found.sum())
            if context.plan.access is Access.WHITE_BOX:
                inquiry.logits(_one_step(inquiry, problem), problem.rows)
        outcome = inquiry.outcome(context.plan.slots)
        claims, referee = claims_of(context, problem, outcome, self.name)
        return ProbeRecord(
            ids=ids_of(ids),
            claims=claims,
            raised=raised_on(ids, outcome.failed, outcome.fault),
            referee=referee,
            noise=noise,
            one_step=int(outcome.found.sum()) - noise,
        )

    @override
    def failed(self, ids: Ids, why: str) -> ProbeRecord:
        return ProbeRecord(fault=self.fault(why, ids))

    @override
    def differences(self, told: ProbeRecord, due: ProbeRecord) -> Iterator[Doubt]:
        yield from self.differing(told, due, ("ids",))


def _random_point(problem: Problem, k: int) -> Tensor:
    """Uniform points of the set and, for linf, its corners in turn."""
    if k % 2 and problem.set.norm is Norm.LINF:
        sign = problem.keyed.uniform("corner", tuple(problem.x.shape[1:]), k).sub(0.5).sign().to(problem.x.dtype)
        return project(problem.set, problem.x + problem.flat(problem.set.eps).to(problem.x.dtype) * sign, problem.x)
    return uniform_in_ball(problem.set, problem.x, problem.keyed, "point", k)


def _one_step(inquiry: Inquiry, problem: Problem) -> Tensor:
    loss = margin() if bool((problem.target < 0).all()) else margin_targeted()
    grad = inquiry.gradient(problem.x, problem.rows, loss, problem.y, problem.target).grad
    eps = problem.flat(problem.set.eps).to(grad.dtype)
    direction = grad.sign() if problem.set.norm is Norm.L0 else steepest(problem.set.norm, grad)
    return project(problem.set, problem.x + eps * direction, problem.x)
