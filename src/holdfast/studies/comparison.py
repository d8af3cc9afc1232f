"""All attacks of a norm against each other: the same allowance of passes, one distance for each sample, anytime curves.

Attacks that look for the least distance run as they are. Attacks that search inside a budget are given a radius for each
sample and run again and again on a share of the passes: the radius is halved toward what is known to hold after a success
and doubled after a failure, so that they too answer with a distance (AttackBench, Cina et al. 2024, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast.attacks.attack import Attack
from holdfast.attacks.engine import Settings, run
from holdfast.core.cost import Cost
from holdfast.core.errors import UnsupportedError
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Formulation, Norm
from holdfast.judge.desk import Desk, Model
from holdfast.judge.judged import judged
from holdfast.judge.ledger import Budget
from holdfast.judge.outcome import Outcome
from holdfast.judge.referee import Referee
from holdfast.numerics.distance import box, distance
from holdfast.numerics.evaluation import evaluating

__all__ = ["Comparison", "Entry", "compare"]

_TRIALS = 8  # radii that an attack inside a budget can be run at when it uses up its share at each
_MOST_TRIALS = 3 * _TRIALS
_LEAST_QUERIES = 100  # of a trial without gradients, if there are as many
_FIRST = {Norm.L0: 0.02, Norm.L1: 0.02, Norm.L2: 0.1, Norm.LINF: 0.1}  # first radius as a share of the box's size
_POINTS = 48  # of an anytime curve

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Entry:
    """What one attack reached.

    Attributes:
        name: of the method.
        title: as the paper writes it.
        access: what it asks of the model.
        success: share of the samples for which it found an adversarial example that the referee upholds.
        median: median distance over all samples, failures counted as infinite; None if that is infinite.
        area: median distance averaged over the pass budget, failures and waiting counted as the farthest distance that
            any attack came back with; the smaller the better, early as well as late.
        forwards: a sample, on average.
        backwards: likewise.
        queries: likewise.
        seconds: of wall time, all samples.
        cpu_seconds: of processor time, all samples.
        curve: (passes of a sample, median distance) as the budget is used up; None where half have no witness yet.
        distance: of each sample; None where there is none.
    """

    name: str
    title: str
    access: str
    success: float
    median: float | None
    area: float
    forwards: float
    backwards: float
    queries: float
    seconds: float
    cpu_seconds: float
    curve: tuple[tuple[float, float | None], ...]
    distance: tuple[float | None, ...]


@dataclass(frozen=True)
class Comparison:
    """Attacks side by side, the smallest median first.

    Attributes:
        norm: of the distances.
        passes: forwards and backwards that each sample was allowed.
        samples: that were classified right and so were attacked.
        entries: one for each attack.
        best: median over samples of the nearest witness of any attack; None if half have none.
        refused: attacks that cannot serve this model or data, and why.
    """

    norm: Norm
    passes: int
    samples: int
    entries: tuple[Entry, ...]
    best: float | None
    refused: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"norm": str(self.norm), "refused": dict(self.refused)}


def compare(
    model: Model,
    problem: Problem,
    attacks: Mapping[str, Attack[Any, Any]],
    *,
    passes: int = 1000,
    seed: int = 0,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Runs each attack with the same budget of passes and measures the distances it reaches.

    Args:
        model: x (m, \\*features) -> scores (m, K).
        problem: the samples; their eps is not used, their box and mask are.
        attacks: by name.
        passes: forwards and backwards that each sample is allowed, enforced.
        seed: keys all draws.
        settings: how the engine works.
        progress: told (attack, samples done, samples).

    Returns:
        One entry for each attack that could serve, ordered by median distance.
    """
    settings = replace(settings or Settings(), trace=True)
    whole = replace(problem, set=problem.set.unbounded())
    clean, right = _clean(model, whole, settings)
    rows = right.nonzero().squeeze(-1).cpu().numpy()
    part = whole.select(rows)
    part = replace(part, rows=torch.arange(len(part), device=part.x.device))
    runs: dict[str, _Reached] = {}
    refused: dict[str, str] = {}
    for name, attack in attacks.items():
        wall, cpu = perf_counter(), process_time()
        try:
            tell = None if progress is None else lambda done, total, n=name: progress(n, done, total)
            fitted = attack.within(passes)
            budgeted = fitted.card.formulation is Formulation.BUDGET
            search = _radius_search if budgeted else _once
            outcomes = search(fitted, part, model, clean[right], passes, seed, settings, tell)
        except UnsupportedError as error:
            refused[name] = str(error)
            continue
        wall, cpu = perf_counter() - wall, process_time() - cpu
        runs[name] = _reached(model, part, outcomes, passes, wall, cpu)
    worst = _worst(runs.values(), len(part))
    entries = [_entry(n, attacks[n], r, worst, passes) for n, r in runs.items()]
    entries.sort(key=lambda e: (e.median is None, e.median or 0.0, e.area))
    best = np.min([r.distance for r in runs.values()], axis=0) if runs else np.full(len(part), np.inf)
    return Comparison(whole.set.norm, passes, len(part), tuple(entries), _median(best), refused)


