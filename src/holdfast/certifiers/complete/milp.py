"""MILP: linear programs and binaries by HiGHS, every verdict made sound by its multipliers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import count
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from holdfast.certifiers.branch_and_bound.linear_program import Floats, Optimum, Program
from holdfast.certifiers.branch_and_bound.witness import Witnesses
from holdfast.certifiers.propagation.propagation import Propagation, specification
from holdfast.certifiers.propagation.region import Box, Region, gamma
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


@dataclass(frozen=True, eq=False)
class _Part:
    """A part of the set, by the signs of some activations' arguments."""

    splits: NDArray[np.int8]
    bound: float
    optimum: Optimum


@dataclass(eq=False)
class _Search:
    """One group of rows while it is decided."""

    query: Query
    relaxation: Relaxation
    found: Propagation
    program: Program
    limit: SearchLimit
    witnesses: Witnesses
    progress: Progress | None
    domains: int
    bound: float = -float("inf")
    reason: str = ""
    witness: Tensor | None = None


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
        found = _propagate(graph, query.ball, query.x, self.memory)
        rows = _root(found, query)
        if any(node.op == "max_pool" for node in graph.nodes) and not query.score(rows[None])[0] > 0:
            found = _propagate(lower_max_pools(graph), query.ball, query.x, self.memory)
            rows = torch.maximum(rows, _root(found, query))
        bounds = [float(rows[query.groups == g].amax()) for g in range(int(query.groups[-1]) + 1)]
        method, domains, reason, witness = "crown", 0, "", None
        if not all(b > 0 for b in bounds):
            method, relaxation = "milp", Relaxation(found, most=self.variables)
            for group, bound in enumerate(bounds):
                if bound > 0:
                    continue
                part, mine = query.select(group), query.groups == group
                program = Program(relaxation, relaxation.objective(part.c, part.d)[0].numpy())
                search = _Search(
                    part, relaxation, found, program, limit, Witnesses(graph, part), progress, domains, bound
                )
                self._decide(search)
                domains, witness, reason = search.domains, search.witness, reason or search.reason
                if witness is not None:
                    break
                bounds[group] = min(search.bound, _PROVED)
                if len(part.c) == 1:
                    rows[mine] = rows[mine].clamp(min=bounds[group])
        decision = Decision.TIMEOUT if not limit.left else Decision.UNKNOWN
        if witness is not None:
            decision, reason = Decision.BROKEN, ""
        elif all(b > 0 for b in bounds):
            decision = Decision.HOLDS
        return Answer(
            decision=decision,
            bound=min(bounds),
            rows=rows,
            witness=witness,
            domains=domains,
            method=method,
            arithmetic=self.arithmetic(graph),
            reason=reason,
        )

    def _decide(self, search: _Search) -> None:
        """Best-first branch and bound on one group; the result is left in ``search``."""
        splits = np.zeros(len(search.program.z), np.int8)
        if not search.program.finite:
            search.reason = "a weight or a bound is not a finite number"
            return
        optimum = search.program.relaxed(splits, search.limit.left)
        if optimum is None:
            search.reason = "HiGHS gives no answer to the first linear program"
            return
        root = self._bounded(search, [_Part(splits, search.bound, optimum)])[0]
        waiting: list[tuple[float, int, _Part]] = []
        number = count()
        if not root.bound > 0:
            heappush(waiting, (root.bound, next(number), root))
            self._look(search, optimum.variables)
            if search.witness is None and self.share > 0 and bool(search.program.bends.all()):
                self._look(search, search.program.point_below(-_CLEAR, self.share * search.limit.left))
        while waiting and search.witness is None:
            search.bound = waiting[0][0]
            if search.progress:
                search.progress(search.domains, len(waiting), search.bound)
            if not search.limit.left or search.domains >= search.limit.domains:
                search.reason = "out of time" if not search.limit.left else "out of domains"
                return
            if len(waiting) * splits.nbytes * 40 > search.limit.memory:
                search.reason = "out of memory"
                return
            children: list[_Part] = []
            for _ in range(min(self.together, len(waiting))):
                _, _, part = heappop(waiting)
                fresh = self._split(search, part)
                if not fresh:
                    search.reason = "all ReLUs are split and rounding, HiGHS' tolerances or smooth activations remain"
                    return
                children += fresh
            for part in self._bounded(search, children):
                if not part.bound > 0:
                    heappush(waiting, (part.bound, next(number), part))
                    if part.optimum.value <= _CLEAR:
                        self._look(search, part.optimum.variables)
        if search.witness is None:
            search.bound = float("inf")

    def _split(self, search: _Search, part: _Part) -> list[_Part]:
        """The two halves at the ReLU whose gap weighs most, each with its linear program's optimum."""
        free = (part.splits == 0) & search.program.bends
        if not free.any():
            return []
        chosen = int(np.where(free, part.optimum.gain, -1.0).argmax())
        children: list[_Part] = []
        for side in (-1, 1):
            splits = part.splits.copy()
            splits[chosen] = side
            optimum = search.program.relaxed(splits, search.limit.left) or part.optimum
            children.append(_Part(splits, part.bound, optimum))
        return children

    def _bounded(self, search: _Search, parts: list[_Part]) -> list[_Part]:
        """The parts with sound bounds, from a backward pass with the slopes and multipliers of their programs."""
        search.domains += len(parts)
        kinks, n, query = search.relaxation.kinks, len(parts), search.query
        graph, same = search.found.graph, torch.zeros(len(parts), dtype=torch.int64)
        boxes: dict[int, Box] = {}
        slopes: dict[int, Tensor] = {}
        extra: dict[int, Tensor] = {}
        splits = torch.as_tensor(np.stack([p.splits for p in parts]))
        lower_slopes = torch.as_tensor(np.stack([p.optimum.slopes for p in parts]))
        multipliers = torch.as_tensor(np.stack([p.optimum.multipliers for p in parts]))
        for node in sorted({int(k) for k in kinks.node}):
            mine, before = kinks.node == node, graph.nodes[node].inputs[0]
            entry, sign = kinks.entry[mine], splits[:, mine]
            box = boxes.get(before) or Box(*(t.repeat(n, *[1] * (t.ndim - 1)) for t in search.found.boxes[before]))
            boxes[before], (low, high) = box, (t.flatten(1) for t in box)
            low[:, entry] = torch.where(sign > 0, low[:, entry].clamp(min=0), low[:, entry])
            high[:, entry] = torch.where(sign < 0, high[:, entry].clamp(max=0), high[:, entry])
            if kinks.flat[mine].isnan().any():
                continue
            slope, more = torch.zeros_like(low), torch.zeros_like(low)
            slope[:, entry] = lower_slopes[:, mine]
            more[:, entry] = -sign * multipliers[:, mine]
            slopes[node] = slope.view(1, n, *graph.nodes[node].shape)
            extra[before] = extra.get(before, 0) + more.view(1, n, *graph.nodes[before].shape)
        weights = torch.as_tensor(np.stack([p.optimum.weights for p in parts]))
        weights = torch.ones_like(weights) if len(query.c) == 1 else weights
        c, d = (weights @ query.c).unsqueeze(1), (weights @ query.d).unsqueeze(1)
        region = Region(query.ball.select(same), query.x.expand(n, *query.x.shape[1:]))
        found = search.found.parts(region, boxes)
        low = specification(found, c, d, slopes, extra=extra)[:, 0]
        if len(query.c) > 1:
            # a mix of rows that is positive makes one of them positive, whatever the weights; mixing rounds
            size = weights @ query.c.abs() * search.found.boxes[-1].magnitude.flatten(1)
            low = low - gamma(len(query.c) + 4) * (size.sum(1) + weights @ query.d.abs())
            low = low / weights.sum(1)
        low = numbers(low)
        return [replace(p, bound=max(p.bound, float(b))) for p, b in zip(parts, low, strict=True)]

    def _look(self, search: _Search, variables: Floats | None) -> None:
        """Takes the point for a witness if the property is broken there when the network runs."""
        if variables is None:
            return
        search.witness = search.witnesses.find(search.relaxation.point(torch.as_tensor(variables)))


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
        >>> graph = Graph((Node("input", (), (2,)), Node("relu", (0,), (2,))))
        >>> x, c = torch.zeros(1, 2), torch.tensor([[1.0, -1.0]])
        >>> value, at = exact_minimum(graph, LpBall.uniform(Norm.LINF, 0.5, 1, low=-1.0), x, c)
        >>> [round(v, 6) for v in value.tolist()], round(float(at[0, 1]), 6)
        ([-0.5], 0.5)
    """
    other = piecewise_linear(graph)
    if other is not None or ball.norm is not Norm.LINF:
        raise UnsupportedError(f"the integer program has no exact form of {other or ball.norm}")
    with torch.no_grad():
        found = _propagate(lower_max_pools(graph), ball, x.double(), None)
        relaxation = Relaxation(found)
        expressions = relaxation.objective(c.double(), torch.zeros(len(c)).double() if d is None else d.double())[0]
        values = torch.full((len(c),), torch.nan, dtype=torch.float64)
        points = torch.full((len(c), *x.shape[1:]), torch.nan, dtype=torch.float64)
        for k in range(len(c)):
            value, variables = Program(relaxation, expressions[k : k + 1].numpy()).exact(seconds)
            if variables is not None:
                values[k], points[k] = value, relaxation.point(torch.as_tensor(variables))[0]
    return values, points


def _propagate(graph: Graph, ball: LpBall, x: Tensor, memory: int | None) -> Propagation:
    found = Propagation(graph.to(torch.float64), Region(ball, x), memory=memory)
    found.run(refine=lambda _: True)
    return found


def _root(found: Propagation, query: Query) -> Tensor:
    """CROWN's bounds of the rows, or intervals' where better."""
    bounds = (specification(found, query.c, query.d, at_boxes=at_boxes)[0] for at_boxes in (False, True))
    return torch.maximum(*bounds)
