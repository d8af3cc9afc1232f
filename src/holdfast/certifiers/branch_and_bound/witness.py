"""Witnesses on the way: the points where relaxations are least, tried on the model itself."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.certifiers.verification.query import Query
from holdfast.certifiers.verification.verifier import broken, representable, whole_points
from holdfast.core.threat import Norm
from holdfast.graph.model import Graph
from holdfast.numerics.project import project

__all__ = ["Witnesses"]

_TRIED = 4  # points that seem to break the query, of one step; each is run again with care


class Witnesses:
    """Looks for a point that breaks a query, from given points on.

    Args:
        graph: the model.
        query: the question.
    """

    def __init__(self, graph: Graph, query: Query) -> None:
        self._graph, self._query = graph, query
        self._model = graph.as_module().requires_grad_(False)

    def rows(self, x: Tensor) -> Tensor:
        """``C f(x) + d`` as the model computes it, (n, rows) float64."""
        return self._model(x.to(self._graph.dtype)).flatten(1).double() @ self._query.c.T + self._query.d

    def find(self, x: Tensor, steps: int = 0) -> Tensor | None:
        """A witness (1, \\*features) float64 among the points (n, \\*features) or on the way down from them, or None."""
        if self._query.ball.norm is not Norm.LINF:
            n = len(x)
            ball = self._query.ball.select(torch.zeros(n, dtype=torch.int64))
            x = project(ball, x, self._query.x.expand(n, *x.shape[1:]))
        x = self._settled(x)
        lower, upper = self._query.inside
        for step in range(steps + 1):
            with torch.set_grad_enabled(step < steps):
                point = x.clone().requires_grad_(step < steps)
                score = self._query.score(self.rows(point))
                total = score.sum()  # given weights of its own, autograd would import sympy: 2 s
            for i in map(int, (score <= 0).nonzero().flatten()[:_TRIED]):
                if broken(self._graph, self._query, x[i : i + 1]):
                    return x[i : i + 1]
            if step < steps:
                if not total.requires_grad:  # nothing leads downhill: rows of a table
                    return None
                (gradient,) = torch.autograd.grad(total, point, allow_unused=True, materialize_grads=True)
                rate = 0.25 * (1 - step / steps)
                x = torch.clamp(x - rate * (upper - lower) * gradient.sign(), lower, upper)
                x = self._settled(x)
        return None

    def _settled(self, x: Tensor) -> Tensor:
        """Points as a witness has to be."""
        return whole_points(self._query, x) if self._graph.whole else representable(self._query, x, self._graph.dtype)
