"""The dual approach of Dvijotham et al.: any multipliers bound, so they are optimised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.certifiers.graph_certifier import GraphCertifier
from holdfast.certifiers.propagation.propagation import propagated
from holdfast.certifiers.propagation.specification import best_specification
from holdfast.certifiers.relaxation.dual import Dual, Multipliers
from holdfast.core.cards import Card, parameter
from holdfast.core.sets import LpBall
from holdfast.core.threat import Guarantee, Norm
from holdfast.graph.model import Graph

__all__ = ["Dvijotham"]


@dataclass(frozen=True)
class Dvijotham(GraphCertifier):
    """Ascent on the Lagrangian dual with a multiplier for each equation of the network (Dvijotham et al. 2018).

    The dual function is concave in the multipliers and in closed form, so a subgradient method climbs to the value of
    the linear program over single-neuron relaxations and may be stopped at any time: every multiplier is sound. It
    starts at those of CROWN's lines (for parallel lines they are Wong and Kolter's) and keeps the best of each row. Its
    lines are never below the closed form, so the result is never below CROWN's.
    """

    card: ClassVar[Card] = Card(
        title="dual optimisation",
        rows=("V05",),
        paper="Dvijotham et al. 2018, A Dual Approach to Scalable Verification of Deep Networks, arXiv 1803.06567",
        section="3.3",
        summary="Relaxes every equation of the network with a multiplier and climbs the dual function, anytime.",
        norms=(Norm.LINF, Norm.L2, Norm.L1, Norm.L0),
        guarantee=Guarantee.SOUND,
        failure_modes=("cannot pass the linear program over single-neuron relaxations; converges slowly near its end",),
        checked_by="at least the bound it starts from, at most the triangle linear program (HiGHS) and "
        "within a stated gap of it on small networks",
    )

    iterations: int = parameter(
        100,
        "steps, at least 0",
        "ours: 1 to 2 % of the way from CROWN to the linear program is left on six small networks",
    )
    step: float = parameter(
        0.02,
        "Adam's learning rate in units of a layer's mean multiplier, ten times as much for slopes, above 0; it falls to "
        "1 % of that by the last step",
        "ours: between 0.01 and 0.03, the best of 0.003 to 0.1",
    )
    memory: int | None = parameter(
        None, "bytes for the coefficients of one backward pass", "ours: 16 MB on a CPU (its cache), 1 GB elsewhere"
    )

    @override
    def bounds(self, graph: Graph, region: LpBall, x: Tensor, c: Tensor, d: Tensor | None = None) -> Tensor:
        """See `GraphCertifier.bounds`; without gradient."""
        self.check_deployed(graph)
        with torch.no_grad():
            found = propagated(graph, region, x, memory=self.memory)
            best = best_specification(found, c, d)
            dual = Dual(found, c, d)
            return torch.maximum(best, ascend(dual, self.iterations, self.step))


def ascend(dual: Dual, iterations: int, step: float) -> Tensor:
    """Adam on the dual function from the dual network's multipliers: the best value of each row, (n, rows).

    Every multiplier is free, but they are moved in coordinates in which the lines are straight ahead: lambda by what it
    differs from what arrives, mu by what it differs from lambda times a slope, and the slope itself. In lambda and mu
    alone most steps are lost to the kinks.
    """
    found, start = dual.found, dict[int, Multipliers]()
    rows = dual.rows.shape[0]

    def remember(k: int, a: Tensor) -> Multipliers | None:
        given = dual.network(k, a)
        if given is not None:
            start[k] = given
        return given

    best = dual.bound(remember)
    if not start:
        return best
    slopes = {k: s.expand(rows, *s.shape).clone() for k, s in found.alphas(len(found.graph.nodes) - 1).items()}
    units = {k: Multipliers(*(_mean_size(t) for t in pair)) for k, pair in start.items()}
    moves = {k: Multipliers(*(torch.zeros_like(t) for t in pair)) for k, pair in start.items()}

    def moved(k: int, a: Tensor) -> Multipliers | None:
        if k not in moves:
            return None
        value = a + units[k].value * moves[k].value
        given = dual.network(k, value, slopes)
        return given and Multipliers(value, given.argument + units[k].argument * moves[k].argument)

    offsets = [t for pair in moves.values() for t in pair]
    variables = [*slopes.values(), *offsets]
    for t in variables:
        t.requires_grad_()
    groups = [{"params": list(slopes.values()), "lr": 10 * step}, {"params": offsets}]
    adam = torch.optim.Adam([g for g in groups if g["params"]], lr=step)
    rate = torch.optim.lr_scheduler.ExponentialLR(adam, 0.01 ** (1 / max(iterations, 1)))
    for _ in range(iterations):
        with torch.enable_grad():
            lower = dual.bound(moved)
            gradients = torch.autograd.grad(-lower.sum(), variables, allow_unused=True)
        best = torch.where(lower > best, lower.detach(), best)
        for t, gradient in zip(variables, gradients, strict=True):
            t.grad = gradient
        adam.step()  # pyright: ignore[reportUnknownMemberType]
        rate.step()
        for s in slopes.values():
            s.clamp_(0, 1)
    lower = dual.bound(moved)
    return torch.where(lower > best, lower, best)


def _mean_size(t: Tensor) -> Tensor:
    """The mean magnitude of each row, (rows, n, 1, ...)."""
    return t.abs().flatten(2).mean(2).clamp(min=1e-12).view(*t.shape[:2], *(1,) * (t.ndim - 2))
