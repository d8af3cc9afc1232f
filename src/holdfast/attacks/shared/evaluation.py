"""What an artefact does to samples that it was not fitted on: judged by the referee, draw by draw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast.attacks.shared.artefact import Artefact
from holdfast.attacks.shared.contract import SharedAttack
from holdfast.core.draws import Draws
from holdfast.core.errors import UsageError
from holdfast.core.problem import Problem
from holdfast.core.registry import name_of
from holdfast.judge.asking import Model
from holdfast.judge.referee import Referee
from holdfast.numerics import evaluation
from holdfast.numerics.stats import clopper_pearson

__all__ = ["Evaluation", "evaluate"]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How an artefact does on samples that it was not fitted on.

    Attributes:
        broken: (n, k) bool: the referee upholds the sample in this draw.
        right: (n,) bool: the clean sample is not adversarial as it is; only these count.
        conditions: (n, k) each: what was drawn.
        x: (n, \\*features) the inputs of the first draw.
        distance: (n,) float64 distance of those, in the norm of the problem.
        forwards: rows that the judging asked.
    """

    broken: Tensor
    right: Tensor
    conditions: Mapping[str, Tensor]
    x: Tensor
    distance: Tensor
    forwards: int

    @property
    def success(self) -> float:
        """Share of (sample, draw) pairs that break, among samples that were right."""
        return float(self.broken[self.right].double().mean()) if bool(self.right.any()) else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Clopper-Pearson interval of the share of samples that break in most draws."""
        n = int(self.right.sum())
        if not n:
            return 0.0, 1.0
        most = (self.broken[self.right].double().mean(1) > 0.5).sum()
        low, high = clopper_pearson(np.array([int(most)]), n, 0.05)
        return float(np.asarray(low).flat[0]), float(np.asarray(high).flat[0])

    def by(self, condition: str, bins: int = 6) -> list[tuple[float, float, int, float]]:
        """Success over equal slices of a condition: (from, to, pairs, fraction that breaks).

        Raises:
            UsageError: nothing of that name was drawn.
        """
        if condition not in self.conditions:
            raise UsageError(f"no condition '{condition}' was drawn; there are {', '.join(self.conditions) or 'none'}")
        value = self.conditions[condition][self.right].double().flatten()
        hit = self.broken[self.right].double().flatten()
        if not len(value):
            return []
        low, high = float(value.min()), float(value.max())
        width = (high - low) / bins or 1.0
        which = ((value - low) / width).long().clamp(0, bins - 1)
        rows: list[tuple[float, float, int, float]] = []
        for k in range(bins):
            mine = which == k
            if bool(mine.any()):
                rows.append((low + k * width, low + (k + 1) * width, int(mine.sum()), float(hit[mine].mean())))
        return rows


def evaluate(
    attack: SharedAttack[Any, Any],
    artefact: Artefact,
    problem: Problem,
    model: Model,
    *,
    draws: int | None = None,
    seed: int = 0,
) -> Evaluation:
    """Judges an artefact on held-out samples with fresh draws.

    Args:
        attack: of the method that made the artefact.
        artefact: what `fit` gave.
        problem: held-out samples; x' must lie in their set where the method has a norm, in the box otherwise.
        model: the attacked model.
        draws: fresh draws of each sample, at least 1; the attack's own number by default.
        seed: keys them.

    Returns:
        Success, sample by sample and draw by draw.
    """
    draws = attack.draws if draws is None else draws
    if draws < 1:
        raise UsageError(f"an evaluation needs at least 1 draw, got {draws}")
    keyed = Draws(seed, name_of(attack) + ".judge", problem.x.device)
    bound = problem if attack.card.norms else replace(problem, set=replace(problem.set.unbounded(), mask=None))
    referee = Referee(model)
    right = ~problem.criterion.holds(evaluation.evaluate(model, problem.x), problem.y, problem.target)
    hits: list[Tensor] = []
    conditions: dict[str, list[Tensor]] = {}
    first, distance = problem.x, torch.zeros_like(problem.set.eps)
    for k in range(draws):
        applied = attack.apply(artefact, bound.x, keyed.of(bound.ids, k), bound)
        ruling = referee.judge(bound, applied.x)
        hits.append(ruling.holds)
        for name, value in applied.conditions.items():
            conditions.setdefault(name, []).append(value)
        if k == 0:
            first, distance = applied.x, ruling.distance
    return Evaluation(
        broken=torch.stack(hits, 1),
        right=right,
        conditions={k: torch.stack(v, 1) for k, v in conditions.items()},
        x=first,
        distance=distance,
        forwards=referee.forwards,
    )
