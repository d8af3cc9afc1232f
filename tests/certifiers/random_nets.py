"""Small random ReLU networks with their exact optima, and many of them as one block-diagonal network."""

from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

from holdfast.certifiers.complete.milp import exact_minimum
from holdfast.certifiers.propagation.propagation import Propagation
from holdfast.certifiers.propagation.region import Region
from holdfast.certifiers.relaxation.relaxation import Relaxation
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.graph import Graph, Node

C = torch.tensor([[1.0, -1.0, 0.0], [1.0, 0.0, -1.0]], dtype=torch.float64)
"""Rows ``f_0 - f_j``."""


@dataclass(frozen=True, eq=False)
class Net:
    layers: tuple[tuple[Tensor, Tensor], ...]
    x: Tensor
    eps: float
    exact: Tensor

    @property
    def graph(self) -> Graph:
        return chain(self.layers)

    @property
    def ball(self) -> LpBall:
        return LpBall.uniform(Norm.LINF, self.eps, 1, dtype=torch.float64)


def chain(layers) -> Graph:
    nodes = [Node(op="input", inputs=(), shape=(layers[0][0].shape[1],))]
    for weight, bias in layers:
        if len(nodes) > 1:
            nodes.append(Node(op="relu", inputs=(len(nodes) - 1,), shape=nodes[-1].shape))
        nodes.append(
            Node(op="linear", inputs=(len(nodes) - 1,), shape=(len(weight),), tensors={"weight": weight, "bias": bias})
        )
    return Graph(tuple(nodes), torch.float64)


@cache
def net(seed: int) -> Net:
    """2 or 3 inputs, two hidden layers of 3 to 6 ReLUs, 3 classes; the optimum by HiGHS."""
    stream = np.random.default_rng(seed)
    sizes = [int(stream.integers(2, 4)), *(int(k) for k in stream.integers(3, 7, 2)), 3]
    layers = tuple(
        (
            torch.from_numpy(stream.normal(size=(out, into)) * 1.5 / np.sqrt(into)),
            torch.from_numpy(stream.normal(size=out) / 3),
        )
        for into, out in pairwise(sizes)
    )
    x, eps = torch.from_numpy(stream.uniform(size=(1, sizes[0]))), float(stream.uniform(0.1, 0.6))
    ball = LpBall.uniform(Norm.LINF, eps, 1, dtype=torch.float64)
    return Net(layers, x, eps, exact_minimum(chain(layers), ball, x, C)[0])


def together(nets: list[Net]) -> tuple[Graph, LpBall, Tensor, Tensor, Tensor]:
    """One network with the given ones side by side: its graph, ball, point, rows (2 for each) and their exact minima.

    A row is about one block, and the others have no part in its bound but by rounding.
    """
    layers = []
    for parts in zip(*(n.layers for n in nets), strict=True):
        layers.append((torch.block_diag(*(w for w, _ in parts)), torch.cat([b for _, b in parts])))
    x = torch.cat([n.x for n in nets], 1)
    eps = torch.cat([torch.full_like(n.x, n.eps) for n in nets], 1)
    lower, upper = ((x + s * eps).clamp(0, 1) for s in (-1, 1))
    ball = LpBall(norm=Norm.LINF, eps=torch.full((1,), torch.inf, dtype=torch.float64), lower=lower, upper=upper)
    return chain(layers), ball, x, torch.block_diag(*(C for _ in nets)), torch.cat([n.exact for n in nets])


def relaxation(given: Net) -> Relaxation:
    """Its relaxation over boxes from CROWN and intervals."""
    found = Propagation(given.graph, Region(given.ball, given.x))
    with torch.no_grad():
        found.run(refine=lambda _: True)
        return Relaxation(found)


def triangle(given: Relaxation, row: Tensor) -> float:
    """The linear program over single-neuron relaxations and their boxes, in an encoding of its own."""
    kinks, n = given.kinks, len(given.box.lower)
    z, low, high = kinks.z.numpy(), kinks.low.numpy(), kinks.high.numpy()
    own = np.zeros((len(z), n))
    own[np.arange(len(z)), len(given.inputs) + np.arange(len(z))] = 1
    slope = (high / (high - low))[:, None]
    matrix = np.concatenate([z[:, 1:] - own, own - slope * z[:, 1:], z[:, 1:], -z[:, 1:]])
    limit = np.concatenate([-z[:, 0], slope[:, 0] * (z[:, 0] - low), high - z[:, 0], z[:, 0] - low])
    expression = given.objective(row[None], torch.zeros(1).double())[0][0].numpy()
    box = np.stack([given.box.lower.numpy(), given.box.upper.numpy()], 1)
    found = linprog(expression[1:], A_ub=matrix, b_ub=limit, bounds=box)
    return found.fun + expression[0]
