"""All attacks of a norm against each other: the same allowance of passes, one distance for each sample, anytime curves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter, process_time
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.attack import Attack
from holdfast.attacks.engine import Settings
from holdfast.core.cards import Card, parameter
from holdfast.core.cost import Cost
from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Norm
from holdfast.judge.asking import Model
from holdfast.judge.inquiry import Inquiry
from holdfast.judge.judged import judged
from holdfast.judge.outcome import Outcome
from holdfast.judge.referee import Referee
from holdfast.numerics.evaluation import evaluating
from holdfast.session.allowance import candidates
from holdfast.session.session import Session
from holdfast.studies.common.chosen import attacks_of
from holdfast.studies.common.radius_search import Allowance, nearest_within
from holdfast.studies.common.statements import fraction
from holdfast.studies.study import StageProgress, Study, StudyResult

__all__ = ["Comparison", "ComparisonEntry", "ComparisonResult", "compare"]

_POINTS = 48  # of an anytime curve

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ComparisonEntry:
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


@dataclass(frozen=True, kw_only=True)
class ComparisonResult(StudyResult):
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
    entries: tuple[ComparisonEntry, ...]
    best: float | None
    refused: dict[str, str]

    @override
    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"norm": str(self.norm)}


@dataclass(frozen=True, kw_only=True)
class Comparison(Study[ComparisonResult]):
    """Attacks of a norm against each other on the session's model; its eps is not used."""

    card: ClassVar[Card] = Card(
        title="Attacks side by side",
        rows=("T08",),
        paper="Cina et al. 2024, AttackBench: Evaluating Gradient-based Attacks for Adversarial Examples, arXiv:2404.19460",
        section="1",
        summary="Gives attacks the same allowance of passes and measures the distance that each reaches for every sample, late "
        "and early.",
        norms=(Norm.L0, Norm.L1, Norm.L2, Norm.LINF),
        failure_modes=(
            "An attack with a budget is searched over radii, and its figures depend on how many of them the passes pay for.",
        ),
        checked_by="attacks whose distances are known on an affine model; anytime curves that never rise",
    )
    attacks: tuple[str | Attack[Any, Any], ...] = parameter(
        ("*",), "attacks, or patterns of their names", "AttackBench: all that serve the norm"
    )
    access: Access = parameter(Access.WHITE_BOX, "the most that an attack may ask", "ours")
    passes: int = parameter(
        1000, "forwards and backwards that each sample is allowed", "AttackBench, section 3: 1000 propagations a sample"
    )

    @override
    def run(self, session: Session, *, progress: StageProgress | None = None) -> ComparisonResult:
        threat = session.threat
        named = candidates(threat.norm, threat.goal, self.access, [a for a in self.attacks if isinstance(a, str)])
        chosen = attacks_of((*named, *(a for a in self.attacks if not isinstance(a, str))))
        if not chosen:
            raise UsageError(
                f"no attack of that name serves {threat.norm}, {threat.goal}, {self.access.label}; see: holdfast methods"
            )
        return compare(
            session.model,
            session.problem(session.ids, float("inf")),
            chosen,
            passes=self.passes,
            seed=session.seed,
            settings=session.settings,
            progress=progress,
        )


def compare(
    model: Model,
    problem: Problem,
    attacks: Mapping[str, Attack[Any, Any]],
    *,
    passes: int = 1000,
    seed: int = 0,
    settings: Settings | None = None,
    progress: StageProgress | None = None,
) -> ComparisonResult:
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
    part = whole.chunk(right.nonzero().squeeze(-1).cpu().numpy())
    given = Allowance(passes=passes, clean=clean[right], seed=seed, settings=settings)
    runs: dict[str, _Reached] = {}
    refused: dict[str, str] = {}
    for name, attack in attacks.items():

        def samples(done: int, of: int, name: str = name) -> None:
            if progress is not None:
                progress(name, done, of)

        wall, cpu = perf_counter(), process_time()
        try:
            outcomes = nearest_within(attack, part, model, given, samples)
        except UnsupportedError as error:
            refused[name] = str(error)
            continue
        wall, cpu = perf_counter() - wall, process_time() - cpu
        runs[name] = _reached(model, part, outcomes, passes, (wall, cpu))
    worst = _worst(runs.values(), len(part))
    entries = [_entry(n, attacks[n], r, worst, passes) for n, r in runs.items()]
    entries.sort(key=lambda e: (e.median is None, e.median or 0.0, e.area))
    best = np.min([r.distance for r in runs.values()], axis=0) if runs else np.full(len(part), np.inf)
    return ComparisonResult(
        norm=whole.set.norm,
        passes=passes,
        samples=len(part),
        entries=tuple(entries),
        best=_median(best),
        refused=refused,
    )


