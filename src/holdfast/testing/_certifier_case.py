"""The cases that the contract of a certifier is checked on: small graphs, points of their sets, and exact optima."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from holdfast.certifiers.graph_certifier import GraphCertifier
from holdfast.certifiers.oracle_certifier import ModuleAsk, OracleCertifier
from holdfast.core.cards import Card
from holdfast.core.draws import seeded
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.core.verdict import Certificate
from holdfast.graph import trace
from holdfast.graph.model import Graph, Node
from holdfast.numerics.ascent import step
from holdfast.numerics.distance import vector_norm
from holdfast.numerics.project import project
from holdfast.testing.contract import reduced

__all__ = [
    "FEW",
    "NETS",
    "RADII",
    "CertifierCase",
    "Chain",
    "Residual",
    "balls",
    "captured",
    "chain",
    "descend",
    "half_plane",
    "least_margins",
    "points",
]

RADII = {Norm.LINF: 0.1, Norm.L2: 0.3, Norm.L1: 0.5, Norm.L0: 2.0}
FEW = {"iterations": 4, "deep_iterations": 2, "n0": 50, "n": 1000, "batches": 12, "points": 16, "domains": 30}
"""Parameters of these names are at most so large in most checks."""

_EDGE_SHARE = 0.7
_SPARSITY = 0.2


@dataclass(frozen=True)
class CertifierCase:
    """One certifier: ``whole`` as given, and ``small`` with little effort, which most checks use."""

    whole: Any
    small: Any

    @classmethod
    def of(cls, whole: GraphCertifier | OracleCertifier) -> CertifierCase:
        """The case of an instance."""
        return cls(whole, reduced(whole, FEW))

    @property
    def card(self) -> Card:
        """The certifier's card."""
        return self.whole.card

    @property
    def norms(self) -> tuple[Norm, ...]:
        """Norms of its card."""
        return self.card.norms

    def ask(self, module: nn.Module, x: Tensor, y: Tensor, norm: Norm, **more: Any) -> list[Certificate | None]:
        """What an oracle certifier answers; ``ids``, ``seed``, ``radius_max`` and ``batch`` may be given."""
        ids, batch = more.pop("ids", list(range(len(x)))), more.pop("batch", 1024)
        return self.small.certify(ModuleAsk(module, batch), x, y, ids, more.pop("seed", 0), norm=norm, **more)


