"""Fast-Lip: the margin at the sample less a bound on the local Lipschitz constant times the radius."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.certifiers.bounds.cnn_cert import window_places
from holdfast.certifiers.graph_certifier import GraphCertifier
from holdfast.certifiers.propagation.operation import Operation, node_size
from holdfast.certifiers.propagation.operations.activations import PiecewiseLinear, Sigmoid, Tanh
from holdfast.certifiers.propagation.operations.pool import MaxPool
from holdfast.certifiers.propagation.propagation import Propagation
from holdfast.certifiers.propagation.region import Box, Region, gamma
from holdfast.certifiers.propagation.specification import best_specification
from holdfast.certifiers.proved import numbers
from holdfast.certifiers.relaxation.lines import PARALLEL
from holdfast.core.cards import Card, parameter
from holdfast.core.errors import UnsupportedError
from holdfast.core.sets import LpBall
from holdfast.core.threat import Guarantee, Norm
from holdfast.graph.model import Graph, Node
from holdfast.numerics.distance import dual_norm

__all__ = ["FastLip", "GradientBounds", "gradients"]

_WITHIN = 1e-12  # derivatives of sigmoid and tanh are accurate to a few units of 2^-53
_TINY = 1e-290


class GradientBounds(NamedTuple):
    """Least and largest entries of a matrix of partial derivatives, each (rows, n, \\*shape)."""

    low: Tensor
    high: Tensor


@dataclass(frozen=True)
class FastLip(GraphCertifier):
    """``C f(x) + d`` less the most that it can fall, from intervals around all gradients in the set (Weng et al. 2018).

    A ReLU whose sign is known (by Fast-Lin's bounds) has slope 0 or 1, an unstable one any slope between; products of
    such matrices are enclosed entry by entry, and the dual norm of what is largest is a local Lipschitz constant. The
    paper multiplies from the input onwards, here it goes from the specification back: the same for one hidden layer,
    and a row for each margin is carried instead of one for each input. The fall is taken over ball and box together,
    and for l0 over the features with the largest falls. Fast-Lin is nearly always tighter; this also bounds gradients.
    """

    card: ClassVar[Card] = Card(
        title="Fast-Lip",
        rows=("V06",),
        paper="Weng et al. 2018, Towards Fast Computation of Certified Robustness for ReLU Networks, arXiv 1804.09699",
        section="3.3",
        summary="Bounds the local Lipschitz constant of each margin through the ReLUs that may be on or off.",
        norms=(Norm.LINF, Norm.L2, Norm.L1, Norm.L0),
        guarantee=Guarantee.SOUND,
        failure_modes=(
            "loose where many ReLUs are unstable: each then counts with its steepest slope, whatever the others do",
            "serves ReLU, leaky ReLU, sigmoid, tanh and max pools only",
        ),
        checked_by="linear models, gradients at sampled points, the norm of the one-layer formula, exact optima of small "
        "networks",
    )

    memory: int | None = parameter(
        None, "bytes for the coefficients of one backward pass", "ours: 16 MB on a CPU (its cache), 1 GB elsewhere"
    )

    @override
    def bounds(self, graph: Graph, region: LpBall, x: Tensor, c: Tensor, d: Tensor | None = None) -> Tensor:
        """See `GraphCertifier.bounds`."""
        found = self._propagated(graph, region, x)
        value = _at(found.graph, x, c, d)
        change, error = found.region.least_change(*gradients(found, c))
        fallen = value + (change - error).T
        return numbers(fallen - gamma(4) * (fallen.abs() + value.abs()))

    def lipschitz(self, graph: Graph, region: LpBall, x: Tensor, c: Tensor) -> Tensor:
        """Upper bounds of the dual norm of every gradient of ``C f`` in the set: local Lipschitz constants.

        Args:
            graph: the model.
            region: the set around each sample, in l1, l2 or linf.
            x: samples (n, \\*features).
            c: (n, rows, classes) or (rows, classes).

        Returns:
            (n, rows) float64.

        Raises:
            UnsupportedError: l0 is no norm.
        """
        if region.norm is Norm.L0:
            raise UnsupportedError("l0 is no norm, so nothing is Lipschitz for it; use linf, l2 or l1")
        with torch.no_grad():
            low, high = gradients(self._propagated(graph, region, x), c)
            steepest = torch.maximum(low.abs(), high.abs())
            found = dual_norm(region.norm, steepest.flatten(0, 1)).view(steepest.shape[:2]).T
            return found * (1 + gamma(node_size(x.shape[1:]) + 16))

    def _propagated(self, graph: Graph, region: LpBall, x: Tensor) -> Propagation:
        """Fast-Lin's boxes.

        Raises:
            UnsupportedError: an operation whose slopes are not known.
        """
        self.check_deployed(graph)
        found = Propagation(graph.to(torch.float64), Region(region, x), memory=self.memory, lines=PARALLEL)
        for node, op in zip(found.graph.nodes, found.operations, strict=True):
            if op and not op.linear and not isinstance(op, PiecewiseLinear | Sigmoid | Tanh | MaxPool):
                raise UnsupportedError(f"{self.card.title} knows no bounds on the slope of '{node.op}'; use crown")
        found.run(refine=lambda _: True)
        return found


def _at(graph: Graph, x: Tensor, c: Tensor, d: Tensor | None) -> Tensor:
    """Lower bounds of ``C f(x) + d`` at the samples themselves, (n, rows)."""
    x = x.detach().double()
    point = LpBall(norm=Norm.LINF, eps=torch.zeros(len(x), dtype=torch.float64, device=x.device), lower=x, upper=x)
    found = Propagation(graph, Region(point, x), lines=PARALLEL)
    found.run(refine=lambda _: False)
    return best_specification(found, c, d)


def gradients(found: Propagation, c: Tensor) -> GradientBounds:
    """Encloses the gradient of ``C f`` at all inputs of a region; (rows, n, \\*features).

    What is enclosed are the products of slopes between any two points of the region, so that ``C f(x') - C f(x)`` is
    ``<g, x' - x>`` for some g inside, kinks or not. Rounding is paid for.

    Args:
        found: a propagation that has run, of a graph with a vector as output.
        c: (n, rows, classes) or (rows, classes).
    """
    output, n = len(found.graph.nodes) - 1, len(found.region.x)
    rows = c.to(found.region.x).expand(n, *c.shape[-2:]).transpose(0, 1)
    pending = {output: GradientBounds(rows, rows)}
    for k in range(output, 0, -1):
        if k not in pending:
            continue
        node, op, given = found.graph.nodes[k], found.operations[k], pending.pop(k)
        boxes = [found.boxes[j] for j in node.inputs]
        if isinstance(op, MaxPool):
            parts = [_through_pool(node, boxes[0], given)]
        elif isinstance(op, PiecewiseLinear | Sigmoid | Tanh):
            parts = [_scaled(given, _slopes(op, node, boxes[0]))]
        else:
            assert op is not None
            parts = _through_linear(op, node, boxes, given, found.terms(k))
        for j, part in zip(node.inputs, parts, strict=True):
            pending[j] = _widened(*(a + b for a, b in zip(pending[j], part, strict=True))) if j in pending else part
    return pending.get(
        0, GradientBounds(*(torch.zeros_like(found.region.x).expand(len(rows), *found.region.x.shape),) * 2)
    )


def _widened(low: Tensor, high: Tensor) -> GradientBounds:
    """With one rounding of each end paid for."""
    return GradientBounds(low - gamma(1) * low.abs() - _TINY, high + gamma(1) * high.abs() + _TINY)


def _slopes(op: Operation, node: Node, box: Box) -> GradientBounds:
    """Least and largest slope of an activation between any two points of a box, (n, \\*shape)."""
    if isinstance(op, PiecewiseLinear):
        flat, one = op.flat(node), torch.ones_like(box.lower)
        return GradientBounds(torch.where(box.lower >= 0, one, flat), torch.where(box.upper <= 0, flat, one))
    assert isinstance(op, Sigmoid | Tanh)  # their derivatives are even and fall on either side of 0
    nearest, farthest = torch.zeros_like(box.lower).clamp(*box), box.magnitude
    least, most = op.derivative(farthest), op.derivative(nearest)
    return GradientBounds(least * (1 - _WITHIN), most * (1 + _WITHIN) + _TINY)


def _scaled(given: GradientBounds, slopes: GradientBounds) -> GradientBounds:
    """All products of a number from each interval."""
    ends = [g * s for g in given for s in slopes]
    low, high = ends[0], ends[0]
    for end in ends[1:]:
        low, high = torch.minimum(low, end), torch.maximum(high, end)
    return _widened(low, high)


def _through_linear(
    op: Operation, node: Node, boxes: list[Box], given: GradientBounds, terms: int
) -> list[GradientBounds]:
    """The centre goes back as it is, the radius through the magnitudes of the weights."""
    centre, radius = (given.low + given.high) / 2, (given.high - given.low) / 2
    prepared, slip = op.prepare(node, boxes), gamma(terms + 8)
    sizes = replace(node, tensors={name: t.abs() for name, t in node.tensors.items()})
    moved = op.pull(node, centre, prepared)[0]
    grown = op.pull(sizes, radius + slip * (centre.abs() + radius), prepared)[0]
    parts: list[GradientBounds] = []
    for middle, reach in zip(moved, grown, strict=True):
        reach = reach.abs() * (1 + slip) + _TINY  # a subtraction has turned its sign
        parts.append(GradientBounds(middle - reach, middle + reach))
    return parts


def _through_pool(node: Node, box: Box, given: GradientBounds) -> GradientBounds:
    """The slopes of a window are at least 0 and add up to 1, and are 0 where another entry is always larger."""
    place = window_places(node, tuple(box.lower.shape[2:]), box.lower.device)
    filled, place = place >= 0, place.clamp(min=0)
    low, high = (t.flatten(2)[..., place] for t in box)  # (n, channels, windows, kernel)
    floor = low.masked_fill(~filled, -torch.inf).amax(-1, keepdim=True)
    counts = filled & ~(high < floor)
    alone = counts.sum(-1) == 1
    ends = [t.flatten(3) for t in given]
    least = torch.where(alone, ends[0], ends[0].clamp(max=0))
    most = torch.where(alone, ends[1], ends[1].clamp(min=0))
    found: list[Tensor] = []
    for end, sign in ((least, -1), (most, 1)):
        back = end.new_zeros(*end.shape[:3], node_size(box.lower.shape[2:]))
        size = torch.zeros_like(back)
        for i in range(place.shape[1]):
            part, index = torch.where(counts[..., i], end, 0.0), place[:, i].expand_as(end)
            back, size = back.scatter_add(3, index, part), size.scatter_add(3, index, part.abs())
        slack = gamma(node_size(node.shape[1:]) + 16) * size.detach() + _TINY
        found.append((back + sign * slack).view(*end.shape[:2], *box.lower.shape[1:]))
    return GradientBounds(*found)
