"""One distance for each sample from any attack, within one allowance of passes.

Attacks that look for the least distance run as they are. Attacks that search inside a budget are given a radius for each
sample and run again and again on a fraction of the passes: the radius is halved toward what is known to hold after a success
and doubled after a failure, so that they too answer with a distance (AttackBench, Cina et al. 2024, section 3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast.attacks.attack import Attack
from holdfast.attacks.engine import Settings, run
from holdfast.core.arrays import on_device
from holdfast.core.errors import UnsupportedError
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Formulation, Norm
from holdfast.judge.archive import Keep
from holdfast.judge.asking import Model
from holdfast.judge.ledger import Budget
from holdfast.judge.outcome import Outcome
from holdfast.numerics.distance import box, distance

__all__ = ["Allowance", "nearest_within"]

_TRIALS = 8  # radii that an attack inside a budget can be run at when it uses up its fraction at each
_MOST_TRIALS = 3 * _TRIALS
_LEAST_QUERIES = 100  # of a trial without gradients, if there are as many
_FIRST = {Norm.L0: 0.02, Norm.L1: 0.02, Norm.L2: 0.1, Norm.LINF: 0.1}  # first radius as a fraction of the box's size


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """What every attack is given alike.

    Attributes:
        passes: forwards and backwards that each sample is allowed, enforced.
        clean: (n, K) scores of the clean inputs.
        seed: keys all draws.
        settings: how the engine works.
    """

    passes: int
    clean: Tensor
    seed: int
    settings: Settings


def nearest_within(
    attack: Attack[Any, Any],
    problem: Problem,
    model: Model,
    given: Allowance,
    progress: Callable[[int, int], None] | None = None,
) -> list[Outcome]:
    """What an attack finds within its allowance, run by run.

    Args:
        attack: the method.
        problem: samples that are right as they are; their sets have no bound but their box.
        model: x (m, \\*features) -> scores (m, K).
        given: the allowance.
        progress: told (samples done, samples).

    Raises:
        UnsupportedError: the attack cannot serve, or the box has no edges to search radii in.
    """
    fitted = attack.within(given.passes)
    if fitted.card.formulation is Formulation.BUDGET:
        return _radius_search(fitted, problem, model, given, progress)
    return [
        run(
            fitted, problem, model, seed=given.seed, budget=Budget(passes=given.passes), keep=Keep.NEAREST, clean=given.clean,
            settings=given.settings, progress=progress,
        )
    ]  # fmt: skip


def _radius_search(
    attack: Attack[Any, Any],
    problem: Problem,
    model: Model,
    given: Allowance,
    progress: Callable[[int, int], None] | None,
) -> list[Outcome]:
    """Runs an attack inside a budget at one radius for each sample after the other, while a sample can afford it."""
    norm, n, passes = problem.set.norm, len(problem), given.passes
    width = _box_size(problem)
    low, high = torch.zeros_like(width), torch.full_like(width, float("inf"))
    eps = width * _FIRST[norm]
    each = passes // _TRIALS
    if attack.card.access is not Access.WHITE_BOX:  # an estimate alone may take half of that
        each = max(each, min(passes, _LEAST_QUERIES))
    attack = attack.within(each)
    spent = np.zeros(n)
    outcomes: list[Outcome] = []
    for trial in range(_MOST_TRIALS):
        rows = np.flatnonzero(spent + each <= passes)
        if not len(rows):
            break
        at = on_device(rows, width.device)
        part = problem.chunk(rows)
        part = replace(part, set=part.set.with_eps(eps[at].ceil() if norm is Norm.L0 else eps[at]))
        outcome = run(
            attack,
            part,
            model,
            seed=given.seed + trial,
            budget=Budget(passes=each),
            clean=given.clean[at],
            settings=given.settings,
        )
        outcomes.append(_spread(outcome, at, problem))
        spent[rows] += outcome.ledger.passes.cpu().numpy()
        high[at] = torch.where(outcome.found, torch.minimum(high[at], outcome.distance), high[at])
        low[at] = torch.where(outcome.found, low[at], torch.maximum(low[at], eps[at])).minimum(high[at])
        eps = torch.where(high.isfinite(), (low + high) / 2, (4 * eps).minimum(width))
        if progress is not None:
            progress(min(n, int(spent.sum() / passes)), n)
    if progress is not None:
        progress(n, n)
    return outcomes


def _spread(out: Outcome, at: Tensor, problem: Problem) -> Outcome:
    """An outcome of some samples as one of all: the others found nothing and cost nothing."""
    n, device = len(problem), problem.x.device

    def wide(values: Tensor, empty: float) -> Tensor:
        return torch.full((*values.shape[:-1], n), empty, dtype=values.dtype, device=device).index_copy(-1, at, values)

    x = problem.x.clone()
    x[at] = out.x
    trace = None if out.trace is None else (wide(out.trace[0], 0), wide(out.trace[1], float("inf")))
    return replace(
        out,
        x=x,
        found=wide(out.found, 0),
        distance=wide(out.distance, float("inf")),
        found_at=wide(out.found_at, -1),
        low_margin=wide(out.low_margin, float("inf")),
        ledger=out.ledger.spread(at, n),
        trace=trace,
    )


def _box_size(problem: Problem) -> Tensor:
    """(n,) the distance from x to the farthest corner of its box, in the problem's norm; of the features for l0."""
    low, high = (edge.expand_as(problem.x) for edge in box(problem.set, problem.x))
    far = torch.maximum(high - problem.x, problem.x - low).double()
    if not bool(far.isfinite().all()):
        raise UnsupportedError("a search over radii needs a box with edges; give --low and --high")
    return distance(problem.set.norm, far).clamp_min(torch.finfo(torch.float64).tiny)