@dataclass(frozen=True)
class _Reached:
    """Distances (n,) that the referee upholds, (points, n) distances at the points of the budget, and the cost."""

    distance: np.ndarray
    at: np.ndarray
    forwards: float
    backwards: float
    queries: float
    seconds: float
    cpu_seconds: float


def _clean(model: Model, problem: Problem, settings: Settings) -> tuple[Tensor, Tensor]:
    """Scores of the clean inputs, and which of them are not adversarial as they are."""
    desk = Desk(model, problem, micro_batch=settings.micro_batch)
    with evaluating(model):
        scores = desk.clean(problem.rows)
    return scores, ~problem.criterion.holds(scores, problem.y, problem.target)


def _once(
    attack: Attack[Any, Any],
    problem: Problem,
    model: Model,
    clean: Tensor,
    passes: int,
    seed: int,
    settings: Settings,
    tell: Callable[[int, int], None] | None,
) -> list[Outcome]:
    budget = Budget(passes=passes)
    return [
        run(
            attack, problem, model, seed=seed, budget=budget, first=False, clean=clean, settings=settings, progress=tell
        )
    ]


def _radius_search(
    attack: Attack[Any, Any],
    problem: Problem,
    model: Model,
    clean: Tensor,
    passes: int,
    seed: int,
    settings: Settings,
    tell: Callable[[int, int], None] | None,
) -> list[Outcome]:
    """Runs an attack inside a budget at one radius for each sample after the other, while a sample can afford it."""
    norm, n = problem.set.norm, len(problem)
    size = _box_size(problem)
    low, high = torch.zeros_like(size), torch.full_like(size, float("inf"))
    eps = size * _FIRST[norm]
    share = passes // _TRIALS
    if attack.card.access is not Access.WHITE_BOX:  # an estimate alone may take half of that
        share = max(share, min(passes, _LEAST_QUERIES))
    each = attack.within(share)
    spent = np.zeros(n)
    found: list[Outcome] = []
    for trial in range(_MOST_TRIALS):
        rows = np.flatnonzero(spent + share <= passes)
        if not len(rows):
            break
        at = torch.from_numpy(rows).to(size.device)
        ball = problem.set.select(at).with_eps(eps[at].ceil() if norm is Norm.L0 else eps[at])
        part = replace(problem.select(rows), set=ball, rows=torch.arange(len(rows), device=size.device))
        out = run(each, part, model, seed=seed + trial, budget=Budget(passes=share), clean=clean[at], settings=settings)
        found.append(_spread(out, at, problem))
        spent[rows] += out.ledger.passes.cpu().numpy()
        high[at] = torch.where(out.found, torch.minimum(high[at], out.distance), high[at])
        low[at] = torch.where(out.found, low[at], torch.maximum(low[at], eps[at])).minimum(high[at])
        eps = torch.where(high.isfinite(), (low + high) / 2, (4 * eps).minimum(size))
        if tell is not None:
            tell(min(n, int(spent.sum() / passes)), n)
    if tell is not None:
        tell(n, n)
    return found


def _spread(out: Outcome, at: Tensor, problem: Problem) -> Outcome:
    """An outcome of some samples as one of all: the others found nothing and cost nothing."""
    n, device = len(problem), problem.x.device

    def wide(values: Tensor, empty: float) -> Tensor:
        return torch.full((*values.shape[:-1], n), empty, dtype=values.dtype, device=device).index_copy(-1, at, values)

    x = problem.x.clone()
    x[at] = out.x
    trace = None if out.trace is None else (wide(out.trace[0], 0), wide(out.trace[1], float("inf")))
    return replace(
        out, x=x, found=wide(out.found, 0), distance=wide(out.distance, float("inf")), found_at=wide(out.found_at, -1),
        low_margin=wide(out.low_margin, float("inf")), ledger=out.ledger.spread(at, n), trace=trace,
    )  # fmt: skip


