"""Searches a box for an input whose outputs meet linear constraints: the attack that a verifier is given.

Not a registered method: it answers a query about a region, not a problem about samples. Signed gradients with momentum
and halving steps (as in Auto-PGD, Croce & Hein 2020), from the centre, the corners that gradients point to, and random
points, for all groups of constraints at once. Where a network is flat, some rounds follow the gradient of one whose
ReLUs leak. With few inputs random points alone go a long way; the best are moved at random, less and less, and then by
linear programs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any, Protocol

import torch
from scipy import optimize  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor, nn

from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.graph.model import Graph, Node
from holdfast.numerics.rounding import held_inside

__all__ = ["Question", "falsifier"]

_FEW = 64  # free inputs up to which random points are drawn densely
_DENSE = 8192  # of them in a round
_STEPS = 60  # gradient steps of a round
_MOMENTUM = 0.75
_PATIENCE = 5  # steps without gain before a step is halved
_LEAK = 0.05  # slope of a ReLU where it is flat, for gradients of some rounds
_MOVES = 10  # times that the best points are moved at random
_POLISHED, _PROGRAMS = 4, 12  # points of a round from which linear programs go on, and how many
_NUMBERS = 2 << 24  # values that the model may hold at once
_EDGE = 1e-300  # what a strict row that is exactly 0 counts as


class Question(Protocol):
    """What is read of a query (`holdfast.certifiers.verification.query.Query`, which attacks do not import)."""

    @property
    def ball(self) -> LpBall:
        """The set; only its kind is read."""
        ...

    @property
    def inside(self) -> tuple[Tensor, Tensor]:
        """The least and the largest inputs of a witness, each (\\*features) float64."""
        ...

    @property
    def c(self) -> Tensor:
        """(rows, outputs) float64."""
        ...

    @property
    def d(self) -> Tensor:
        """(rows,) float64."""
        ...

    @property
    def groups(self) -> Tensor:
        """(rows,) int64, ascending from 0."""
        ...

    @property
    def strict(self) -> Tensor | None:
        """(rows,) bool: rows that are met below 0 only; None: all are met at 0 too."""
        ...


def falsifier(model: nn.Module | Graph, seed: int = 0) -> Callable[[Question, float], Tensor | None]:
    """An attack on queries about a model.

    Args:
        model: the model, in the type in which it runs; a graph is the better choice (its memory is known beforehand).
        seed: of the random starts.

    Returns:
        A function of a query and seconds. It returns an input (1, \\*features) float64 in the query's box, made of
        numbers of the model's type, at which all rows of a group are at most 0 (below 0, where that was found) when the
        model runs on it alone, in its own type and in float64; or None. Sets other than boxes are not searched: None.

    Example:
        >>> from holdfast.certifiers.verification.query import Query
        >>> half = Query.of_box(torch.zeros(1), torch.ones(1), torch.eye(1), torch.tensor([-0.5]))  # f(x) <= 0.5?
        >>> bool(falsifier(nn.Identity())(half, 1.0) <= 0.5)
        True
    """
    own = model.as_module() if isinstance(model, Graph) else copy.deepcopy(model).eval()
    exact = (model.to(torch.float64).as_module() if isinstance(model, Graph) else copy.deepcopy(own).double()).eval()
    leaky = _leaky(model).as_module() if isinstance(model, Graph) else own
    held = sum(math.prod(node.shape) for node in model.nodes) if isinstance(model, Graph) else 0
    for network in (own, exact, leaky):
        network.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    parameter = next((p for p in own.parameters() if p.is_floating_point()), torch.zeros(0))

    def attack(question: Question, seconds: float) -> Tensor | None:
        if question.ball.norm is not Norm.LINF:
            return None
        deadline = monotonic() + seconds
        search = _Search(own, exact, leaky, question, generator, deadline, held, parameter.device, parameter.dtype)
        return search.run()

    return attack


def _leaky(graph: Graph) -> Graph:
    def leaking(node: Node) -> Node:
        return replace(node, op="leaky_relu", attributes={"slope": _LEAK}) if node.op == "relu" else node

    return replace(graph, nodes=tuple(leaking(node) for node in graph.nodes))


@dataclass
class _Search:
    """One search.

    `best` is a witness whose margin is within rounding; `seen` has the least score of each group so far; `ends`
    what the descents of a round reached: (scores, points, their groups).
    """

    own: nn.Module
    exact: nn.Module
    leaky: nn.Module
    question: Question
    generator: torch.Generator
    deadline: float
    held: int
    device: torch.device
    dtype: torch.dtype
    best: Tensor | None = None
    strict: Tensor | None = None
    seen: list[float] = field(default_factory=list[float])
    ends: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list[tuple[Tensor, Tensor, Tensor]])

    def __post_init__(self) -> None:
        q = self.question
        self.lower, self.upper = (end.double().to(self.device) for end in q.inside)
        self.strict = None if q.strict is None else q.strict.to(self.device)
        self.c, self.d = q.c.double().to(self.device), q.d.double().to(self.device)
        self.groups = q.groups.to(self.device)
        self.count = int(self.groups[-1]) + 1
        self.free = int((self.lower < self.upper).sum())
        held = self.held or 64 * max(self.lower.numel(), 64)
        self.most = max(min(_NUMBERS // held, 1 << 14), 1)
        self.seen = [math.inf] * self.count

    @property
    def over(self) -> bool:
        return monotonic() >= self.deadline

    def run(self) -> Tensor | None:
        middle = (self.lower / 2 + self.upper / 2).unsqueeze(0)
        starts = torch.cat([middle, self.lower.unsqueeze(0), self.upper.unsqueeze(0)])
        rounds = 0
        while not self.over:
            found = self.round(starts, rounds)
            if found is not None:
                return found
            if self.best is not None or not self.free:
                break
            rounds += 1
            starts = middle[:0]
        return self.best

    def round(self, starts: Tensor, number: int) -> Tensor | None:
        """Draws points, and follows the gradient from the best for each group."""
        drawn = min(_DENSE if self.free <= _FEW else 4 * self.count + 16, 4 * self.most)
        points = torch.cat([starts, self.draw(drawn, corners=number % 2 == 1)])
        scores: list[Tensor] = []
        for part in _parts(points, self.most):
            with torch.no_grad():
                scores.append(self.scores(self.rows(part)))
            found = self.settle(part, scores[-1])
            if found is not None or self.over:
                return found
        x, target = self.starts(points, torch.cat(scores), number)
        self.ends = []
        if self.free <= _FEW:
            x, found = self.move(x, target)
            if found is not None or self.over:
                return found
        for part, at in zip(_parts(x, self.most), _parts(target, self.most), strict=True):
            found = self.descend(part, at, number % 4)
            if found is not None or self.over:
                return found
        return self.polish() if self.free <= _FEW else None

    def draw(self, n: int, corners: bool) -> Tensor:
        """(n, \\*features): uniform points of the box, or half of them corners."""
        share = torch.rand(n, *self.lower.shape, generator=self.generator, dtype=torch.float64).to(self.device)
        if corners:
            share[n // 2 :] = share[n // 2 :].round()
        return self.lower + share * (self.upper - self.lower)

    def starts(self, points: Tensor, scores: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """The points with the least scores for each group, more of them for the groups that are nearest to break."""
        least = scores.amin(0).cpu()
        self.seen = [min(known, float(now)) for known, now in zip(self.seen, least, strict=True)]
        order = sorted(range(self.count), key=lambda g: self.seen[g])
        room = max(min(self.most, 256 if self.free <= _FEW else 32), 1)
        chosen = order[: room if number % 2 == 0 else max(room // 8, 1)]
        each = max(room // len(chosen), 1)
        x: list[Tensor] = []
        target: list[int] = []
        for g in chosen:
            k = min(each, len(points))
            best = scores[:, g].topk(-(-k // 2), largest=False).indices
            x += [points[best], points[len(points) - k // 2 :]]  # the other half at random: the best may be neighbours
            target += [g] * k
        return torch.cat(x), torch.tensor(target, device=self.device)

    def move(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor | None]:
        """Moves points at random, less and less, where that lowers the score of their own groups."""
        wide, size = self.upper - self.lower, 0.2
        each = max(_DENSE // len(x) // 4, 4)
        for _ in range(_MOVES):
            noise = torch.randn(len(x), each, *self.lower.shape, generator=self.generator, dtype=torch.float64)
            noise[:, 0] = 0
            tried = (x.unsqueeze(1) + size * wide * noise.to(self.device)).clamp(self.lower, self.upper)
            with torch.no_grad():
                scores = torch.cat([self.scores(self.rows(part)) for part in _parts(tried.flatten(0, 1), self.most)])
            found = self.settle(tried.flatten(0, 1), scores)
            own = scores.view(len(x), each, -1).gather(2, target.view(-1, 1, 1).expand(-1, each, 1)).squeeze(2)
            x = tried[torch.arange(len(x)), own.argmin(1)]
            if found is not None or self.over:
                return x, found
            size *= 0.6
        return x, None

    def descend(self, x: Tensor, target: Tensor, kind: int) -> Tensor | None:
        """Signed gradient steps from x, each row for its own group.

        Kinds: 0 plain, 1 through leaking ReLUs, 2 all rows of the group at once, 3 along the gradient and not its signs.
        """
        wide = self.upper - self.lower
        size = x.new_full((len(x),), 1.0 if self.free > _FEW else 0.5)
        best_x, best = x, x.new_full((len(x),), math.inf)
        before, since = x, torch.zeros(len(x), dtype=torch.long, device=self.device)
        shape = (-1,) + (1,) * (x.ndim - 1)
        for step in range(_STEPS + 1):
            value, grad, scores = self.gradient(x, target, kind)
            found = self.settle(x, scores)
            if found is not None or self.over:
                return found
            better = value < best
            best_x, best = torch.where(better.view(shape), x, best_x), torch.minimum(value, best)
            if step == _STEPS:
                break
            since = torch.where(better, 0, since + 1)
            stuck = since >= _PATIENCE
            size, since = torch.where(stuck, size / 2, size), torch.where(stuck, 0, since)
            along = grad * wide / (grad * wide).abs().amax(tuple(range(1, x.ndim)), keepdim=True).clamp_min(1e-300)
            moved = (x - size.view(shape) * wide * (along if kind == 3 else grad.sign())).clamp(self.lower, self.upper)
            if step:
                moved = x + _MOMENTUM * (moved - x) + (1 - _MOMENTUM) * (x - before)
                moved = moved.clamp(self.lower, self.upper)
            before, x = x, torch.where(stuck.view(shape), best_x, moved)
        self.ends.append((best, best_x, target))
        return None

    def polish(self) -> Tensor | None:
        """Linear programs from the best points of the round: the best step within a trust region of the linearised rows.

        What is least may lie in a corner of several rows, where no single gradient leads.
        """
        value, x, group = min(self.ends, key=lambda end: float(end[0].min()))
        best = value.topk(min(_POLISHED, len(value)), largest=False).indices
        chosen = [(x[i : i + 1], float(value[i]), int(group[i]), 0.1) for i in best]
        for _ in range(_PROGRAMS):
            for k, (at, score, g, trust) in enumerate(chosen):
                moved = self.program(at, g, trust)
                with torch.no_grad():
                    scores = self.scores(self.rows(moved))
                found = self.settle(moved, scores)
                if found is not None or self.over:
                    return found
                now = float(scores[0, g])
                chosen[k] = (moved, now, g, min(2 * trust, 0.5)) if now < score else (at, score, g, trust / 3)
        return None

    def program(self, x: Tensor, group: int, trust: float) -> Tensor:
        """The best step for a group where its rows are taken as linear; x itself if the program has no answer."""
        own = (self.groups == group).nonzero().flatten()
        at = x.to(self.dtype).requires_grad_(True)
        with torch.enable_grad():
            rows = self.rows(at)[0, own]
            if not bool(rows.isfinite().all()):
                return x
            slopes = [_slope(row, at).double().flatten() for row in rows]
        wide = (self.upper - self.lower).flatten()
        low = torch.maximum(-trust * wide, self.lower.flatten() - x.flatten()).clamp(max=0)
        high = torch.minimum(trust * wide, self.upper.flatten() - x.flatten()).clamp(min=0)
        matrix = torch.cat(
            [torch.stack(slopes).nan_to_num(0.0), torch.full((len(own), 1), -1.0, dtype=torch.float64).to(x.device)], 1
        )
        goal = [0.0] * len(wide) + [1.0]
        bounds = [*zip(low.cpu().numpy(), high.cpu().numpy(), strict=True), (None, None)]
        found: Any = optimize.linprog(  # pyright: ignore[reportUnknownMemberType]
            goal, matrix.cpu().numpy(), -rows.detach().cpu().numpy(), bounds=bounds
        )
        if found.x is None:
            return x
        step = torch.as_tensor(found.x[:-1], dtype=torch.float64, device=x.device).view_as(x)
        return (x + step).clamp(self.lower, self.upper)

    def gradient(self, x: Tensor, target: Tensor, kind: int) -> tuple[Tensor, Tensor, Tensor]:
        """The score of each row's own group, the gradient to follow, and the scores of all groups."""
        with torch.enable_grad():
            at = x.to(self.dtype).requires_grad_(True)
            rows = self.rows(at, self.leaky if kind == 1 else None)
            scores = self.scores(rows)
            loss = self.smooth(rows, target) if kind == 2 else scores.gather(1, target.unsqueeze(1))
            grad = _slope(loss.sum(), at)
        if kind == 1:
            with torch.no_grad():
                scores = self.scores(self.rows(x))
        scores = scores.detach()
        return scores.gather(1, target.unsqueeze(1)).squeeze(1), grad.double().nan_to_num(0.0), scores

    def smooth(self, rows: Tensor, target: Tensor) -> Tensor:
        """A soft maximum, which moves all rows of a group at once."""
        own = rows.masked_fill(self.groups != target.unsqueeze(1), -math.inf)
        spread = (own.amax(1) - rows.masked_fill(self.groups != target.unsqueeze(1), math.inf).amin(1)).detach()
        heat = (spread / 4).clamp_min(1e-6).unsqueeze(1)
        return (heat * torch.logsumexp(own / heat, 1, keepdim=True)).squeeze(1)

    def rows(self, x: Tensor, model: nn.Module | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """(n, rows): ``C f(x) + d``; a model may give one number for each sample."""
        return (model or self.own)(x.to(dtype or self.dtype)).reshape(len(x), -1).double() @ self.c.T + self.d

    def scores(self, rows: Tensor) -> Tensor:
        """(n, groups): the largest row of each group; what is not a number is as bad as can be."""
        rows = torch.where(rows.isnan(), math.inf, rows)
        if self.strict is not None:  # 0 itself is safe there
            rows = torch.where(self.strict & (rows == 0), _EDGE, rows)
        best = rows.new_full((len(rows), self.count), -math.inf)
        return best.scatter_reduce(1, self.groups.expand(len(rows), -1), rows, "amax")

    def settle(self, x: Tensor, scores: Tensor) -> Tensor | None:
        """The first of the points that is a witness beyond doubt; one within rounding of the edge is kept as `best`."""
        least = scores.amin(1)
        for i in map(int, least.argsort()[: min(4, int((least <= 0).sum()))]):
            point = held_inside(x[i : i + 1].double(), self.lower, self.upper, self.dtype)
            with torch.no_grad():
                found = [
                    self.scores(self.rows(point, model, dtype)).amin()
                    for model, dtype in ((self.own, self.dtype), (self.exact, torch.float64))
                ]
            worst = float(torch.stack(found).max())
            if worst < -8 * abs(float(found[0] - found[1])) and worst < 0:
                return point.cpu()
            if worst <= 0 and self.best is None:
                self.best = point.cpu()
        return None


def _slope(value: Tensor, at: Tensor) -> Tensor:
    """The gradient of a value; 0 where nothing leads back (rows of a table, which whole numbers choose)."""
    if not value.requires_grad:
        return torch.zeros_like(at)
    (found,) = torch.autograd.grad(value, at, retain_graph=True, allow_unused=True, materialize_grads=True)
    return found


def _parts(t: Tensor, size: int) -> list[Tensor]:
    return [t[k : k + size] for k in range(0, len(t), size)]
