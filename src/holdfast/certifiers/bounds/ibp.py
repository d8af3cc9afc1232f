"""Interval bound propagation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.certifiers.graph_certifier import GraphCertifier
from holdfast.certifiers.propagation.propagation import Propagation
from holdfast.certifiers.propagation.region import Region
from holdfast.certifiers.propagation.specification import specification
from holdfast.core.cards import Card
from holdfast.core.sets import LpBall
from holdfast.core.threat import Guarantee, Norm
from holdfast.graph.model import Graph

__all__ = ["IBP"]


@dataclass(frozen=True)
class IBP(GraphCertifier):
    """Boxes through every layer; the last linear layers are merged with the specification (Gowal et al. 2018)."""

    deployable: ClassVar[bool] = True
    card: ClassVar[Card] = Card(
        title="IBP",
        rows=("V09",),
        paper="Gowal et al. 2018, On the Effectiveness of Interval Bound Propagation, arXiv 1810.12715",
        section="3.3",
        summary="Propagates a box through every layer; costs about three forward passes and is tight only for models "
        "that were trained for it.",
        norms=(Norm.LINF, Norm.L2, Norm.L1, Norm.L0),
        guarantee=Guarantee.SOUND,
        failure_modes=("bounds explode with depth on models that were not trained with it",),
        checked_by="auto_LiRPA's bounds, sampled points, exact optima of small networks",
    )

    @override
    def bounds(self, graph: Graph, region: LpBall, x: Tensor, c: Tensor, d: Tensor | None = None) -> Tensor:
        """See `GraphCertifier.bounds`."""
        found = Propagation(graph.to(torch.float64), Region(region, x))
        # for balls that are no boxes the first affine layers are bounded by the dual norm
        found.run(refine=found.affine_in_input, every=True)
        return specification(found, c, d, at_boxes=True)
