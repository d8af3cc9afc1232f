"""Points of a question's box, as its networks score them: what all parts of the search ask."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from enum import Enum, auto
from time import monotonic

import torch
from torch import Tensor, nn

from holdfast.attacks.falsification.question import Question
from holdfast.graph.model import Graph, Node
from holdfast.numerics.rounding import held_inside

__all__ = ["Along", "Networks", "Trials", "in_batches", "slope_of"]

_LEAK = 0.05  # slope of a ReLU where it is flat, for gradients of some rounds
_VALUES = 2 << 24  # that the model may hold at once
_EDGE = 1e-300  # what a strict row that is exactly 0 counts as


class Along(Enum):
    """What a descent follows."""

    SIGNS = auto()
    """Of the gradient of the largest row of a group."""
    LEAKING = auto()
    """Of the gradient through ReLUs that leak."""
    ALL_ROWS = auto()
    """Of the gradient of all rows of a group at once."""
    GRADIENT = auto()
    """The gradient itself, and not its signs."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Networks:
    """A model as it is asked.

    Attributes:
        own: in the type in which it runs.
        exact: in float64.
        leaky: with ReLUs that leak, for gradients.
        values: what it holds for one input; 0 where that is not known.
        device: where it runs.
        dtype: its type.
    """

    own: nn.Module
    exact: nn.Module
    leaky: nn.Module
    values: int
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def of(cls, model: nn.Module | Graph) -> Networks:
        """Frozen copies in evaluation mode."""
        if isinstance(model, Graph):
            own, exact = model.as_module(), model.to(torch.float64).as_module().eval()
            leaky, values = _leaky(model).as_module(), sum(math.prod(node.shape) for node in model.nodes)
        else:
            own = copy.deepcopy(model).eval()
            exact, leaky, values = copy.deepcopy(own).double().eval(), own, 0
        for network in (own, exact, leaky):
            network.requires_grad_(False)
        first = next((p for p in own.parameters() if p.is_floating_point()), torch.zeros(0))
        return cls(own=own, exact=exact, leaky=leaky, values=values, device=first.device, dtype=first.dtype)


def _leaky(graph: Graph) -> Graph:
    def leaking(node: Node) -> Node:
        return replace(node, op="leaky_relu", attributes={"slope": _LEAK}) if node.op == "relu" else node

    return replace(graph, nodes=tuple(leaking(node) for node in graph.nodes))


class Trials:
    """The points of one search.

    Args:
        networks: the model.
        question: what is asked of it.
        deadline: on the clock of `time.monotonic`.

    Attributes:
        lower: (\\*features) float64, the least inputs of a witness.
        upper: the largest.
        groups: (rows,) int64.
        count: of groups.
        free: inputs that are no points.
        batch: points that the model is given at once.
        witness: one whose margin is within rounding, if nothing better was met.
    """

    def __init__(self, networks: Networks, question: Question, deadline: float) -> None:
        self._networks, self._deadline = networks, deadline
        self.device, self.dtype = networks.device, networks.dtype
        self.lower, self.upper = (end.double().to(self.device) for end in question.inside)
        self._strict = None if question.strict is None else question.strict.to(self.device)
        self._c, self._d = question.c.double().to(self.device), question.d.double().to(self.device)
        self.groups = question.groups.to(self.device)
        self.count = int(self.groups[-1]) + 1
        self.free = int((self.lower < self.upper).sum())
        values = networks.values or 64 * max(self.lower.numel(), 64)
        self.batch = max(min(_VALUES // values, 1 << 14), 1)
        self.witness: Tensor | None = None

    @property
    def over(self) -> bool:
        """Whether time is up."""
        return monotonic() >= self._deadline

    def rows(self, x: Tensor, model: nn.Module | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """(n, rows): ``C f(x) + d``; a model may give one number for each sample."""
        outputs = (model or self._networks.own)(x.to(dtype or self.dtype))
        return outputs.reshape(len(x), -1).double() @ self._c.T + self._d

    def scores(self, rows: Tensor) -> Tensor:
        """(n, groups): the largest row of each group; what is not a number is as bad as can be."""
        rows = torch.where(rows.isnan(), math.inf, rows)
        if self._strict is not None:  # 0 itself is safe there
            rows = torch.where(self._strict & (rows == 0), _EDGE, rows)
        best = rows.new_full((len(rows), self.count), -math.inf)
        return best.scatter_reduce(1, self.groups.expand(len(rows), -1), rows, "amax")

    def gradient(self, x: Tensor, target: Tensor, along: Along) -> tuple[Tensor, Tensor, Tensor]:
        """The score of each row's own group, the gradient to follow, and the scores of all groups."""
        with torch.enable_grad():
            at = x.to(self.dtype).requires_grad_(True)
            rows = self.rows(at, self._networks.leaky if along is Along.LEAKING else None)
            scores = self.scores(rows)
            all_rows = along is Along.ALL_ROWS
            loss = self._smooth(rows, target) if all_rows else scores.gather(1, target.unsqueeze(1))
            grad = slope_of(loss.sum(), at)
        if along is Along.LEAKING:
            with torch.no_grad():
                scores = self.scores(self.rows(x))
        scores = scores.detach()
        return scores.gather(1, target.unsqueeze(1)).squeeze(1), grad.double().nan_to_num(0.0), scores

    def _smooth(self, rows: Tensor, target: Tensor) -> Tensor:
        """A soft maximum, which moves all rows of a group at once."""
        own = rows.masked_fill(self.groups != target.unsqueeze(1), -math.inf)
        spread = (own.amax(1) - rows.masked_fill(self.groups != target.unsqueeze(1), math.inf).amin(1)).detach()
        heat = (spread / 4).clamp_min(1e-6).unsqueeze(1)
        return (heat * torch.logsumexp(own / heat, 1, keepdim=True)).squeeze(1)

    def settle(self, x: Tensor, scores: Tensor) -> Tensor | None:
        """The first of the points that is a witness beyond doubt; one within rounding of the edge is kept as `witness`."""
        least = scores.amin(1)
        for i in map(int, least.argsort()[: min(4, int((least <= 0).sum()))]):
            point = held_inside(x[i : i + 1].double(), self.lower, self.upper, self.dtype)
            with torch.no_grad():
                runs = ((self._networks.own, self.dtype), (self._networks.exact, torch.float64))
                own, exact = (self.scores(self.rows(point, model, dtype)).amin() for model, dtype in runs)
            worst = float(torch.stack([own, exact]).max())
            if worst < -8 * abs(float(own - exact)) and worst < 0:
                return point.cpu()
            if worst <= 0 and self.witness is None:
                self.witness = point.cpu()
        return None


def slope_of(value: Tensor, at: Tensor) -> Tensor:
    """The gradient of a value; 0 where nothing leads back (rows of a table, which whole numbers choose)."""
    if not value.requires_grad:
        return torch.zeros_like(at)
    (slope,) = torch.autograd.grad(value, at, retain_graph=True, allow_unused=True, materialize_grads=True)
    return slope


def in_batches(t: Tensor, size: int) -> list[Tensor]:
    """At most so many rows each."""
    return [t[k : k + size] for k in range(0, len(t), size)]