def _box_size(problem: Problem) -> Tensor:
    """(n,) the distance from x to the farthest corner of its box, in the problem's norm; of the features for l0."""
    low, high = (edge.expand_as(problem.x) for edge in box(problem.set, problem.x))
    far = torch.maximum(high - problem.x, problem.x - low).double()
    if not bool(far.isfinite().all()):
        raise UnsupportedError("a search over radii needs a box with edges; give --low and --high")
    return distance(problem.set.norm, far).clamp_min(torch.finfo(torch.float64).tiny)


def _reached(
    model: Model, problem: Problem, outcomes: Sequence[Outcome], passes: int, wall: float, cpu: float
) -> _Reached:
    """The upheld distances and how they came down."""
    n = len(problem)
    grid = _grid(passes)
    at = np.full((len(grid), n), np.inf)
    spent = np.zeros(n)
    distance = np.full(n, np.inf)
    for out in outcomes:
        if out.trace is not None:
            cost, held = (t.cpu().numpy() for t in out.trace)
            for k, limit in enumerate(grid):
                last = (cost + spent <= limit).sum(0) - 1
                seen = np.where(last >= 0, held[np.maximum(last, 0), np.arange(n)], np.inf)
                at[k] = np.minimum(at[k], seen)
        spent += out.ledger.passes.cpu().numpy()
    if outcomes:
        distance = judged(Referee(model), problem, _nearest(outcomes, problem)).distance.cpu().numpy()
    spent_by_all, each = sum((out.ledger.total for out in outcomes), Cost()), max(1, n)
    return _Reached(
        distance,
        at,
        spent_by_all.forwards / each,
        spent_by_all.backwards / each,
        spent_by_all.queries / each,
        wall,
        cpu,
    )


def _nearest(outcomes: Sequence[Outcome], problem: Problem) -> Outcome:
    """The last outcome with the nearest witness of all of them."""
    best = outcomes[0]
    for out in outcomes[1:]:
        better = out.found & (out.distance < best.distance)
        best = replace(
            out, x=torch.where(problem.flat(better), out.x, best.x), found=best.found | out.found,
            distance=torch.where(better, out.distance, best.distance),
        )  # fmt: skip
    return best


def _grid(passes: int) -> np.ndarray:
    """Points of the budget: half of them evenly spread over its logarithm, half over itself."""
    half = _POINTS // 2
    return np.unique(np.concatenate([np.geomspace(2, passes, half), np.linspace(2, passes, half)]).round())


def _worst(runs: Any, n: int) -> np.ndarray:
    """(n,) the farthest distance at which any attack held a witness at any time; 0 where none ever did."""
    worst = np.zeros(n)
    for r in runs:
        every = np.vstack([r.at, r.distance])
        worst = np.maximum(worst, np.where(np.isfinite(every), every, 0.0).max(0, initial=0.0))
    return worst


def _entry(name: str, attack: Attack[Any, Any], r: _Reached, worst: np.ndarray, passes: int) -> Entry:
    grid = _grid(passes)
    medians = [_median(row) for row in r.at]
    filled = np.median(np.minimum(r.at, worst), axis=1) if len(worst) else np.zeros(len(grid))
    widths = np.diff(np.concatenate([[0.0], grid]))
    access, success = attack.card.access, float(np.isfinite(r.distance).mean()) if len(worst) else 0.0
    return Entry(
        name=name,
        title=attack.card.title,
        access=access.label if access is not None else "",
        success=success,
        median=_median(r.distance),
        area=float((filled * widths).sum() / grid[-1]),
        forwards=r.forwards,
        backwards=r.backwards,
        queries=r.queries,
        seconds=r.seconds,
        cpu_seconds=r.cpu_seconds,
        curve=tuple((float(c), m) for c, m in zip(grid, medians, strict=True)),
        distance=tuple(float(d) if np.isfinite(d) else None for d in r.distance),
    )


def _median(values: np.ndarray) -> float | None:
    if not len(values):
        return None
    middle = float(np.median(values))
    return middle if np.isfinite(middle) else None
