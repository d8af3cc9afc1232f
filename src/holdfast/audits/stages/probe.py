"""Cheap probes of samples that the suite left open: random points of the set, and one gradient step.

A suite that they beat was hindered; what they find counts all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from holdfast.audits.context import Context
from holdfast.audits.journal import Payload
from holdfast.audits.stages.suite import ruled, standing_of
from holdfast.core.draws import Draws
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Norm
from holdfast.judge.desk import Desk
from holdfast.numerics.evaluation import evaluating
from holdfast.numerics.losses import margin, margin_targeted
from holdfast.numerics.project import project
from holdfast.numerics.sampling import uniform_in_ball
from holdfast.numerics.steps import steepest

__all__ = ["probe"]

_POINTS = 20


def probe(context: Context, ids: np.ndarray, units: Mapping[str, Payload]) -> Payload:
    """Random points, then one steepest step, on the samples that are still open."""
    standing = standing_of(context, ids, units)
    chosen = ids[standing.open]
    payload: Payload = {
        "ids": [],
        "witnesses": {},
        "marginal": {},
        "rejected": [],
        "referee": 0,
        "noise": 0,
        "one_step": 0,
    }
    if not len(chosen) or context.plan.remote:
        return payload
    problem = context.problem(chosen)
    problem = replace(problem, draws=Draws(context.plan.seed, "probe", context.device).of(chosen))
    scores = torch.from_numpy(standing.scores[standing.open]).to(context.device, problem.x.dtype)
    desk = Desk(context.search, problem, clean=scores, micro_batch=context.plan.slots)
    with evaluating(context.search):
        for k in range(_POINTS):
            desk.logits(_random_point(problem, k), problem.rows)
        noise = int(desk.found.sum())
        if context.plan.access is Access.WHITE_BOX:
            desk.logits(_one_step(desk, problem), problem.rows)
    return (
        payload
        | ruled(context, problem, desk.outcome(context.plan.slots), "probe")
        | {"noise": noise, "one_step": int(desk.found.sum()) - noise}
    )


def _random_point(problem: Problem, k: int) -> Tensor:
    """Uniform points of the set and, for linf, its corners in turn."""
    if k % 2 and problem.set.norm is Norm.LINF:
        sign = problem.keyed.uniform("corner", tuple(problem.x.shape[1:]), k).sub(0.5).sign().to(problem.x.dtype)
        return project(problem.set, problem.x + problem.flat(problem.set.eps).to(problem.x.dtype) * sign, problem.x)
    return uniform_in_ball(problem.set, problem.x, problem.keyed, "point", k)


def _one_step(desk: Desk, problem: Problem) -> Tensor:
    loss = margin() if bool((problem.target < 0).all()) else margin_targeted()
    grad = desk.gradient(problem.x, problem.rows, loss, problem.y, problem.target).grad
    eps = problem.flat(problem.set.eps).to(grad.dtype)
    direction = grad.sign() if problem.set.norm is Norm.L0 else steepest(problem.set.norm, grad)
    return project(problem.set, problem.x + eps * direction, problem.x)
