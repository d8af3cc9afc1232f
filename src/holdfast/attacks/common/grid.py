"""A grid of valid values: the search moves off it (`holdfast.core.problem.Problem.ball`), the model is asked on it."""

from __future__ import annotations

from torch import Tensor

from holdfast.core.problem import Problem
from holdfast.numerics.project import snap_to_grid

__all__ = ["valid"]


def valid(problem: Problem, x: Tensor) -> Tensor:
    """(n, \\*features) x as the model is asked about it: on the grid, rounded toward the clean input."""
    return x if problem.set.grid is None else snap_to_grid(problem.set, x, problem.x)
