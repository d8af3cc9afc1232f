"""CROWN: linear bounds by backward propagation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from holdfast.certifiers.graph_certifier import GraphCertifier
from holdfast.certifiers.propagation.propagation import propagated
from holdfast.certifiers.propagation.specification import best_specification
from holdfast.core.cards import Card, parameter
from holdfast.core.sets import LpBall
from holdfast.core.threat import Guarantee, Norm
from holdfast.graph.model import Graph

__all__ = ["CROWN"]


@dataclass(frozen=True)
class CROWN(GraphCertifier):
    """Every activation between two lines, substituted backwards to the input (Zhang et al. 2018).

    Boxes of the values before activations come from backward passes too, for unstable neurons only, and are intersected
    with intervals; the specification's bound is the better one of CROWN and intervals. Convolutions stay convolutions
    (Boopathy et al. 2019, CNN-Cert) and branches of the graph add up (Xu et al. 2020, auto_LiRPA).
    """

    deployable: ClassVar[bool] = True
    card: ClassVar[Card] = Card(
        title="CROWN",
        rows=("V07", "V15"),
        paper="Zhang et al. 2018, Efficient Neural Network Robustness Certification with General Activation Functions, "
        "arXiv 1811.00866; Boopathy et al. 2019, CNN-Cert, arXiv 1811.12395",
        section="3.3",
        summary="Bounds every activation by two lines and substitutes backwards to the input, for l0, l1, l2 and linf.",
        norms=(Norm.LINF, Norm.L2, Norm.L1, Norm.L0),
        guarantee=Guarantee.SOUND,
        failure_modes=("loose for deep networks that were trained without regard to it",),
        checked_by="auto_LiRPA's bounds, sampled points, exact optima of small networks, dual norms of linear models",
    )

    memory: int | None = parameter(
        None, "bytes for the coefficients of one backward pass", "ours: 16 MB on a CPU (its cache), 1 GB elsewhere"
    )

    @override
    def bounds(self, graph: Graph, region: LpBall, x: Tensor, c: Tensor, d: Tensor | None = None) -> Tensor:
        return best_specification(propagated(graph, region, x, memory=self.memory), c, d)
