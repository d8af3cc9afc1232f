"""A question about a model: is there an input in a set whose output is unsafe?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from holdfast.certifiers.proved import numbers
from holdfast.core.errors import UsageError
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm

__all__ = ["EDGE", "Query"]

EDGE = 1e-300
"""What a strict row that is exactly 0 counts as."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Query:
    """Is there an x' in the ball around x, and a group of rows, with ``C f(x') + d <= 0`` in all rows of the group?

    The outputs in question are a union (over groups) of intersections (over rows) of half-spaces, as in VNN-LIB. The
    property *holds* where the answer is no. To prove it for a region it is enough that in each group one row is positive
    throughout; `score` says by how much. "Class y wins" is one row a group (`GraphCertifier`'s margin rows).

    Attributes:
        x: (1, \\*features) float64, a point of the set.
        ball: the set, for one sample. A box is a linf ball of infinite radius whose lower and upper are the box.
        c: (rows, outputs) float64; a model's output is flattened.
        d: (rows,) float64.
        groups: (rows,) int64, from 0 without gaps, ascending: the group of each row.
        strict: (rows,) bool or None (none is): rows that are met below 0 only, so that 0 itself is safe.
        outside: two (\\*features) bool or None: where the least, and where the largest, input of the box is itself no member
            of the set (strict bounds of inputs). Proofs are about the closed box; witnesses lie inside.

    Example:
        >>> query = Query.of_box(torch.zeros(2), torch.ones(2), torch.eye(3), torch.zeros(3), torch.tensor([0, 0, 1]))
        >>> query.score(torch.tensor([[-1.0, 2.0, 0.5]])).tolist()
        [0.5]
    """

    x: Tensor
    ball: LpBall
    c: Tensor
    d: Tensor
    groups: Tensor
    strict: Tensor | None = None
    outside: tuple[Tensor, Tensor] | None = None

    def __post_init__(self) -> None:
        if len(self.x) != 1 or len(self.ball.eps) != 1:
            raise UsageError("a query is about one sample")
        if self.c.ndim != 2 or not len(self.c) == len(self.d) == len(self.groups) or not len(self.c):
            raise UsageError(
                f"{tuple(self.c.shape)} rows, {tuple(self.d.shape)} offsets, {tuple(self.groups.shape)} groups"
            )
        if self.strict is not None and self.strict.shape != self.d.shape:
            raise UsageError(f"{tuple(self.strict.shape)} strict for {tuple(self.d.shape)} rows")
        steps = self.groups.diff()
        if int(self.groups[0]) != 0 or not bool(((steps == 0) | (steps == 1)).all()):
            raise UsageError("groups must start at 0 and ascend without gaps")

    @classmethod
    def of_box(
        cls,
        lower: Tensor,
        upper: Tensor,
        c: Tensor,
        d: Tensor,
        groups: Tensor | None = None,
        *,
        strict: Tensor | None = None,
        outside: tuple[Tensor, Tensor] | None = None,
    ) -> Query:
        """The query over a box.

        Args:
            lower: (\\*features).
            upper: (\\*features), nowhere below ``lower``.
            c: (rows, outputs).
            d: (rows,).
            groups: (rows,); one row a group if missing.
            strict: see the class.
            outside: see the class.

        Raises:
            UsageError: the box is empty, or shapes do not agree.
        """
        lower, upper = lower.double().unsqueeze(0), upper.double().unsqueeze(0)
        if not bool((lower <= upper).all()):
            raise UsageError("the box is empty: a lower bound lies above its upper bound")
        x = (lower / 2 + upper / 2).clamp(lower, upper)
        ball = LpBall(
            norm=Norm.LINF,
            eps=torch.full((1,), torch.inf, dtype=torch.float64, device=x.device),
            lower=lower,
            upper=upper,
        )
        groups = torch.arange(len(c)) if groups is None else groups
        return cls(x=x, ball=ball, c=c.double(), d=d.double(), groups=groups, strict=strict, outside=outside)

    @property
    def lower(self) -> Tensor:
        """(\\*features): the least input values of the box around the set, in exact float64 where the set is a box."""
        return self._reach(-1)

    @property
    def upper(self) -> Tensor:
        """(\\*features): the largest ones."""
        return self._reach(1)

    @property
    def inside(self) -> tuple[Tensor, Tensor]:
        """The least and the largest inputs of a witness, each (\\*features): the box, or one float64 further in."""
        lower, upper = self.lower, self.upper
        if self.outside is None:
            return lower, upper
        inward = torch.nextafter(lower, upper), torch.nextafter(upper, lower)
        return torch.where(self.outside[0], inward[0], lower), torch.where(self.outside[1], inward[1], upper)

    def _reach(self, sign: int) -> Tensor:
        edge = (self.ball.upper if sign > 0 else self.ball.lower).double().expand(self.x.shape)
        if self.ball.norm is not Norm.L0:
            reached = self.x + sign * self.ball.eps.view(-1, *(1,) * (self.x.ndim - 1))
            edge = torch.minimum(edge, reached) if sign > 0 else torch.maximum(edge, reached)
        return edge[0] if self.ball.mask is None else torch.where(self.ball.mask, edge, self.x)[0]

    def score(self, rows: Tensor) -> Tensor:
        """The least over groups of the largest row of each: positive bounds prove, others at a point break.

        A strict row is safe at 0: what is exactly 0 counts as the least of positive numbers there.

        Args:
            rows: (n, rows): ``C f + d`` at points, or lower bounds of it.

        Returns:
            (n,). What says nothing (`holdfast.certifiers.proved.numbers`) counts as -inf.
        """
        rows = numbers(rows)
        if self.strict is not None:
            rows = torch.where(self.strict.to(rows.device) & (rows == 0), EDGE, rows)
        count = int(self.groups[-1]) + 1
        best = rows.new_full((len(rows), count), -torch.inf)
        return best.scatter_reduce(1, self.groups.to(rows.device).expand(len(rows), -1), rows, "amax").amin(1)

    def best_rows(self, rows: Tensor) -> tuple[int, ...]:
        """For each group its row with the largest bound, of (rows,)."""
        groups = self.groups.to(rows.device)
        return tuple(int(torch.where(groups == g, rows, -torch.inf).argmax()) for g in range(int(groups[-1]) + 1))

    def select(self, group: int) -> Query:
        """The same question about one group alone."""
        return self.keep(self.groups == group)

    def keep(self, rows: Tensor) -> Query:
        """The same question about some rows (a mask); groups that keep none are gone."""
        groups = _renumbered(self.groups[rows])
        strict = None if self.strict is None else self.strict[rows]
        return replace(self, c=self.c[rows], d=self.d[rows], groups=groups, strict=strict)


def _renumbered(groups: Tensor) -> Tensor:
    """Group numbers counted from 0 without gaps, in the same order."""
    known = torch.zeros(int(groups.max()) + 1 if len(groups) else 0, dtype=torch.int64, device=groups.device)
    known[groups] = 1
    return known.cumsum(0)[groups] - 1
