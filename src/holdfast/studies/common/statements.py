"""What several studies say of samples: who is right, whose examples are upheld, and shares with their intervals."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from holdfast.core.problem import Problem
from holdfast.judge.asking import Model
from holdfast.judge.judged import upheld
from holdfast.judge.referee import Referee
from holdfast.numerics.evaluation import evaluate
from holdfast.numerics.stats import clopper_pearson

__all__ = ["broken_by", "fraction", "fraction_among", "interval_of", "is_adversarial"]


def is_adversarial(model: Model, problem: Problem, x: Tensor) -> Tensor:
    """(n,) bool: the model's own answer to x (n, \\*features), which no referee has seen."""
    return problem.criterion.holds(evaluate(model, x), problem.y, problem.target)


def broken_by(referee: Referee, problem: Problem, x: Tensor, right: Tensor) -> NDArray[np.bool_]:
    """Which samples given examples break.

    Args:
        referee: of the model that they are held against; only what the model itself answers wrongly is put before it.
        problem: the samples.
        x: (n, \\*features) an example of each.
        right: (n,) bool: samples that are right as they are.

    Returns:
        (n,) bool on the host.
    """
    claimed = right & is_adversarial(referee.model, problem, x)
    return upheld(referee, problem, x, claimed).cpu().numpy()


def fraction(hit: NDArray[np.bool_]) -> float:
    """Share of all samples; 0 without any.

    Example:
        >>> fraction(np.array([True, False])), fraction(np.zeros(0, dtype=bool))
        (0.5, 0.0)
    """
    return float(hit.mean()) if len(hit) else 0.0


def fraction_among(hit: NDArray[np.bool_], among: NDArray[np.bool_]) -> float | None:
    """Share of some of the samples; None if there are none."""
    return float(hit[among].mean()) if among.any() else None


def interval_of(count: int, of: int) -> tuple[float, float]:
    """The 95 % Clopper-Pearson interval of a share.

    Example:
        >>> tuple(round(end, 3) for end in interval_of(8, 10))
        (0.444, 0.975)
    """
    low, high = clopper_pearson(count, of)
    return float(low), float(high)
