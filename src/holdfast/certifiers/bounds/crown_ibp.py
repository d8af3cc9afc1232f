"""CROWN-IBP: intervals for everything inside, one backward pass for the specification."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.certifiers.graph_certifier import GraphCertifier
from holdfast.certifiers.propagation.propagation import Propagation
from holdfast.certifiers.propagation.region import Region
from holdfast.certifiers.propagation.specification import best_specification
from holdfast.core.cards import Card, parameter
from holdfast.core.sets import LpBall
from holdfast.core.threat import Guarantee, Norm
from holdfast.graph.model import Graph

__all__ = ["CrownIBP"]


@dataclass(frozen=True)
class CrownIBP(GraphCertifier):
    """One CROWN pass from the specification over boxes from interval arithmetic (Zhang et al. 2020).

    Costs about two forward passes and one backward pass with a row for each class: cheap enough for training, and what
    networks trained that way are best certified with. The better one of it and intervals is given, row by row.
    """

    deployable: ClassVar[bool] = True
    card: ClassVar[Card] = Card(
        title="CROWN-IBP",
        rows=("V09",),
        paper="Zhang et al. 2020, Towards Stable and Efficient Training of Verifiably Robust Neural Networks, "
        "arXiv 1906.06316",
        section="3.3",
        summary="Intervals before every activation, then one backward pass of CROWN for the specification.",
        norms=(Norm.LINF, Norm.L2, Norm.L1, Norm.L0),
        guarantee=Guarantee.SOUND,
        failure_modes=("as loose as intervals in deep networks that were not trained with it",),
        checked_by="auto_LiRPA's bounds, sampled points, exact optima of small networks, dual norms of linear models",
    )

    memory: int | None = parameter(
        None, "bytes for the coefficients of one backward pass", "ours: 16 MB on a CPU (its cache), 1 GB elsewhere"
    )

    @override
    def bounds(self, graph: Graph, region: LpBall, x: Tensor, c: Tensor, d: Tensor | None = None) -> Tensor:
        """See `GraphCertifier.bounds`."""
        found = Propagation(graph.to(torch.float64), Region(region, x), memory=self.memory)
        # for balls that are no boxes the first affine layers are bounded by the dual norm
        found.run(refine=found.affine_in_input, every=True)
        return best_specification(found, c, d)
