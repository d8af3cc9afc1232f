"""Input splitting: branch and bound over boxes of inputs, for models with few of them."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from time import monotonic
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.certifiers.branch_and_bound.pool import Pool
from holdfast.certifiers.branch_and_bound.witness import Witnesses
from holdfast.certifiers.propagation.operation import node_size
from holdfast.certifiers.propagation.propagation import Entries, Propagation, linear_specification, specification
from holdfast.certifiers.propagation.region import Box, Region
from holdfast.certifiers.proved import numbers, proved
from holdfast.certifiers.verification.query import Query
from holdfast.certifiers.verification.solver import Answer, Decision, Progress, SearchLimit, Solver
from holdfast.certifiers.verification.tree import Leaf, Tree
from holdfast.core.cards import Card, parameter
from holdfast.core.errors import UnsupportedError
from holdfast.core.sets import LpBall
from holdfast.core.threat import Guarantee, Norm
from holdfast.graph.model import Graph

__all__ = ["InputSplitting"]

_GUARD = 1e-7  # a recorded leaf must hold by more than another order of summation may change
_MARGIN = 1e-6  # parts of boxes where a property holds by twice this are cut off
_CACHE = 1 << 22  # numbers that the candidates of one chunk may take for each value of the network
_SLIVER = 1 / 64  # of the width of another input
_PROGRESS = 0.02  # a cut that brings a row nearer to 0 by less than this part of its distance does not help


@dataclass(frozen=True)
class InputSplitting(Solver):
    """Branch and bound that halves boxes of inputs (Wang et al. 2018, ReluVal and Neurify).

    Each box is bounded once by CROWN with boxes of its own for all inner values, in float64 with rounding paid for. The
    linear functions that bound inner values over a box also bound them over its halves, at the price of a dot product;
    from these and one backward pass of the specification alone come cheap sound bounds of both halves for *every* input
    that might be halved. The input whose halves gain most is taken, and halves that are proved are never looked at again.

    Centres and the corners where a bound is least are tried as witnesses, some with a few steps downhill.
    """

    card: ClassVar[Card] = Card(
        title="Input splitting",
        rows=("V02",),
        paper="Wang et al. 2018, Formal Security Analysis of Neural Networks using Symbolic Intervals (ReluVal), arXiv "
        "1804.10829; Wang et al. 2018, Efficient Formal Safety Analysis of Neural Networks (Neurify), arXiv 1809.08098; "
        "Bunel et al. 2020, arXiv 1909.06588, for the choice by bounds of the halves",
        section="3.3",
        summary="Halves the box of inputs, along the input that gains most, until CROWN proves every part.",
        norms=(Norm.LINF,),
        guarantee=Guarantee.SOUND,
        failure_modes=(
            "exponential in the number of inputs that matter: beyond about 20, split neurons",
            "a property that holds with a margin of nearly 0 ends at the resolution of floats as unknown",
        ),
        checked_by="exact optima of small networks by mixed-integer programming; planted counterexamples; verdicts of "
        "the verification competition",
    )
    deployable: ClassVar[bool] = True

    candidates: int = parameter(
        10, "inputs whose halves are bounded before one is chosen, at least 1", "ours: all inputs of ACAS Xu and more"
    )
    boxes: int = parameter(
        1024, "boxes that are taken from the queue at once, at least 1", "ours: worst first, at little overhead"
    )
    chunk: int = parameter(256, "boxes that are bounded at once, at least 1", "ours: fits a CPU's cache")
    doubt: float = parameter(
        0.02,
        "cheap bounds of halves that gain less than this part are not trusted, in [0, 1]",
        "ours: of 0, 0.02, 0.2 on four",
    )
    trials: int = parameter(5, "inputs whose halves are then bounded in full, at least 1", "ours: those of ACAS Xu")
    descent: int = parameter(10, "steps downhill from points in every second power of rounds, at least 0", "ours")

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
        """See `Solver.solve`."""
        if query.ball.norm is not Norm.LINF or not Region(query.ball, query.x).independent:
            raise UnsupportedError("input splitting serves boxes and linf balls; use neuron_splitting")
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=False):
            return _Search(self, graph, query, limit, tree).run(progress)


class _Full(NamedTuple):
    """What the full pass over some boxes found."""

    rows: Tensor
    coefficients: Tensor  # (n, rows, features)
    boxes: list[Box]
    lines: list[Entries]


class _Search:
    """One search; the columns of a domain are its box, bounds of the rows, signs of inner values and its vertex."""

    def __init__(
        self, method: InputSplitting, graph: Graph, query: Query, limit: SearchLimit, tree: Tree | None
    ) -> None:
        self.method, self.query, self.limit, self.tree = method, query, limit, tree
        self.given, self.graph = graph, graph.to(torch.float64)
        self.witnesses = Witnesses(graph, query)
        self.shape = query.x.shape[1:]
        box = Region(query.ball, query.x).box  # of a ball: rounded outwards
        self.low, self.high = box.lower.flatten(1), box.upper.flatten(1)
        self.pool = Pool()
        self.domains = 0
        self.settled = query.c.new_full((len(query.d),), torch.inf)  # the least bounds of what is proved or stuck
        self.least = inf  # and the least score
        self.stuck = False
        self.values = 1
        self.root: list[Box] = []
        self.signed: list[
            tuple[int, Tensor]
        ] = []  # nodes whose signs matter, and their entries that the root left open

    def run(self, progress: Progress | None) -> Answer:
        """Until nothing is open or what is allowed is spent."""
        witness = self._start()
        rounds = 0
        while witness is None and len(self.pool) and self._spare():
            taken = self.pool.take(self.method.boxes)
            if not self.tree:  # boxes with as many open signs go together: their passes have as many rows
                order = (taken["signs"] == 0).sum(1).argsort()
                taken = {name: column[order] for name, column in taken.items()}
            rounds += 1
            steps = self.method.descent if rounds & (rounds - 1) == 0 else 0
            done = 0
            while done < len(taken["bound"]) and witness is None and self._spare():
                part = slice(done, done + self._chunk())
                witness = self._expand({name: column[part] for name, column in taken.items()}, steps)
                done = part.stop
            self.pool.add({name: column[done:] for name, column in taken.items()})
            if progress is not None:
                progress(self.domains, len(self.pool), self._bound())
        return self._answer(witness)

    def _spare(self) -> bool:
        """Whether another chunk is allowed."""
        limit = self.limit
        return monotonic() < limit.deadline and self.domains < limit.domains and self.pool.bytes < limit.memory

    def _chunk(self) -> int:
        each = 2 * min(self.method.candidates, self.low.shape[1]) * self.values
        return min(max(_CACHE // each, 1), self.method.chunk, self.limit.domains)

    def _bound(self) -> float:
        return min(self.least, self.pool.worst)

    def _answer(self, witness: Tensor | None) -> Answer:
        rows = self.settled
        worst = self._bound()
        while len(self.pool):
            rows = torch.minimum(rows, self.pool.take(1 << 16)["rows"].amin(0))
        reason = ""
        if witness is not None:
            decision = Decision.BROKEN
        elif worst > 0:
            decision = Decision.HOLDS
        elif monotonic() >= self.limit.deadline:
            decision = Decision.TIMEOUT
        else:
            decision = Decision.UNKNOWN
            reason = "boxes are as small as floats allow" if self.stuck else "the budget of domains or memory is spent"
        return Answer(
            decision=decision,
            bound=worst,
            rows=rows,
            witness=witness,
            domains=self.domains,
            method="input_splitting",
            arithmetic=self.method.arithmetic(self.given),
            reason=reason,
        )

    def _start(self) -> Tensor | None:
        """Bounds the whole set, which says which signs are open."""
        rows = self.query.c.new_full((1, len(self.query.d)), -torch.inf)
        none = torch.zeros(1, 0, dtype=torch.int8)
        whole = {
            "bound": self.query.score(rows),
            "lower": self.low,
            "upper": self.high,
            "rows": rows,
            "signs": none,
            "vertex": torch.zeros(1, dtype=torch.int64),
        }
        return self._expand(whole, self.method.descent)

    # bounds

    def _region(self, lower: Tensor, upper: Tensor) -> Region:
        n = len(lower)
        lower, upper = lower.view(n, *self.shape), upper.view(n, *self.shape)
        ball = LpBall(Norm.LINF, lower.new_full((n,), inf), lower, upper)
        return Region(ball, (lower / 2 + upper / 2).clamp(lower, upper))

    def _known(self, signs: Tensor) -> list[Box] | None:
        """What holds of inner values: they do not pass 0 where a sign is known.

        More of what is known of larger boxes is not used: it moves boxes, hence default slopes, and measured on ACAS Xu
        that made bounds worse.
        """
        if self.tree is not None or not self.signed:
            return None
        ends = self.low.new_tensor([-inf, inf])
        known = [Box(ends[0], ends[1])] * len(self.root)
        start = 0
        for i, index in self.signed:
            own = signs[:, start : start + len(index)]
            start += len(index)
            shape = self.root[i].lower.shape[1:]
            low, high = (end.expand(len(signs), node_size(shape)).clone() for end in ends)
            low[:, index] = torch.where(own > 0, 0.0, ends[0])
            high[:, index] = torch.where(own < 0, 0.0, ends[1])
            known[i] = Box(low.view(-1, *shape), high.view(-1, *shape))
        return known

    def _signs(self, boxes: list[Box]) -> Tensor:
        """(n, open entries): 1 where a value is nowhere negative, -1 where it is nowhere positive."""
        found = [
            (boxes[i].lower.flatten(1)[:, index] >= 0).to(torch.int8)
            - (boxes[i].upper.flatten(1)[:, index] <= 0).to(torch.int8)
            for i, index in self.signed
        ]
        return torch.cat(found, 1) if found else torch.zeros(len(boxes[0].lower), 0, dtype=torch.int8)

    def _full(self, lower: Tensor, upper: Tensor, signs: Tensor) -> _Full:
        """CROWN with boxes of its own."""
        lines: list[Entries] = []
        memory = max(self.limit.memory // 16, 1 << 24)
        found = Propagation(self.graph, self._region(lower, upper), memory=memory, arrived=lines.append)
        found.run(refine=lambda _: True, known=self._known(signs))
        rows, coefficients = linear_specification(found, self.query.c, self.query.d)
        assert coefficients is not None
        if not self.root:
            self.root = found.boxes
            self.values = sum(node_size(node.shape) for node in found.graph.nodes)
            for i in found.tightened():
                readers = [node.op for node in found.graph.nodes if i in node.inputs]
                low, high = (t.flatten() for t in found.boxes[i])
                index = (~((low >= 0) | (high <= 0))).nonzero().flatten()
                if len(index) and all(op in ("relu", "leaky_relu") for op in readers):
                    self.signed.append((i, index))
        return _Full(rows, coefficients, found.boxes, lines)

    def _halves(self, full: _Full, lower: Tensor, upper: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
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
        for i, chosen, least, most, a in full.lines:
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
        found = Propagation(self.graph, self._region(low.flatten(0, 1), high.flatten(0, 1)), memory=1 << 28)
        found.run(refine=lambda _: False, known=known)
        rows = specification(found, self.query.c, self.query.d)
        signs = self._signs(found.boxes)
        return rows.view(k, n, rows.shape[1]), signs.view(k, n, signs.shape[1])

    # one chunk

    def _expand(self, part: dict[str, Tensor], steps: int) -> Tensor | None:
        """Bounds boxes, tries points of them, and puts the halves of those that stay open into the queue."""
        lower, upper, before = part["lower"], part["upper"], part["rows"]
        self.domains += len(lower)
        full = self._full(lower, upper, part["signs"])
        rows = torch.maximum(full.rows, before)
        proved = self._proved(full.rows if self.tree is not None else rows)
        self._settle(rows[proved])
        self._close(part["vertex"][proved], full.rows[proved])
        keep = (~proved).nonzero().flatten()
        if not len(keep):
            return None
        witness = self._try(full, lower, upper, keep, steps)
        if witness is not None:
            self.pool.add({name: column[keep] for name, column in (part | {"rows": rows}).items()})
            return witness
        full, lower, upper, rows, vertex = _pick(full, keep), lower[keep], upper[keep], rows[keep], part["vertex"][keep]
        low, high = lower, upper
        if self.tree is None:
            low, high, alive = self._clip(full, lower, upper)
        else:
            alive = torch.ones(len(low), dtype=torch.bool)
        middle = low / 2 + high / 2
        able = (middle > low) & (middle < high)
        stuck = alive & ~able.any(1)
        if stuck.any():
            self.stuck = True
            self._settle(rows[stuck])
        keep = (alive & able.any(1)).nonzero().flatten()
        if len(keep):
            parts = (t[keep] for t in (lower, upper, low, high, able, rows, vertex))
            self._divide(_pick(full, keep), *parts)
        return None

    def _clip(self, full: _Full, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The least boxes around what the rows' linear bounds leave open: where all rows of a group may be near 0.

        If a row is at least ``r`` over a box and grows along x_j at least as ``a > 0``, it is above ``m`` wherever x_j
        is more than ``(m - r) / a`` above its least value; that part of the box is done with.

        Returns:
            Lower and upper ends, and whether anything is left, each of n boxes.
        """
        low, high = torch.full_like(lower, inf), torch.full_like(upper, -inf)
        alive = torch.zeros(len(lower), dtype=torch.bool)
        groups = self.query.groups
        for g in range(int(groups[-1]) + 1):
            chosen = groups == g
            a, rows = full.coefficients[:, chosen], full.rows[:, chosen]
            first, last, left = lower, upper, rows
            for i in [*range(a.shape[1])] * 2:
                own = a[:, i]
                room = (2 * _MARGIN - left[:, i : i + 1]).clamp(min=0) / own.abs().clamp(min=1e-300)
                room = room * (1 + 1e-12) + 1e-300
                end = torch.nextafter(first + room, last.new_tensor(inf))
                start = torch.nextafter(last - room, last.new_tensor(-inf))
                first, last = (
                    torch.where(own < 0, torch.maximum(first, start), first),
                    torch.where(own > 0, torch.minimum(last, end), last),
                )
                gain = a.clamp(min=0) * (first - lower).unsqueeze(1) - a.clamp(max=0) * (upper - last).unsqueeze(1)
                size = (a.abs() * (upper - lower).unsqueeze(1)).sum(2) + rows.abs()
                left = rows + gain.sum(2) - 1e-13 * (a.shape[2] + 8) * size
            # what overflowed says nothing: then all of the box stays
            known = (a.isfinite().all(2) & rows.isfinite()).all(1)
            first = torch.where(known.unsqueeze(1), first, lower)
            last = torch.where(known.unsqueeze(1), last, upper)
            part = ~known | (~proved(left - _MARGIN).any(1) & ~(first > last).any(1))
            low = torch.where(part.unsqueeze(1), torch.minimum(low, first), low)
            high = torch.where(part.unsqueeze(1), torch.maximum(high, last), high)
            alive |= part
        cut = ~alive | (low > lower).any(1) | (high < upper).any(1)
        if cut.any():
            alone = groups.bincount()[groups] == 1
            rows = torch.where(alone & (full.rows <= _MARGIN), _MARGIN, full.rows)[cut]
            self.settled = torch.minimum(self.settled, rows.amin(0))
            self.least = min(self.least, _MARGIN)
        return low, high, alive

    def _proved(self, rows: Tensor) -> Tensor:
        return proved(self.query.score(rows) - (_GUARD if self.tree is not None else 0))

    def _settle(self, rows: Tensor) -> None:
        if len(rows):
            self.settled = torch.minimum(self.settled, rows.amin(0))
            self.least = min(self.least, float(self.query.score(rows).min()))

    def _close(self, vertices: Tensor, rows: Tensor) -> None:
        if self.tree is None:
            return
        groups = self.query.groups
        for vertex, own in zip(vertices, rows, strict=True):
            best = (torch.where(groups == g, own, -torch.inf).argmax() for g in range(int(groups[-1]) + 1))
            self.tree.close(int(vertex), Leaf(tuple(int(i) for i in best)))

    def _try(self, full: _Full, lower: Tensor, upper: Tensor, keep: Tensor, steps: int) -> Tensor | None:
        """Centres, and the corners where the bound of the worst row, or of all together, is least."""
        low, high, a = lower[keep], upper[keep], full.coefficients[keep]
        worst = a[torch.arange(len(keep)), full.rows[keep].argmin(1)]
        points = [low / 2 + high / 2, torch.where(worst > 0, low, high)]
        if a.shape[1] > 1:
            points.append(torch.where(a.sum(1) > 0, low, high))
        return self.witnesses.find(torch.cat(points).view(-1, *self.shape), steps)

    def _divide(
        self,
        full: _Full,
        lower: Tensor,
        upper: Tensor,
        low: Tensor,
        high: Tensor,
        able: Tensor,
        rows: Tensor,
        vertex: Tensor,
    ) -> None:
        """Halves each box, or what was left of it, along the input whose halves have the best bounds."""
        middle = low / 2 + high / 2
        n = len(lower)
        a, near = full.coefficients, 1 / (-full.rows).clamp(min=1e-9)
        reach = torch.where(able, (a.abs() * near.unsqueeze(2)).sum(1) * (high - low), -1.0)
        count = min(self.method.candidates, int(able.sum(1).max()))
        inputs = reach.topk(count, dim=1).indices.T  # (count, n)
        width = ((high - low) / (self.high - self.low).clamp(min=1e-300)).gather(1, inputs.T).T
        low, high = (t.repeat(2 * count, 1, 1) for t in (low, high))
        at = middle.gather(1, inputs.T).T.unsqueeze(2)
        high[:count] = high[:count].scatter(2, inputs.unsqueeze(2), at)
        low[count:] = low[count:].scatter(2, inputs.unsqueeze(2), at)
        found, signs = self._halves(full, lower, upper, low, high)
        allowed = able.gather(1, inputs.T).T & ~_sliver(width, reach.gather(1, inputs.T).T)
        left = _left(found, near, allowed)
        doubt = (left.amax(0) < -(1 - self.method.doubt)).nonzero().flatten()
        if len(doubt):  # too loose to tell the inputs apart: bound the halves in full
            found = self._trials(found, low, high, signs, doubt)
            left = _left(found, near, allowed)
        # where no single cut helps, the input that was cut least: what never is cut would stay loose for ever
        stalled = left.amax(0) < -(1 - _PROGRESS)
        best = torch.where(stalled, width.masked_fill(~allowed, -1.0).argmax(0), left.argmax(0))
        box = torch.arange(n)
        found = torch.maximum(found, rows)

        def chosen(t: Tensor) -> Tensor:
            return t.view(2, count, n, t.shape[2])[:, best, box].transpose(0, 1).flatten(0, 1)

        split, own = inputs[best, box], chosen(found)
        children = vertex.repeat_interleave(2)
        if self.tree is not None:
            made = self.tree.split(
                [int(v) for v in vertex], [0] * n, [int(j) for j in split], [float(p) for p in at[best, box, 0]]
            )
            children = torch.from_numpy(made).flatten()  # pyright: ignore[reportUnknownMemberType]
            own = rows.repeat_interleave(2, 0)
        halves = {
            "bound": self.query.score(own),
            "lower": chosen(low),
            "upper": chosen(high),
            "rows": own,
            "signs": chosen(signs),
            "vertex": children,
        }
        proved = self._proved(own) if self.tree is None else torch.zeros(2 * n, dtype=torch.bool)
        self._settle(own[proved])
        self.domains += int(proved.sum())
        self.pool.add({name: column[~proved] for name, column in halves.items()})

    def _trials(self, found: Tensor, low: Tensor, high: Tensor, signs: Tensor, boxes: Tensor) -> Tensor:
        """Bounds of halves (2 candidates, n, rows), those of some boxes improved by full passes, for a few inputs each."""
        found, count = found.clone(), len(found) // 2
        pairs = found.view(2, count, *found.shape[1:])
        few = min(self.method.trials, count)

        def halves(t: Tensor) -> Tensor:
            return t.view(2, count, *t.shape[1:])[:, :few, boxes].flatten(0, 2)

        lower, upper, sign = halves(low), halves(high), halves(signs)
        parts = torch.split(torch.arange(len(lower)), self.method.chunk)
        rows = torch.cat([self._full(lower[i], upper[i], sign[i]).rows for i in parts])
        pairs[:, :few, boxes] = torch.maximum(pairs[:, :few, boxes], rows.view(2, few, len(boxes), -1))
        return found


