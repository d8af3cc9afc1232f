"""MILP: linear programs and binaries by HiGHS, every verdict made sound by its multipliers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from holdfast.certifiers.branch_and_bound.domains import DomainBatch
from holdfast.certifiers.branch_and_bound.linear_program import Optimum, Program
from holdfast.certifiers.branch_and_bound.pool import OldestFirst
from holdfast.certifiers.branch_and_bound.search import (
    Bounded,
    BranchAndBound,
    Ending,
    Settled,
    Stop,
    StuckError,
    search,
)
from holdfast.certifiers.propagation.propagation import Propagation
from holdfast.certifiers.propagation.region import Box, Region, gamma
from holdfast.certifiers.propagation.specification import specification
from holdfast.certifiers.proved import numbers
from holdfast.certifiers.relaxation.relaxation import Relaxation, lower_max_pools, piecewise_linear
from holdfast.certifiers.verification.query import Query
from holdfast.certifiers.verification.solver import Answer, Decision, Progress, SearchLimit, Solver
from holdfast.certifiers.verification.tree import Tree
from holdfast.core.cards import Card, parameter
from holdfast.core.errors import UnsupportedError
from holdfast.core.sets import LpBall
from holdfast.core.threat import Guarantee, Norm
from holdfast.graph.model import Graph

__all__ = ["MILP", "exact_minimum"]

_PROVED = 1e-12  # what a row counts for that only splitting proved: no better than a root bound that proves it
_CLEAR = 1e-6  # HiGHS' tolerance


@dataclass(frozen=True)
class MILP(Solver):
    """Mixed-integer programming (Tjeng et al. 2019) for small networks, with sound verdicts.

    HiGHS works up to tolerances, so nothing that it says is believed. Its integer program looks for a witness, which is
    run again. A proof comes from our own branch and bound over the signs of ReLU arguments: HiGHS solves the linear
    program of each part, and its multipliers become slopes and split multipliers of a backward pass, which bounds the
    part soundly whatever they are (by duality the two bounds are the same up to rounding). Max pools count as ReLUs.
    Smooth activations stay between their lines and are never split: with them it can prove or fail, not decide.
    """

    card: ClassVar[Card] = Card(
        title="MILP",
        rows=("V02",),
        paper="Tjeng et al. 2019, Evaluating Robustness of Neural Networks with Mixed Integer Programming, "
        "arXiv 1711.07356; safe dual bounds after Neumaier and Shcherbina 2004, Mathematical Programming 99",
        section="3.3",
        summary="Exact for small ReLU networks: an integer program finds witnesses, linear programs and their "
        "multipliers prove.",
        norms=(Norm.LINF,),
        guarantee=Guarantee.SOUND,
        failure_modes=(
            "time grows exponentially with the ReLUs whose sign is open",
            "a margin below what rounding leaves, about 1e-10, stays unknown",
            "smooth activations are not split",
        ),
        checked_by="exact optima of small networks by an integer program of another encoding, sampled points",
    )

    variables: int = parameter(
        1500,
        "more inputs and open activations than this are refused, at least 1",
        "ours: a second for a linear program",
    )
    share: float = parameter(
        0.25, "part of the time in which the integer program may look for a witness, in [0, 1]", "ours"
    )
    together: int = parameter(8, "parts that are split at once, at least 1", "ours: a backward pass bounds two of each")
    memory: int | None = parameter(
        None, "bytes for the coefficients of one backward pass", "ours: 16 MB on a CPU (its cache), 1 GB elsewhere"
    )

    @override
    def solve(
        self,
        graph: Graph,
        query: Query,
        limit: SearchLimit,
        *,
        tree: Tree | None = None,
        progress: Progress | None = None,
    ) -> Answer:
        """See `Solver.solve`; it records no tree."""
        self.check_deployed(graph)
        if query.ball.norm is not Norm.LINF:
            raise UnsupportedError(f"MILP serves linf balls and boxes, not {query.ball.norm}; use neuron_splitting")
        with torch.no_grad():
            return self._solve(graph, query, limit, progress)

    def _solve(self, graph: Graph, query: Query, limit: SearchLimit, progress: Progress | None) -> Answer:
        propagation = _propagate(graph, query.ball, query.x, self.memory)
        rows = _root(propagation, query)
        if any(node.op == "max_pool" for node in graph.nodes) and not query.score(rows[None])[0] > 0:
            propagation = _propagate(lower_max_pools(graph), query.ball, query.x, self.memory)
            rows = torch.maximum(rows, _root(propagation, query))
        by_group = [float(rows[query.groups == g].amax()) for g in range(int(query.groups[-1]) + 1)]
        answer = Answer(
            decision=Decision.UNKNOWN,
            bound=min(by_group),
            rows=rows,
            method="milp",
            arithmetic=self.arithmetic(graph),
        )
        if all(bound > 0 for bound in by_group):
            return replace(answer, decision=Decision.HOLDS, method="crown")
        relaxation = Relaxation(propagation, most=self.variables)
        domains, reason = 0, ""
        for group in [g for g, bound in enumerate(by_group) if not bound > 0]:
            programs = _Programs(
                method=self,
                graph=graph,
                query=query.select(group),
                limit=limit,
                propagation=propagation,
                relaxation=relaxation,
                bound=by_group[group],
                domains=domains,
            )
            one = search(programs, progress)
            domains, reason = one.domains, reason or one.reason
            if one.witness is not None:
                decision = Decision.BROKEN
                return replace(answer, decision=decision, bound=min(by_group), witness=one.witness, domains=domains)
            by_group[group] = min(one.bound, _PROVED)
            mine = query.groups == group
            if int(mine.sum()) == 1:
                rows[mine] = rows[mine].clamp(min=by_group[group])
        decision = Decision.UNKNOWN if limit.left else Decision.TIMEOUT
        if all(bound > 0 for bound in by_group):
            decision = Decision.HOLDS
        return replace(answer, decision=decision, bound=min(by_group), domains=domains, reason=reason)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Parts(DomainBatch):
    """Parts of the set by the signs of some activations' arguments, with the optima of their linear programs.

    Attributes:
        splits: (n, k) int8, see `Program.relaxed`.
        value: (n,), and the others likewise: see `Optimum`.
        variables: (n, v).
        weights: (n, rows).
        slopes: (n, k).
        multipliers: (n, k).
        gain: (n, k).
    """

    splits: Tensor
    value: Tensor
    variables: Tensor
    weights: Tensor
    slopes: Tensor
    multipliers: Tensor
    gain: Tensor

    @classmethod
    def solved(cls, bound: Tensor, splits: NDArray[np.int8], optimum: Optimum) -> _Parts:
        """One part with its optimum; ``bound`` (1,) is what is known of it."""
        columns = (optimum.variables, optimum.weights, optimum.slopes, optimum.multipliers, optimum.gain)
        variables, weights, slopes, multipliers, gain = (torch.as_tensor(column)[None] for column in columns)
        return cls(
            bound=bound,
            vertex=torch.zeros(1, dtype=torch.int64),
            splits=torch.as_tensor(splits)[None],
            value=torch.tensor([optimum.value], dtype=torch.float64),
            variables=variables,
            weights=weights,
            slopes=slopes,
            multipliers=multipliers,
            gain=gain,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class _BoundedParts(Bounded[_Parts]):
    @override
    def select(self, rows: Tensor) -> _BoundedParts:
        return _BoundedParts(domains=self.domains.select(rows), proved=self.proved[rows])


class _Programs(BranchAndBound[_Parts, _BoundedParts]):
    """The search of one group of rows.

    Args:
        method: the parameters.
        graph: the model.
        query: about one group.
        limit: what may be spent.
        propagation: of the whole set.
        relaxation: of the same.
        bound: what is known of the group.
        domains: how many parts were bounded for other groups.
    """

    def __init__(
        self,
        *,
        method: MILP,
        graph: Graph,
        query: Query,
        limit: SearchLimit,
        propagation: Propagation,
        relaxation: Relaxation,
        bound: float,
        domains: int,
    ) -> None:
        super().__init__(graph, query, limit)
        self.method, self.batch, self.domains = method, method.together, domains
        self.queue = OldestFirst()  # children often know no more than their parents, and are their equals then
        self.propagation, self.relaxation, self.known = propagation, relaxation, bound
        self.program = Program(relaxation, relaxation.objective(query.c, query.d)[0].numpy())

    @override
    def root(self) -> _BoundedParts | Settled:
        """The whole set; where its bound proves nothing the integer program looks for a witness."""
        splits = np.zeros(len(self.program.z), np.int8)
        if not self.program.finite:
            raise StuckError("a weight or a bound is not a finite number")
        optimum = self.program.relaxed(splits, self.limit.left)
        if optimum is None:
            raise StuckError("HiGHS gives no answer to the first linear program")
        whole = self.bound(_Parts.solved(torch.tensor([self.known], dtype=torch.float64), splits, optimum))
        if whole.proved[0]:
            return whole
        witness = self.witnesses.find(self._points(whole.domains.variables))
        if witness is None and self.method.share > 0 and bool(self.program.bends.all()):
            variables = self.program.point_below(-_CLEAR, self.method.share * self.limit.left)
            if variables is not None:
                witness = self.witnesses.find(self._points(torch.as_tensor(variables)[None]))
        return whole if witness is None else Settled(witness)

    @override
    def split(self, domains: _Parts) -> _Parts:
        """The two halves of each part at the ReLU whose gap weighs most, each with its linear program's optimum."""
        free = (domains.splits == 0) & torch.as_tensor(self.program.bends)
        if not free.any(1).all():
            self.queue.add(domains)
            raise StuckError("all ReLUs are split and rounding, HiGHS' tolerances or smooth activations remain")
        units = torch.where(free, domains.gain, -1.0).argmax(1)
        children: list[_Parts] = []
        for i, unit in enumerate(units.numpy().tolist()):
            for side in (-1, 1):
                parent = domains.select(slice(i, i + 1))
                splits = parent.splits[0].numpy().copy()
                splits[unit] = side
                optimum = self.program.relaxed(splits, self.limit.left)
                if optimum is None:
                    children.append(replace(parent, splits=torch.as_tensor(splits)[None]))
                else:
                    children.append(_Parts.solved(parent.bound, splits, optimum))
        return _Parts.join(children)

    @override
    def bound(self, domains: _Parts) -> _BoundedParts:
        """Sound bounds by a backward pass with the slopes and multipliers of the parts' programs."""
        self.domains += len(domains)
        boxes, slopes, extra = self._cut(domains)
        n, query = len(domains), self.query
        weights = torch.ones_like(domains.weights) if len(query.c) == 1 else domains.weights
        c, d = (weights @ query.c).unsqueeze(1), (weights @ query.d).unsqueeze(1)
        same = torch.zeros(n, dtype=torch.int64)
        region = Region(query.ball.select(same), query.x.expand(n, *query.x.shape[1:]))
        low = specification(self.propagation.parts(region, boxes), c, d, slopes, extra=extra)[:, 0]
        if len(query.c) > 1:
            # a mix of rows that is positive makes one of them positive, whatever the weights; mixing rounds
            size = weights @ query.c.abs() * self.propagation.boxes[-1].magnitude.flatten(1)
            low = low - gamma(len(query.c) + 4) * (size.sum(1) + weights @ query.d.abs())
            low = low / weights.sum(1)
        bound = torch.maximum(domains.bound, numbers(low))
        return _BoundedParts(domains=replace(domains, bound=bound), proved=bound > 0)

    def _cut(self, domains: _Parts) -> tuple[dict[int, Box], dict[int, Tensor], dict[int, Tensor]]:
        """By node the boxes of the parts, slopes, and coefficients that the splits' multipliers add."""
        kinks, nodes, n = self.relaxation.kinks, self.propagation.graph.nodes, len(domains)
        boxes: dict[int, Box] = {}
        slopes: dict[int, Tensor] = {}
        extra: dict[int, Tensor] = {}
        for node in sorted({int(k) for k in kinks.node}):
            mine, before = kinks.node == node, nodes[node].inputs[0]
            entry, sign = kinks.entry[mine], domains.splits[:, mine]
            whole = self.propagation.boxes[before]
            box = boxes.get(before) or Box(*(t.repeat(n, *[1] * (t.ndim - 1)) for t in whole))
            boxes[before], (low, high) = box, (t.flatten(1) for t in box)
            low[:, entry] = torch.where(sign > 0, low[:, entry].clamp(min=0), low[:, entry])
            high[:, entry] = torch.where(sign < 0, high[:, entry].clamp(max=0), high[:, entry])
            if kinks.flat[mine].isnan().any():
                continue
            slope, more = torch.zeros_like(low), torch.zeros_like(low)
            slope[:, entry] = domains.slopes[:, mine]
            more[:, entry] = -sign * domains.multipliers[:, mine]
            slopes[node] = slope.view(1, n, *nodes[node].shape)
            extra[before] = extra.get(before, 0) + more.view(1, n, *nodes[before].shape)
        return boxes, slopes, extra

    def _points(self, variables: Tensor) -> Tensor:
        return torch.cat([self.relaxation.point(one) for one in variables])

    @override
    def suspects(self, open_: _BoundedParts) -> tuple[Tensor, int]:
        """Where the linear programs are least, if the property is broken there in the relaxation."""
        likely = open_.domains.value <= _CLEAR
        if not self.iterations or not likely.any():  # that of the whole set was tried
            return self.query.x[:0], 0
        return self._points(open_.domains.variables[likely]), 0

    @override
    def close(self, bounded: _BoundedParts) -> None:
        """Nothing: parts that are proved only by splitting count for as little as can be."""

    @override
    def choose(self, open_: _BoundedParts) -> _Parts:
        """The parts as they are; their programs have said where to split them."""
        return open_.domains

    @override
    def answer(self, ending: Ending) -> Answer:
        """What the search says of the group; its bound is infinite if all parts are proved."""
        words = {Stop.TIME: "out of time", Stop.DOMAINS: "out of domains", Stop.MEMORY: "out of memory"}
        reason = ending.stuck if ending.stop is None else words[ending.stop]
        bound = min(self.queue.worst, self.known if reason and not len(self.queue) else float("inf"))
        return Answer(
            decision=Decision.UNKNOWN, bound=bound, witness=ending.witness, domains=self.domains, reason=reason
        )


