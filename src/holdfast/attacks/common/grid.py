"""Small steps and a grid of valid values: the search moves off the grid, the model is asked on it."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from holdfast.core.problem import Problem
from holdfast.core.sets import LpBall
from holdfast.numerics.project import snap_to_grid

__all__ = ["gridless", "valid"]


def gridless(problem: Problem) -> LpBall:
    """The set to search in: projecting on a grid after each step would undo every step smaller than it."""
    return replace(problem.set, grid=None)


def valid(problem: Problem, x: Tensor) -> Tensor:
    """(n, \\*features) x as the model is asked about it: on the grid, rounded toward the clean input."""
    return x if problem.set.grid is None else snap_to_grid(problem.set, x, problem.x)