class Residual(nn.Module):
    """A convolution, a shortcut, an S-shaped activation and a max pool."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(12, 3)

    @override
    def forward(self, x: Tensor) -> Tensor:
        """(n, 1, 4, 4) -> (n, 3)."""
        x = torch.relu(self.first(x))
        return self.head(self.pool(torch.tanh(self.second(x)) + x).flatten(1))


_MAKERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "dense": (
        lambda: nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 3)),
        (6,),
    ),
    "residual": (Residual, (1, 4, 4)),
}
NETS = tuple(_MAKERS)


@lru_cache
def captured(name: str) -> tuple[nn.Module, Graph, Tensor, Tensor]:
    """A small random net in float64, its graph, six samples and the labels that it gives them."""
    make, shape = _MAKERS[name]
    with seeded(2):
        net: Any = make().double().eval()
        x = torch.rand(6, *shape, dtype=torch.float64)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(1.5)
        head = net.head if isinstance(net, Residual) else net[-1]
        head.bias -= net(x).median(0).values  # so that every class is near for some sample
        y = net(x).argmax(1)
    return net, trace(net, x[:1]), x, y


def balls(norm: Norm, n: int, eps: float | None = None) -> LpBall:
    """The same ball in the unit box around each of n samples."""
    return LpBall.uniform(norm, RADII[norm] if eps is None else eps, n, dtype=torch.float64)


def points(ball: LpBall, x: Tensor, count: int, seed: int = 0) -> Tensor:
    """Points of the set around each sample, most of them on its faces and edges: (count, n, \\*features)."""
    stream = torch.Generator().manual_seed(seed)
    shape = (count, *x.shape)
    noise = torch.randn(shape, generator=stream, dtype=torch.float64)
    if ball.norm is Norm.LINF:
        noise = torch.where(torch.rand(shape, generator=stream) < _EDGE_SHARE, noise.sign() * 9, noise)
    elif ball.norm is not Norm.L2:
        noise = noise**5  # a few features take most of it
    rows = torch.arange(len(x)).repeat(count)
    eps = ball.eps[rows].view(-1, *[1] * (x.ndim - 1))
    start = x.repeat(count, *[1] * (x.ndim - 1))
    return project(ball.select(rows), start + 2 * eps * noise.flatten(0, 1), start).view(shape)


def descend(net: nn.Module, ball: LpBall, x: Tensor, y: Tensor, starts: int = 4, steps: int = 25) -> Tensor:
    """A short projected descent of the margin from random starts: its last points (starts * n, \\*features)."""
    rows = torch.arange(len(x)).repeat(starts)
    around, set_, label = x[rows], ball.select(rows), y[rows, None]
    z = points(ball, x, starts, seed=1).flatten(0, 1)
    eps = set_.eps.clamp(max=1).view(-1, *[1] * (x.ndim - 1))
    for k in range(steps):
        z = z.detach().requires_grad_()
        with torch.enable_grad():
            scores = net(z)
            other = scores.scatter(1, label, float("-inf")).amax(1)
            gradient = torch.autograd.grad((scores.gather(1, label).squeeze(1) - other).sum(), z)[0]
        z = step(set_, z.detach(), -gradient, around, eps * (1 - k / steps) / 2, sparsity=_SPARSITY)
    return z


def chain(*layers: tuple[Any, Any] | str, dtype: torch.dtype = torch.float64) -> Graph:
    """The graph of a chain: (weight, bias) pairs, and names of operations without tensors."""
    first = next(layer for layer in layers if not isinstance(layer, str))
    nodes = [Node(op="input", inputs=(), shape=(len(first[0][0]),))]
    for layer in layers:
        if isinstance(layer, str):
            nodes.append(Node(op=layer, inputs=(len(nodes) - 1,), shape=nodes[-1].shape, attributes={"dim": 0}))
        else:
            weight, bias = (torch.as_tensor(t, dtype=dtype) for t in layer)
            nodes.append(
                Node(
                    op="linear",
                    inputs=(len(nodes) - 1,),
                    shape=(len(weight),),
                    tensors={"weight": weight, "bias": bias},
                )
            )
    return Graph(tuple(nodes), dtype)


@dataclass(frozen=True, kw_only=True)
class Chain:
    """A one-layer ReLU net over a box, and the least ``f_0 - f_j`` over it, exactly."""

    graph: Graph
    x: Tensor
    ball: LpBall
    exact: np.ndarray


@lru_cache
def least_margins() -> tuple[Chain, ...]:
    """Nets whose optimum an integer program knows."""
    found: list[Chain] = []
    for seed in range(5):
        stream = np.random.default_rng(seed)
        w1, b1 = stream.normal(size=(6, 4)), stream.normal(size=6) / 2
        w2, b2 = stream.normal(size=(3, 6)), stream.normal(size=3)
        x = torch.as_tensor(stream.uniform(size=(1, 4)))
        ball = balls(Norm.LINF, 1, 0.3)
        low, high = (np.clip(x[0].numpy() + s, 0, 1) for s in (-0.3, 0.3))
        exact = [_minimum(w1, b1, w2[0] - w2[j], b2[0] - b2[j], low, high) for j in (1, 2)]
        graph = chain((w1, b1), "relu", (w2, b2))
        found.append(Chain(graph=graph, x=x, ball=ball, exact=np.array(exact)))
    return tuple(found)


def _minimum(w1: Any, b1: Any, c: Any, d: float, low: Any, high: Any) -> float:
    """min ``c . relu(w1 x + b1) + d`` over a box: big-M constraints on (x, a, on), by HiGHS."""
    from scipy import optimize as scipy_optimize  # pyright: ignore[reportMissingTypeStubs]

    optimize: Any = scipy_optimize

    (h, n), centre, radius = w1.shape, (low + high) / 2, (high - low) / 2
    least = np.minimum(w1 @ centre + b1 - np.abs(w1) @ radius, 0)
    most = np.maximum(w1 @ centre + b1 + np.abs(w1) @ radius, 0)
    eye, none = np.eye(h), np.zeros((h, h))
    rows = np.block([[-w1, eye, none], [-w1, eye, -np.diag(least)], [np.zeros((h, n)), eye, -np.diag(most)]])
    inf = np.full(h, np.inf)
    limits = optimize.LinearConstraint(rows, np.r_[b1, -inf, -inf], np.r_[inf, b1 - least, np.zeros(h)])
    bounds = optimize.Bounds(np.r_[low, np.zeros(2 * h)], np.r_[high, most, np.ones(h)])
    whole = np.r_[np.zeros(n + h), np.ones(h)]
    answer: Any = optimize.milp(
        np.r_[np.zeros(n), c, np.zeros(h)], constraints=limits, bounds=bounds, integrality=whole
    )
    return float(answer.fun + d)


def half_plane(n: int = 8, d: int = 6) -> tuple[nn.Module, Tensor, Tensor, Tensor, Tensor]:
    """An affine model of two classes in float32 without a box: the model, x, y, the margins and ``w_0 - w_1``."""
    stream = torch.Generator().manual_seed(2)
    direction = torch.randn(d, generator=stream)
    x = torch.rand(n, d, generator=stream)
    gap = torch.linspace(0.1, 0.7, n) * vector_norm(direction) * torch.where(torch.arange(n) % 2 == 0, 1, -1)
    x = x - ((x @ direction - gap) / direction.square().sum()).unsqueeze(1) * direction
    model = nn.Linear(d, 2).eval()
    with torch.no_grad():
        model.weight.copy_(torch.stack([direction, torch.zeros(d)]))
        model.bias.zero_()
    margins = (x.double() @ direction.double()).abs()
    return model.requires_grad_(False), x, (x @ direction < 0).long(), margins, direction.double()
