"""The dual network of Wong and Kolter: the convex outer polytope bounded from below by one backward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.certifiers.graph_certifier import GraphCertifier
from holdfast.certifiers.propagation.propagation import propagated
from holdfast.certifiers.propagation.specification import specification
from holdfast.certifiers.relaxation.dual import Dual
from holdfast.certifiers.relaxation.lines import PARALLEL
from holdfast.core.cards import Card, parameter
from holdfast.core.sets import LpBall
from holdfast.core.threat import Guarantee, Norm
from holdfast.graph.model import Graph

__all__ = ["WongKolter"]


@dataclass(frozen=True)
class WongKolter(GraphCertifier):
    """``J(c, g(alpha))``: a dual feasible point of the linear program over the convex outer polytope.

    With nu the dual network's values, ``nu^ = W^T nu``, ``nu = 0`` where a ReLU is off, ``nu^`` where it is on and
    ``s [nu^]_+ - alpha [nu^]_-`` where it is open, ``s = u / (u - l)``. The dual program's maximum over alpha is the
    linear program's value; alpha = s, the paper's choice, makes the backward network linear and the bound that of
    Fast-Lin. Boxes come from the same pass from each hidden neuron, intersected with intervals; the ball is cut by the
    box of valid inputs (the authors' code leaves that out unless told otherwise). Shortcuts add up as in the scaled
    version (Wong et al. 2018), whose random projections are `holdfast.certifiers.relaxation.projected_bound`: an
    estimate for training that certifies nothing. Operations other than ReLUs take CROWN's lines.
    """

    card: ClassVar[Card] = Card(
        title="Wong-Kolter",
        rows=("V03",),
        paper="Wong and Kolter 2018, Provable Defenses against Adversarial Examples via the Convex Outer Adversarial "
        "Polytope, arXiv 1711.00851; Wong et al. 2018, Scaling Provable Adversarial Defenses, arXiv 1805.12514",
        section="3.3",
        summary="Evaluates a feasible point of the dual of the convex outer polytope's linear program by one backward "
        "pass.",
        norms=(Norm.LINF, Norm.L2, Norm.L1, Norm.L0),
        guarantee=Guarantee.SOUND,
        failure_modes=(
            "loose for networks that were not trained with it; dvijotham goes on from its multipliers",
            "a backward pass for each unstable ReLU; the estimate by random projections, projected_bound, needs none, but "
            "is no bound",
        ),
        checked_by="equals Fast-Lin at equal slopes, never above the linear program, sampled points",
    )

    memory: int | None = parameter(
        None, "bytes for the coefficients of one backward pass", "ours: 16 MB on a CPU (its cache), 1 GB elsewhere"
    )

    @override
    def bounds(self, graph: Graph, region: LpBall, x: Tensor, c: Tensor, d: Tensor | None = None) -> Tensor:
        """See `GraphCertifier.bounds`."""
        self.check_deployed(graph)
        found = propagated(graph, region, x, memory=self.memory, lines=PARALLEL)
        dual = Dual(found, c, d)
        return torch.maximum(dual.bound(dual.network), specification(found, c, d, at_boxes=True))