def exact_minimum(
    graph: Graph, ball: LpBall, x: Tensor, c: Tensor, d: Tensor | None = None, *, seconds: float = 60.0
) -> tuple[Tensor, Tensor]:
    """The least of each row ``c f + d`` over a linf ball by the integer program, up to HiGHS' tolerances: a reference.

    Args:
        graph: a network of linear operations, (leaky) ReLUs and max pools.
        ball: the set, for one sample.
        x: (1, \\*features).
        c: (rows, outputs).
        d: (rows,), 0 if missing.
        seconds: for each row.

    Returns:
        The least values (rows,) and where they are taken, (rows, \\*features), both float64; NaN where HiGHS is not done.

    Raises:
        UnsupportedError: another operation, or another norm.

    Example:
        >>> from holdfast.graph.model import Node
        >>> given = Node(op="input", inputs=(), shape=(2,))
        >>> graph = Graph((given, Node(op="relu", inputs=(0,), shape=(2,))))
        >>> x, c = torch.zeros(1, 2), torch.tensor([[1.0, -1.0]])
        >>> value, at = exact_minimum(graph, LpBall.uniform(Norm.LINF, 0.5, 1, low=-1.0), x, c)
        >>> [round(v, 6) for v in value.tolist()], round(float(at[0, 1]), 6)
        ([-0.5], 0.5)
    """
    other = piecewise_linear(graph)
    if other is not None or ball.norm is not Norm.LINF:
        raise UnsupportedError(f"the integer program has no exact form of {other or ball.norm}")
    with torch.no_grad():
        propagation = _propagate(lower_max_pools(graph), ball, x.double(), None)
        relaxation = Relaxation(propagation)
        expressions = relaxation.objective(c.double(), torch.zeros(len(c)).double() if d is None else d.double())[0]
        values = torch.full((len(c),), torch.nan, dtype=torch.float64)
        points = torch.full((len(c), *x.shape[1:]), torch.nan, dtype=torch.float64)
        for k in range(len(c)):
            value, variables = Program(relaxation, expressions[k : k + 1].numpy()).exact(seconds)
            if variables is not None:
                values[k], points[k] = value, relaxation.point(torch.as_tensor(variables))[0]
    return values, points


def _propagate(graph: Graph, ball: LpBall, x: Tensor, memory: int | None) -> Propagation:
    propagation = Propagation(graph.to(torch.float64), Region(ball, x), memory=memory)
    propagation.run(refine=lambda _: True)
    return propagation


def _root(propagation: Propagation, query: Query) -> Tensor:
    """CROWN's bounds of the rows, or intervals' where better."""
    bounds = (specification(propagation, query.c, query.d, at_boxes=at_boxes)[0] for at_boxes in (False, True))
    return torch.maximum(*bounds)
