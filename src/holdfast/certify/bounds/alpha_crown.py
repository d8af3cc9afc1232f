"""alpha-CROWN: CROWN with optimised slopes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from holdfast.certify.bounds._propagation import Propagation, specification
from holdfast.certify.bounds._region import Box, Region
from holdfast.certify.graph_certifier import GraphCertifier
from holdfast.core.cards import Card, parameter
from holdfast.core.sets import LpBall
from holdfast.core.threat import Guarantee, Norm
from holdfast.graph.model import Graph

__all__ = ["AlphaCROWN"]


@dataclass(frozen=True)
class AlphaCROWN(GraphCertifier):
    """CROWN whose lower slopes are chosen by gradient ascent on the bound (Xu et al. 2020 and 2021).

    Every choice of slopes gives a sound bound and the best of all is kept, so the result is never below CROWN's. The
    work is staged: first the slopes of the last backward pass alone, one for each row and neuron, which is cheap; then,
    for the samples that are still not settled (a row's bound is not positive), also those behind the boxes of the
    values before activations, shared by the entries of a box.
    """

    deployable: ClassVar[bool] = True
    card: ClassVar[Card] = Card(
        title="alpha-CROWN",
        rows=("V10",),
        paper="Xu et al. 2020, Automatic Perturbation Analysis for Scalable Certified Robustness, arXiv 2002.12920; "
        "Xu et al. 2021, Fast and Complete, arXiv 2011.13824",
        section="3.3",
        summary="CROWN with lower slopes optimised by Adam, first in the last backward pass, then in all.",
        norms=(Norm.LINF, Norm.L2, Norm.L1, Norm.L0),
        guarantee=Guarantee.SOUND,
        failure_modes=("cannot pass the barrier of single-neuron relaxations; use branch and bound beyond it",),
        checked_by="never below CROWN, sampled points, exact optima of small networks, auto_LiRPA's bounds",
    )

    iterations: int = parameter(20, "steps on the slopes of the last pass, at least 0", "auto_LiRPA: 20")
    deep_iterations: int = parameter(
        10, "steps on all slopes, for unsettled samples, at least 0", "ours: each costs about four times CROWN"
    )
    step: float = parameter(0.1, "Adam's learning rate, above 0", "auto_LiRPA: 0.1")
    decay: float = parameter(0.98, "what the rate is multiplied by at each step, in (0, 1]", "auto_LiRPA: 0.98")
    memory: int | None = parameter(
        None, "bytes for the coefficients of one backward pass", "ours: 16 MB on a CPU (its cache), 1 GB elsewhere"
    )

    def bounds(self, graph: Graph, region: LpBall, x: Tensor, c: Tensor, d: Tensor | None = None) -> Tensor:
        """See `GraphCertifier.bounds`; without gradient."""
        with torch.no_grad():
            graph = graph.to(torch.float64)
            c = c.expand(len(x), *c.shape[-2:])
            d = None if d is None else d.expand(len(x), c.shape[1])
            found = Propagation(graph, Region(region, x), memory=self.memory)
            found.run(refine=lambda _: True)
            best = torch.maximum(specification(found, c, d), specification(found, c, d, at_boxes=True))
            last = {k: s.repeat(c.shape[1], *(1,) * s.ndim) for k, s in found.choices(len(graph.nodes) - 1).items()}
            best = self._ascend(list(last.values()), lambda: specification(found, c, d, last), best, self.iterations)
            rows = (~(best > 0).all(1)).nonzero().flatten()
            if len(rows) and self.deep_iterations:
                last = {k: s.detach()[:, rows] for k, s in last.items()}
                known = [Box(b.lower[rows], b.upper[rows]) for b in found.boxes]
                shift = None if d is None else d[rows]
                best[rows] = self._deep(
                    graph, Region(region.select(rows), x[rows]), c[rows], shift, known, last, best[rows]
                )
        return best

    def _deep(
        self,
        graph: Graph,
        region: Region,
        c: Tensor,
        d: Tensor | None,
        known: list[Box],
        last: dict[int, Tensor],
        best: Tensor,
    ) -> Tensor:
        """Optimises the slopes of the last backward pass together with those behind every box that it uses."""
        found = Propagation(graph, region, memory=self.memory)
        found.run(refine=lambda _: False, known=known)
        slopes = {i: {k: s.unsqueeze(0) for k, s in found.choices(i).items()} for i in found.tightened()}

        def evaluate() -> Tensor:
            found.run(refine=lambda _: True, slopes=slopes, known=known)
            return specification(found, c, d, last)

        variables = [*last.values(), *(s for inner in slopes.values() for s in inner.values())]
        return self._ascend(variables, evaluate, best, self.deep_iterations)

    def _ascend(self, slopes: list[Tensor], evaluate: Callable[[], Tensor], best: Tensor, iterations: int) -> Tensor:
        """Adam on the sum of the bounds over slopes in [0, 1]; the best value of each row is kept."""
        if not slopes:
            return best
        for s in slopes:
            s.requires_grad_()
        adam = torch.optim.Adam(slopes, lr=self.step)
        rate = torch.optim.lr_scheduler.ExponentialLR(adam, self.decay)
        for _ in range(iterations):
            with torch.enable_grad():
                lower = evaluate()
                gradients = torch.autograd.grad(-lower.sum(), slopes, allow_unused=True)
            best = torch.where(lower > best, lower.detach(), best)
            for s, gradient in zip(slopes, gradients, strict=True):
                s.grad = gradient
            adam.step()  # pyright: ignore[reportUnknownMemberType]
            rate.step()
            for s in slopes:
                s.clamp_(0, 1)
        lower = evaluate()
        return torch.where(lower > best, lower, best)
