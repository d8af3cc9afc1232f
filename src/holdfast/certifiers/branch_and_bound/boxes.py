"""Boxes of inputs: full bounds of some, and cheap ones of parts of them."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.certifiers.branch_and_bound.domains import DomainBatch
from holdfast.certifiers.branch_and_bound.search import Bounded
from holdfast.certifiers.propagation.operation import node_size
from holdfast.certifiers.propagation.propagation import Entries, Propagation
from holdfast.certifiers.propagation.region import Box, Region
from holdfast.certifiers.propagation.specification import linear_specification, specification
from holdfast.certifiers.proved import numbers
from holdfast.certifiers.verification.query import Query
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.graph.model import Graph

__all__ = ["BoxBounded", "BoxBounds", "BoxDomains", "FullBounds", "Halves"]


@dataclass(frozen=True, eq=False, kw_only=True)
class BoxDomains(DomainBatch):
    """Boxes of inputs.

    Attributes:
        lower: (n, features).
        upper: (n, features).
        rows: (n, rows), what is proved of each row of the query.
        signs: (n, open entries) int8, see `BoxBounds.signs`.
    """

    lower: Tensor
    upper: Tensor
    rows: Tensor
    signs: Tensor


class FullBounds(NamedTuple):
    """What the full pass over some boxes says.

    Attributes:
        rows: (n, rows).
        coefficients: (n, rows, features): the rows grow along the input at least like this.
        boxes: of all nodes.
        entries: the linear functions behind them.
    """

    rows: Tensor
    coefficients: Tensor
    boxes: list[Box]
    entries: list[Entries]

    def select(self, rows: Tensor) -> FullBounds:
        """Those of some boxes."""
        entries = [
            Entries(e.node, e.chosen[:, rows], e.least[:, rows], e.most[:, rows], e.coefficients[:, rows])
            for e in self.entries
        ]
        boxes = [Box(*(t[rows] for t in box)) for box in self.boxes]
        return FullBounds(self.rows[rows], self.coefficients[rows], boxes, entries)


@dataclass(frozen=True, eq=False, kw_only=True)
class BoxBounded(Bounded[BoxDomains]):
    """Boxes and their full bounds; `domains` holds the best rows so far, `full` those of the last pass."""

    full: FullBounds

    @override
    def select(self, rows: Tensor) -> BoxBounded:
        """Some of the boxes."""
        return BoxBounded(domains=self.domains.select(rows), proved=self.proved[rows], full=self.full.select(rows))


class Halves(NamedTuple):
    """Halves of n boxes along k inputs each, first all lower ones.

    Attributes:
        low: (2 k, n, features).
        high: likewise.
        rows: (2 k, n, rows), their bounds.
        signs: (2 k, n, open entries).
    """

    low: Tensor
    high: Tensor
    rows: Tensor
    signs: Tensor


class BoxBounds:
    """Bounds of a query's rows over boxes of inputs, by CROWN in float64 with rounding paid for.

    Args:
        graph: the model.
        query: the question.
        memory: bytes for the tensors of one pass.
        signed: what is known of inner values' signs is used; a recorded proof has no place for it.

    Attributes:
        values: entries of all nodes, once the whole set is bounded.
    """

    def __init__(self, graph: Graph, query: Query, memory: int, *, signed: bool) -> None:
        self._graph, self._query, self._use_signs = graph.to(torch.float64), query, signed
        self._memory = max(memory // 16, 1 << 24)
        self._shape = query.x.shape[1:]
        self._root: list[Box] = []
        self._open: list[tuple[int, Tensor]] = []  # nodes whose signs matter, and their entries that the root left open
        self.values = 1

    def full(self, lower: Tensor, upper: Tensor, signs: Tensor) -> FullBounds:
        """CROWN with boxes of its own; the first call is about the whole set."""
        entries: list[Entries] = []
        region = self._region(lower, upper)
        propagation = Propagation(self._graph, region, memory=self._memory, arrived=entries.append)
        propagation.run(refine=lambda _: True, known=self._known(signs))
        rows, coefficients = linear_specification(propagation, self._query.c, self._query.d)
        assert coefficients is not None
        if not self._root:
            self._whole(propagation)
        return FullBounds(rows, coefficients, propagation.boxes, entries)

    def _whole(self, propagation: Propagation) -> None:
        """Notes what the whole set leaves open."""
        graph = propagation.graph
        self._root = propagation.boxes
        self.values = sum(node_size(node.shape) for node in graph.nodes)
        for i in propagation.tightened():
            readers = [node.op for node in graph.nodes if i in node.inputs]
            low, high = (t.flatten() for t in propagation.boxes[i])
            index = (~((low >= 0) | (high <= 0))).nonzero().flatten()
            if len(index) and all(op in ("relu", "leaky_relu") for op in readers):
                self._open.append((i, index))

    def parts(self, full: FullBounds, lower: Tensor, upper: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Cheap sound bounds over parts of boxes that were bounded.

        Args:
            full: of n boxes.
            lower: (n, features), those boxes.
            upper: likewise.
            low: (k, n, features), k parts of each.
            high: likewise.

        Returns:
            Bounds of rows (k, n, rows), and signs (k, n, open entries).
        """
        k, n, _ = low.shape
        known = [Box(*(t.repeat(k, *(1,) * (t.ndim - 1)) for t in box)) for box in full.boxes]
        up, down = low - lower, high - upper
        for i, chosen, least, most, a in full.entries:
            gain = torch.einsum("rnd,knd->krn", a.clamp(min=0), up) + torch.einsum("rnd,knd->krn", a.clamp(max=0), down)
            size = torch.einsum("rnd,nd->rn", a.abs(), upper - lower) + torch.cat([least, most]).abs()
            gain = gain - 1e-13 * (a.shape[2] + 8) * size  # rounding of the gain itself and of adding it
            rows = len(chosen)
            index = chosen.T.repeat(k, 1)
            flat = [t.flatten(1) for t in known[i]]
            first = numbers(least + gain[:, :rows]).transpose(1, 2).reshape(k * n, rows)
            last = -numbers(gain[:, rows:] - most).transpose(1, 2).reshape(k * n, rows)
            flat[0] = flat[0].scatter(1, index, torch.maximum(flat[0].gather(1, index), first))
            flat[1] = flat[1].scatter(1, index, torch.minimum(flat[1].gather(1, index), last))
            known[i] = Box(*(t.view_as(known[i].lower) for t in flat))
        region = self._region(low.flatten(0, 1), high.flatten(0, 1))
        propagation = Propagation(self._graph, region, memory=1 << 28)
        propagation.run(refine=lambda _: False, known=known)
        rows = specification(propagation, self._query.c, self._query.d)
        signs = self.signs(propagation.boxes)
        return rows.view(k, n, rows.shape[1]), signs.view(k, n, signs.shape[1])

    def signs(self, boxes: list[Box]) -> Tensor:
        """(n, open entries): 1 where a value is nowhere negative, -1 where it is nowhere positive."""
        signs = [
            (boxes[i].lower.flatten(1)[:, index] >= 0).to(torch.int8)
            - (boxes[i].upper.flatten(1)[:, index] <= 0).to(torch.int8)
            for i, index in self._open
        ]
        return torch.cat(signs, 1) if signs else torch.zeros(len(boxes[0].lower), 0, dtype=torch.int8)

    def _known(self, signs: Tensor) -> list[Box] | None:
        """What holds of inner values: they do not pass 0 where a sign is known.

        More of what is known of larger boxes is not used: it moves boxes, hence default slopes, and measured on ACAS Xu
        that made bounds worse.
        """
        if not self._use_signs or not self._open:
            return None
        ends = self._root[0].lower.new_tensor([-inf, inf])
        known = [Box(ends[0], ends[1])] * len(self._root)
        start = 0
        for i, index in self._open:
            own = signs[:, start : start + len(index)]
            start += len(index)
            shape = self._root[i].lower.shape[1:]
            low, high = (end.expand(len(signs), node_size(shape)).clone() for end in ends)
            low[:, index] = torch.where(own > 0, 0.0, ends[0])
            high[:, index] = torch.where(own < 0, 0.0, ends[1])
            known[i] = Box(low.view(-1, *shape), high.view(-1, *shape))
        return known

    def _region(self, lower: Tensor, upper: Tensor) -> Region:
        n = len(lower)
        lower, upper = lower.view(n, *self._shape), upper.view(n, *self._shape)
        ball = LpBall(norm=Norm.LINF, eps=lower.new_full((n,), inf), lower=lower, upper=upper)
        return Region(ball, (lower / 2 + upper / 2).clamp(lower, upper))
