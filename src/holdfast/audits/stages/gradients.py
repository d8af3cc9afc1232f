"""Of what use the model's gradients are, sample by sample: where they are of none, attacks that only ask are run instead."""

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
from holdfast.audits.records import AnyRecord, GradientsRecord, Ids
from holdfast.audits.stage import Doubt, Repeatable, ids_of
from holdfast.core.draws import Draws
from holdfast.core.problem import Problem
from holdfast.core.threat import Goal, Norm
from holdfast.judge.gradients import Gradient
from holdfast.judge.inquiry import Inquiry
from holdfast.numerics.distance import dual_norm
from holdfast.numerics.evaluation import evaluating
from holdfast.numerics.losses import Loss, margin, margin_targeted
from holdfast.numerics.sampling import uniform_in_ball
from holdfast.numerics.steps import steepest

__all__ = ["GradientsStage", "difference_agrees", "is_zero", "margin_of"]

_KEPT = 0.1  # of what the gradient promises; smooth networks keep a third of it and more


@dataclass(frozen=True, kw_only=True)
class GradientsStage(Repeatable[GradientsRecord]):
    """Which open samples the gradients of the model lead nowhere on.

    Asked after the first attack. A sample counts if its gradient is zero or undefined at the input or at a random point
    of its set, if it disagrees with finite differences at both, or if the attack got less than a tenth of the way that
    the gradient promises. Of a model that answers at random only the first is asked: its differences are noise.
    """

    record: ClassVar[type[AnyRecord]] = GradientsRecord

    name: str = "gradients"
    title: str = "use of the gradients"

    @override
    def chosen(self, context: Context, evidence: Evidence) -> np.ndarray:
        return evidence.ids[evidence.open & context.differentiable]

    @override
    def unit(self, context: Context, evidence: Evidence) -> GradientsRecord:
        ids = self.chosen(context, evidence)
        if not len(ids):
            return GradientsRecord()
        problem = context.problem(ids)
        problem = replace(problem, draws=Draws(context.plan.seed, "gradients", context.device).of(ids))
        scores = torch.as_tensor(evidence.scores_of(ids)).to(context.device, problem.x.dtype)
        inquiry = Inquiry.of(context.search, problem, None, clean=scores, micro_batch=context.plan.slots)
        with evaluating(context.search):
            useless = _useless(context, inquiry, problem, evidence)
        return GradientsRecord(
            ids=ids_of(ids),
            hindered=ids_of(ids[useless.cpu().numpy()]),
            cost=replace(inquiry.ledger.total, queries=0),
        )

    @override
    def failed(self, ids: Ids, why: str) -> GradientsRecord:
        return GradientsRecord(fault=self.fault(why, ids))

    @override
    def differences(self, told: GradientsRecord, due: GradientsRecord) -> Iterator[Doubt]:
        yield from self.differing(told, due, ("ids", "hindered"))


def _useless(context: Context, inquiry: Inquiry, problem: Problem, evidence: Evidence) -> Tensor:
    loss = margin_of(problem)
    dead = torch.zeros(len(problem), dtype=torch.bool, device=problem.x.device)
    wrong = torch.ones_like(dead)
    seen = list[Gradient]()
    for x in (problem.x, uniform_in_ball(problem.set, problem.x, problem.keyed, "point")):
        g = inquiry.gradient(x, problem.rows, loss, problem.y, problem.target)
        dead |= is_zero(g.grad)
        seen.append(g)
        if not context.randomised:
            wrong &= ~difference_agrees(inquiry, problem, x, g.grad)
    if context.randomised:
        return dead
    if problem.set.norm is Norm.L0:  # a step has no length there
        return dead | wrong
    # the margin that is left at the input, and what a step along the gradient would take of it
    left = -seen[0].value.double()
    promised = problem.set.eps.double() * dual_norm(problem.set.norm, seen[0].grad.double())
    low = torch.as_tensor(evidence.low_margin[evidence.open]).to(left.device)
    unkept = left - low < _KEPT * torch.minimum(promised, left)
    return dead | wrong | unkept


def margin_of(problem: Problem) -> Loss:
    """The margin that an attack on the problem ascends."""
    return margin() if problem.goal is Goal.UNTARGETED else margin_targeted()


def is_zero(grad: Tensor) -> Tensor:
    """(n,) bool: the gradient is zero or undefined."""
    flat = grad.flatten(1)
    return ~flat.isfinite().all(1) | (flat.abs().amax(1) == 0)


def difference_agrees(inquiry: Inquiry, problem: Problem, x: Tensor, grad: Tensor) -> Tensor:
    """(n,) bool: the derivative along the sample's own gradient is within half of the central difference.

    What the scores' own rounding hides does not agree.
    """
    h = 1e-3 * float((problem.set.upper - problem.set.lower).max())
    direction = steepest(Norm.LINF, grad)
    loss = margin_of(problem)
    up, _ = inquiry.logits(x + h * direction, problem.rows)
    down, _ = inquiry.logits(x - h * direction, problem.rows)
    change = loss(up, problem.y, problem.target) - loss(down, problem.y, problem.target)
    slope = (grad * direction).flatten(1).sum(1)
    return (change / (2 * h) - slope).abs() <= 0.5 * slope.abs()
