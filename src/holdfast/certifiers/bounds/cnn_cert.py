"""CNN-Cert: linear bounds whose coefficients stay convolutions, with lines for every building block of a CNN."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.certifiers.graph_certifier import GraphCertifier
from holdfast.certifiers.propagation.operation import Operation, Pull, node_size
from holdfast.certifiers.propagation.operations.pool import MaxPool
from holdfast.certifiers.propagation.propagation import propagated
from holdfast.certifiers.propagation.region import Box
from holdfast.certifiers.propagation.specification import best_specification
from holdfast.certifiers.relaxation.lines import PARALLEL
from holdfast.core.cards import Card, parameter
from holdfast.core.errors import UsageError
from holdfast.core.sets import LpBall
from holdfast.core.threat import Guarantee, Norm
from holdfast.graph.model import Graph, Node

__all__ = ["CNNCert", "PoolPlanes", "window_places"]


class _Planes(NamedTuple):
    """``sum_n slope_n x_n + below <= max_n x_n <= sum_n slope_n x_n + above`` for each window."""

    place: Tensor
    slope: Tensor
    below: Tensor
    above: Tensor
    shape: tuple[int, ...]


class PoolPlanes(MaxPool):
    """A max pool between two parallel planes through all entries of a window (Boopathy et al. 2019, appendix).

    With ``l_n <= x_n <= u_n``, only entries that can be the largest counted, and any ``g`` from the largest l on,

        max x = g + max (x_n - g) <= g + sum (x_n - g)^+ <= g + sum s_n (x_n - l_n),   s_n = (u_n - g)^+ / (u_n - l_n),

    each ReLU below its chord. And for any s >= 0 with sum G, ``sum s_n (x_n - e) + e <= max x`` if e is the least l and
    G < 1, or the largest u and G > 1. The paper takes the g at which G is 1, moved between the largest l and the least u.
    """

    @override
    def size(self, node: Node, inputs: Sequence[Box], output: Box) -> Tensor:
        """Slopes of a window are at most 1 each, and intercepts at most the window's sum with them."""
        reach = max(float(t.abs().max()) for t in inputs[0])
        return torch.full_like(output.lower, (4 * node_size(node.attributes["kernel"]) + 4) * reach)

    @override
    def prepare(self, node: Node, inputs: Sequence[Box], alpha: Tensor | None = None) -> Any:
        """The planes of each window; nothing is free in them."""
        (lower, upper), shape = inputs[0], tuple(inputs[0].lower.shape[1:])
        place = window_places(node, shape[1:], lower.device)
        filled, place = place >= 0, place.clamp(min=0)
        low, high = lower.flatten(2)[..., place], upper.flatten(2)[..., place]  # (n, channels, windows, kernel)
        floor = low.masked_fill(~filled, -torch.inf).amax(-1, keepdim=True)
        counts = filled & (high >= floor)
        width = torch.where(counts & (high > low), high - low, 1.0)
        spread = counts & (high > low)  # a point that can be the largest has u = l = floor, and needs no slope
        weight = torch.where(spread, 1 / width, 0.0)
        balanced = ((weight * high).sum(-1, keepdim=True) - 1) / weight.sum(-1, keepdim=True).clamp(min=1e-300)
        ceiling = high.masked_fill(~counts, torch.inf).amin(-1, keepdim=True)
        at = torch.maximum(torch.minimum(balanced, ceiling), floor)
        slopes = torch.where(spread, (high - at) / width, 0.0).clamp(0, 1)
        total = slopes.sum(-1)
        least = low.masked_fill(~counts, torch.inf).amin(-1)
        most = high.masked_fill(~counts, -torch.inf).amax(-1)
        edge = torch.where(total < 1, least, most)
        below = edge * (1 - total)
        above = at.squeeze(-1) - (slopes * low).sum(-1)
        return _Planes(place, slopes, below, above, shape)

    @override
    def pull(self, node: Node, a: Tensor, prepared: Any) -> Pull:
        """Where a coefficient is negative the upper plane bounds from below."""
        planes: _Planes = prepared
        flat = a.flatten(3)
        negative = flat.clamp(max=0)
        back = a.new_zeros(*flat.shape[:3], node_size(planes.shape[1:]))
        for k in range(planes.place.shape[1]):
            index = planes.place[:, k].expand_as(flat)
            back = back.scatter_add(3, index, flat * planes.slope[..., k])
        constant = torch.einsum("sncw,ncw->sn", negative, planes.above)
        constant = constant + torch.einsum("sncw,ncw->sn", flat - negative, planes.below)
        return [back.view(*a.shape[:2], *planes.shape)], constant