def _left(found: Tensor, near: Tensor, allowed: Tensor) -> Tensor:
    """What part of the rows' distances to 0 would be left, negated: (candidates, n).

    Args:
        found: bounds of halves (2 candidates, n, rows).
        near: 1 / distance of each row before (n, rows), so that rows near their proof count more.
        allowed: inputs that can be halved, (candidates, n).
    """
    left = (found * near).clamp(max=0).mean(2).view(2, *allowed.shape).mean(0)
    return left.masked_fill(~allowed, -torch.inf)


def _sliver(width: Tensor, reach: Tensor) -> Tensor:
    """Inputs (candidates, n) along which a box is a sliver beside another input that matters as much to its bound.

    A cut along the other may make the bound worse before two make it better, so that only the sliver would ever be cut.
    """
    wider = width.unsqueeze(0) * _SLIVER > width.unsqueeze(1)
    return (wider & (reach.unsqueeze(0) >= reach.unsqueeze(1))).any(1)


def _pick(full: _Full, keep: Tensor) -> _Full:
    lines = [
        Entries(y.node, y.chosen[:, keep], y.least[:, keep], y.most[:, keep], y.coefficients[:, keep])
        for y in full.lines
    ]
    boxes = [Box(*(t[keep] for t in box)) for box in full.boxes]
    return _Full(full.rows[keep], full.coefficients[keep], boxes, lines)
