"""SDP-FO: the semidefinite relaxation of a ReLU network by first-order steps on its dual, a bound at any time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.certifiers.graph_certifier import GraphCertifier
from holdfast.certifiers.relaxation.semidefinite import (
    SemidefiniteDual,
    SemidefiniteMultipliers,
    semidefinite_bounds,
)
from holdfast.core.cards import Card, parameter
from holdfast.core.sets import LpBall
from holdfast.core.threat import Guarantee, Norm
from holdfast.graph.model import Graph

__all__ = ["SDPFirstOrder"]

_EXACT = 64  # matrices up to this size are decomposed at every step


@dataclass(frozen=True)
class SDPFirstOrder(GraphCertifier):
    """Adam on the multipliers of the semidefinite relaxation (Dathathri et al. 2020).

    It starts at CROWN's multipliers, where its bound is CROWN's, and needs no solver. A step needs the least eigenvalue
    and its vector, for large matrices only an estimate from a few products; what is returned is the best of the
    iterates that were looked at, bounded anew with a proof of its least eigenvalue (see `relaxation.semidefinite`).
    """

    card: ClassVar[Card] = Card(
        title="SDP-FO",
        rows=("V04",),
        paper="Dathathri et al. 2020, Enabling certification of verification-agnostic networks via memory-efficient "
        "semidefinite programming, arXiv 2010.11645",
        section="3.3",
        summary="The semidefinite relaxation by first-order steps on its dual; every iterate is a sound bound.",
        norms=(Norm.LINF,),
        guarantee=Guarantee.SOUND,
        failure_modes=(
            "converges slowly: after a few hundred steps it is well below the optimum of the relaxation",
            "matrices are dense; beyond `variables` inputs and open activations a sample keeps CROWN's bounds",
            "smooth activations are held by their two lines only",
        ),
        checked_by="starts at CROWN, stays below the solved semidefinite program and exact optima of small networks",
    )

    variables: int = parameter(
        400,
        "samples with more inputs and open activations keep CROWN's bounds, at least 1",
        "ours: a tenth of a second a step",
    )
    iterations: int = parameter(300, "steps, at least 0", "ours; the paper takes tens of thousands on a GPU")
    step: float = parameter(
        0.05,
        "Adam's rate, relative to the largest coefficient of a row, above 0",
        "ours: the best of 0.005, 0.01, 0.02 and 0.04 on ten small nets was 0.04",
    )
    memory: int | None = parameter(
        None, "bytes for the coefficients of one backward pass", "ours: 16 MB on a CPU (its cache), 1 GB elsewhere"
    )

    @override
    def bounds(self, graph: Graph, region: LpBall, x: Tensor, c: Tensor, d: Tensor | None = None) -> Tensor:
        """See `GraphCertifier.bounds`; without gradient, and never below CROWN's."""
        return semidefinite_bounds(
            graph, region, x, c, d, solve=self._ascend, variables=self.variables, memory=self.memory
        )

    def _ascend(self, dual: SemidefiniteDual) -> SemidefiniteMultipliers:
        """The multipliers of the best iterate of each row."""
        best = dual.start()
        if not self.iterations or not all(bool(m.isfinite().all()) for m in best):
            return best
        n = dual.row.shape[1]
        # the bound scales with the row, so each row is searched at its own size
        scale = dual.row.abs().amax(1).clamp(min=1e-30).unsqueeze(1)
        parts = [m / scale if m.ndim > 1 else m / scale[:, 0] for m in best]
        variables = [part.clone().requires_grad_() for part in parts]
        adam = torch.optim.Adam(variables, lr=self.step)
        rate = torch.optim.lr_scheduler.CosineAnnealingLR(adam, self.iterations, self.step / 100)
        top = dual.quick(best, None)[0]
        basis: Tensor | None = None
        for k in range(self.iterations):
            with torch.enable_grad():
                given = SemidefiniteMultipliers(*(v * (scale if v.ndim > 1 else scale[:, 0]) for v in variables))
                value, basis = dual.quick(given, basis if n > _EXACT else None)
                gradients = torch.autograd.grad(-(value / scale[:, 0]).sum(), variables)
            if n <= _EXACT or k % 10 == 9:
                exact = value.detach() if n <= _EXACT else dual.quick(given, None)[0]
                better = exact > top
                top = torch.where(better, exact, top)
                pairs = zip(best, given, strict=True)
                best = SemidefiniteMultipliers(
                    *(torch.where(better.view(-1, *[1] * (b.ndim - 1)), g.detach(), b) for b, g in pairs)
                )
            for v, gradient in zip(variables, gradients, strict=True):
                v.grad = gradient
            cast(Any, adam).step()
            rate.step()
            for v in (*variables[:3], variables[4]):
                v.clamp_(min=0)
        return best
