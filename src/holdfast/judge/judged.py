"""From what a search found to what may be said of it: the only way from an `Outcome` to a statement."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.core.cost import Cost
from holdfast.core.problem import Problem
from holdfast.judge.outcome import Outcome
from holdfast.judge.referee import Referee

__all__ = ["Judged", "judged", "upheld"]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """An outcome as the referee let it stand, sample by sample.

    Attributes:
        x: (n, \\*features) the witness of each sample, moved outward where that was needed; a claim that was not upheld as
            the referee left it; the clean input where nothing was claimed.
        broken: (n,) bool: the referee upholds a witness that is not the clean input.
        clean_wrong: (n,) bool: the referee upholds that the clean input is adversarial as it is.
        marginal: (n,) bool: claimed, inside the set, and not upheld in every way that the referee asks.
        rejected: (n,) bool: claimed, and not inside the set.
        distance: (n,) float64 of what is upheld; inf where nothing is.
        claimed_distance: (n,) float64 of what was claimed, upheld or not; inf where nothing was.
        margin: (n,) float64 the worst margin of what was claimed; NaN where nothing was.
        rounding: (n,) float64 how much the margins of the ways differ; NaN where nothing was claimed.
        prediction: (n,) int64 the model's class of what was claimed; -1 where nothing was, or where it names no class.
        found_at: (n,) int64 queries spent when the first witness was found; -1 where nothing was claimed.
        cost: of the search, all samples together.
        judging: what the referee asked.
        runs: the ways in which it asked, in words.
        arithmetics: the types in which it asked: what is upheld held in each (`holdfast.core.verdict.clash`).
    """

    x: Tensor
    broken: Tensor
    clean_wrong: Tensor
    marginal: Tensor
    rejected: Tensor
    distance: Tensor
    claimed_distance: Tensor
    margin: Tensor
    rounding: Tensor
    prediction: Tensor
    found_at: Tensor
    cost: Cost
    judging: Cost
    runs: tuple[str, ...]
    arithmetics: tuple[str, ...]

    @property
    def success(self) -> float:
        """Share of the samples that are broken, among those that are right as they are; NaN where none is."""
        right = ~self.clean_wrong
        return float(self.broken[right].double().mean()) if bool(right.any()) else float("nan")


def judged(referee: Referee, problem: Problem, outcome: Outcome) -> Judged:
    """What the referee says of everything that a search claims.

    Args:
        referee: of the attacked model.
        problem: the samples that were searched; their sets say where a witness may lie.
        outcome: of the search on them.

    Example:
        >>> from holdfast.attacks.engine import run
        >>> from holdfast.attacks.evasion.white.pgd import PGD
        >>> from holdfast.testing.toys import affine_digits, digits
        >>> from holdfast.core.sets import LpBall
        >>> from holdfast.core.threat import Norm
        >>> (x, y), model = digits(8), affine_digits()
        >>> problem = Problem.of(x, y, LpBall.uniform(Norm.LINF, 0.3, 8, dtype=x.dtype))
        >>> done = judged(Referee(model), problem, run(PGD(steps=5), problem, model))
        >>> bool((done.broken == done.distance.isfinite() & ~done.clean_wrong).all())
        True
    """
    claimed = outcome.found.nonzero().squeeze(-1)
    ruling = referee.judge(problem.select(claimed.cpu().numpy()), outcome.x[claimed])
    nothing = torch.zeros_like(outcome.found)

    def flags(values: Tensor) -> Tensor:
        return nothing.index_copy(0, claimed, values)

    def numbers(values: Tensor, empty: float) -> Tensor:
        return torch.full_like(outcome.distance, empty).index_copy(0, claimed, values)

    distance = numbers(torch.where(ruling.holds, ruling.distance, float("inf")), float("inf"))
    return Judged(
        x=outcome.x.index_copy(0, claimed, ruling.x),
        broken=flags(ruling.holds) & (distance > 0),
        clean_wrong=distance == 0,
        marginal=flags(ruling.inside & ~ruling.holds),
        rejected=flags(~ruling.inside),
        distance=distance,
        claimed_distance=numbers(ruling.distance, float("inf")),
        margin=numbers(ruling.margin, float("nan")),
        rounding=numbers(ruling.rounding, float("nan")),
        prediction=torch.full_like(outcome.found_at, -1).index_copy(0, claimed, ruling.prediction),
        found_at=torch.where(outcome.found, outcome.found_at, -1),
        cost=outcome.ledger.total,
        judging=Cost(forwards=ruling.forwards),
        runs=ruling.runs,
        arithmetics=ruling.arithmetics,
    )


def upheld(referee: Referee, problem: Problem, x: Tensor, claimed: Tensor) -> Tensor:
    """(n,) bool: which claims the referee upholds, about inputs that another search or another model left behind.

    Args:
        referee: of the attacked model.
        problem: the samples.
        x: (n, \\*features) what is said to be adversarial.
        claimed: (n,) bool: of which samples it is said.
    """
    rows = claimed.nonzero().squeeze(-1)
    ruling = referee.judge(problem.select(rows.cpu().numpy()), x[rows])
    return torch.zeros_like(claimed).index_copy(0, rows, ruling.holds)