@dataclass(frozen=True, kw_only=True)
class _Reached:
    """What an attack came to.

    Attributes:
        distance: (n,) what the referee upholds; inf where nothing is.
        at: (points, n) what the attack held at the points of the budget.
        cost: all samples together.
        seconds: of wall time.
        cpu_seconds: of processor time.
    """

    distance: Array
    at: Array
    cost: Cost
    seconds: float
    cpu_seconds: float


def _clean(model: Model, problem: Problem, settings: Settings) -> tuple[Tensor, Tensor]:
    """Scores of the clean inputs, and which of them are not adversarial as they are."""
    inquiry = Inquiry.of(model, problem, micro_batch=settings.micro_batch)
    with evaluating(model):
        scores = inquiry.clean(problem.rows)
    return scores, ~problem.criterion.holds(scores, problem.y, problem.target)


def _reached(
    model: Model, problem: Problem, outcomes: Sequence[Outcome], passes: int, seconds: tuple[float, float]
) -> _Reached:
    """The upheld distances and how they came down."""
    n, grid = len(problem), _grid(passes)
    at = np.full((len(grid), n), np.inf)
    spent = np.zeros(n)
    distance: Array = np.full(n, np.inf)
    for outcome in outcomes:
        if outcome.trace is not None:
            cost, held = (t.cpu().numpy() for t in outcome.trace)
            for k, limit in enumerate(grid):
                last = (cost + spent <= limit).sum(0) - 1
                seen = np.where(last >= 0, held[np.maximum(last, 0), np.arange(n)], np.inf)
                at[k] = np.minimum(at[k], seen)
        spent += outcome.ledger.passes.cpu().numpy()
    if outcomes:
        distance = judged(Referee(model), problem, _nearest(outcomes, problem)).distance.cpu().numpy()
    cost = sum((outcome.ledger.total for outcome in outcomes), Cost())
    return _Reached(distance=distance, at=at, cost=cost, seconds=seconds[0], cpu_seconds=seconds[1])


def _nearest(outcomes: Sequence[Outcome], problem: Problem) -> Outcome:
    """The last outcome with the nearest witness of all of them."""
    best = outcomes[0]
    for out in outcomes[1:]:
        better = out.found & (out.distance < best.distance)
        best = replace(
            out,
            x=torch.where(problem.flat(better), out.x, best.x),
            found=best.found | out.found,
            distance=torch.where(better, out.distance, best.distance),
        )
    return best


def _grid(passes: int) -> Array:
    """Points of the budget: half of them evenly spread over its logarithm, half over itself."""
    half = _POINTS // 2
    return np.unique(np.concatenate([np.geomspace(2, passes, half), np.linspace(2, passes, half)]).round())


def _worst(runs: Iterable[_Reached], n: int) -> Array:
    """(n,) the farthest distance at which any attack held a witness at any time; 0 where none ever did."""
    worst = np.zeros(n)
    for r in runs:
        every = np.vstack([r.at, r.distance])
        worst = np.maximum(worst, np.where(np.isfinite(every), every, 0.0).max(0, initial=0.0))
    return worst


def _entry(name: str, attack: Attack[Any, Any], r: _Reached, worst: Array, passes: int) -> ComparisonEntry:
    grid = _grid(passes)
    medians = [_median(row) for row in r.at]
    filled = np.median(np.minimum(r.at, worst), axis=1) if len(worst) else np.zeros(len(grid))
    widths = np.diff(np.concatenate([[0.0], grid]))
    access, n = attack.card.access, max(1, len(worst))
    return ComparisonEntry(
        name=name,
        title=attack.card.title,
        access=access.label if access is not None else "",
        success=fraction(np.isfinite(r.distance)),
        median=_median(r.distance),
        area=float((filled * widths).sum() / grid[-1]),
        forwards=r.cost.forwards / n,
        backwards=r.cost.backwards / n,
        queries=r.cost.queries / n,
        seconds=r.seconds,
        cpu_seconds=r.cpu_seconds,
        curve=tuple((float(c), m) for c, m in zip(grid, medians, strict=True)),
        distance=tuple(float(d) if np.isfinite(d) else None for d in r.distance),
    )


def _median(values: Array) -> float | None:
    if not len(values):
        return None
    middle = float(np.median(values))
    return middle if np.isfinite(middle) else None
