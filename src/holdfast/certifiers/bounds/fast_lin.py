"""Fast-Lin: two parallel lines around every ReLU, substituted backwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from holdfast.certifiers.graph_certifier import GraphCertifier
from holdfast.certifiers.propagation.propagation import propagated
from holdfast.certifiers.propagation.specification import best_specification
from holdfast.certifiers.relaxation.lines import PARALLEL
from holdfast.core.cards import Card, parameter
from holdfast.core.sets import LpBall
from holdfast.core.threat import Guarantee, Norm
from holdfast.graph.model import Graph

__all__ = ["FastLin"]


@dataclass(frozen=True)
class FastLin(GraphCertifier):
    """Backward substitution with one slope, ``u / (u - l)``, above and below an unstable ReLU (Weng et al. 2018).

    As published but for three things that can only help: boxes are intersected with intervals, the better one of the
    last bound and intervals is kept, and the ball is cut by the box of valid inputs. Operations other than ReLUs, which
    the paper does not have, take CROWN's lines.
    """

    deployable: ClassVar[bool] = True
    card: ClassVar[Card] = Card(
        title="Fast-Lin",
        rows=("V06",),
        paper="Weng et al. 2018, Towards Fast Computation of Certified Robustness for ReLU Networks, arXiv 1804.09699",
        section="3.3",
        summary="Bounds every ReLU by two parallel lines and substitutes backwards to the input.",
        norms=(Norm.LINF, Norm.L2, Norm.L1, Norm.L0),
        guarantee=Guarantee.SOUND,
        failure_modes=(
            "looser than CROWN where many ReLUs are far from balanced; neither bounds the other from above in theory",
        ),
        checked_by="equals the Wong-Kolter dual at equal slopes, sampled points, exact optima of small networks",
    )

    memory: int | None = parameter(
        None, "bytes for the coefficients of one backward pass", "ours: 16 MB on a CPU (its cache), 1 GB elsewhere"
    )

    @override
    def bounds(self, graph: Graph, region: LpBall, x: Tensor, c: Tensor, d: Tensor | None = None) -> Tensor:
        """See `GraphCertifier.bounds`."""
        found = propagated(graph, region, x, memory=self.memory, lines=PARALLEL)
        return best_specification(found, c, d)