def window_places(node: Node, sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """Which entry of a feature map each place of each window reads: (windows, kernel) int64, -1 in the padding."""
    at = node.attributes
    place, outside = torch.zeros(1, 1, dtype=torch.int64, device=device), torch.zeros(1, 1, dtype=torch.bool)
    outside = outside.to(device)
    for d, size in enumerate(sizes):
        out = torch.arange(node.shape[d + 1], device=device) * at["stride"][d] - at["padding"][d]
        here = out.unsqueeze(1) + torch.arange(at["kernel"][d], device=device) * at["dilation"][d]
        missing = (here < 0) | (here >= size)
        place = (place[:, None, :, None] * size + here[None, :, None, :]).flatten(2).flatten(0, 1)
        outside = (outside[:, None, :, None] | missing[None, :, None, :]).flatten(2).flatten(0, 1)
    return place.masked_fill(outside, -1)


@dataclass(frozen=True)
class CNNCert(GraphCertifier):
    """Linear bounds through convolutions, batch norms, shortcuts, activations and pools (Boopathy et al. 2019).

    The backward step shares CROWN's: coefficients have the shape of feature maps and a convolution is pulled back by
    its transpose, never unrolled. What is CNN-Cert's own is the choice of lines. Its radius search is
    `GraphCertifier.radius` (bisection; the paper halves and doubles in log eps).
    """

    deployable: ClassVar[bool] = True
    card: ClassVar[Card] = Card(
        title="CNN-Cert",
        rows=("V08",),
        paper="Boopathy et al. 2019, CNN-Cert: An Efficient Framework for Certifying Robustness of Convolutional Neural "
        "Networks, arXiv 1811.12395",
        section="3.3",
        summary="Linear bounds propagated in the shape of convolutions, with planes around max pools.",
        norms=(Norm.LINF, Norm.L2, Norm.L1, Norm.L0),
        guarantee=Guarantee.SOUND,
        failure_modes=(
            "its planes around a max pool are looser than CROWN's where one entry is nearly always largest",
        ),
        checked_by="equals CROWN on the unrolled network, sampled points, exact optima of small networks",
    )

    relu: str = parameter(
        "adaptive",
        "lines around a ReLU: parallel (CNN-Cert-ReLU, as Fast-Lin) or adaptive (the lower slope is 0 or 1, as CROWN)",
        "Boopathy et al. 2019, section 3: adaptive gives the larger radii",
    )
    memory: int | None = parameter(
        None, "bytes for the coefficients of one backward pass", "ours: 16 MB on a CPU (its cache), 1 GB elsewhere"
    )

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if self.relu not in ("adaptive", "parallel"):
            raise UsageError(f"relu is adaptive or parallel, not {self.relu!r}")

    @override
    def bounds(self, graph: Graph, region: LpBall, x: Tensor, c: Tensor, d: Tensor | None = None) -> Tensor:
        """See `GraphCertifier.bounds`."""
        lines: dict[str, Operation] = {"max_pool": PoolPlanes()}
        if self.relu == "parallel":
            lines |= PARALLEL
        found = propagated(graph, region, x, memory=self.memory, lines=lines)
        return best_specification(found, c, d)
