"""The bound of Wong and Kolter estimated from random projections: cheap enough for training, never a certificate."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor

from holdfast.certifiers.propagation.operations.activations import PiecewiseLinear
from holdfast.certifiers.propagation.region import Box, Region
from holdfast.certifiers.propagation.table import operation
from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.core.sets import AffineImage, LpBall
from holdfast.core.threat import Norm
from holdfast.graph.model import Graph, Node
from holdfast.graph.operations import compute
from holdfast.numerics.distance import vector_norm

__all__ = ["ProjectedEstimate", "projected_bound"]


class ProjectedEstimate(NamedTuple):
    """What random projections say of a bound: it may lie above it, so nothing is certified by it.

    Attributes:
        margins: estimates of lower bounds of ``C f(x') + d``, (n, rows), with gradient.
        projections: how many there were; a radius has a relative standard error of about 1.6 over their square root.
    """

    margins: Tensor
    projections: int


class _Cloud(NamedTuple):
    """A value as ``centre + sum of generators``: random combinations of the generators stand for their sizes.

    Attributes:
        centre: (n, \\*shape).
        cauchy: (k, n, \\*shape), generators that vary in [-1, 1] each, with Cauchy weights.
        normal: likewise with normal weights, those that vary in the unit l2 ball together.
    """

    centre: Tensor
    cauchy: Tensor | None = None
    normal: Tensor | None = None

    def radius(self) -> Tensor:
        """Estimated size of all generators: the median is 1 for a Cauchy variable, so it estimates the l1 norm."""
        radius = torch.zeros_like(self.centre)
        if self.cauchy is not None:
            radius = radius + self.cauchy.abs().median(0).values
        if self.normal is not None:
            radius = radius + vector_norm(self.normal, dim=0) / len(self.normal) ** 0.5
        return radius


def projected_bound(
    graph: Graph,
    region: LpBall,
    x: Tensor,
    c: Tensor,
    d: Tensor | None = None,
    *,
    generator: torch.Generator,
    projections: int = 50,
) -> ProjectedEstimate:
    """Estimates what `wong_kolter` bounds (Wong et al. 2018, Scaling Provable Adversarial Defenses, arXiv 1805.12514).

    Between its parallel lines a ReLU is ``s z - s l (1 + t) / 2`` with t in [-1, 1], so every value is an affine
    function of the inputs and of one t for each unstable ReLU, and its radius the l1 norm of the coefficients. Wong and
    Kolter find them with one backward pass for each neuron. Here ``projections`` random combinations of them go
    forwards, with Cauchy weights, whose median magnitude is the l1 norm (Li et al. 2007); for the inputs of an l2 ball
    with normal weights, whose root mean square is the l2 norm. The cost is that of ``projections + 1`` forward passes
    for each sample, whatever the width. The authors take a median for each layer and add them up, here it is one
    median for all layers. An l2 ball is not cut by its box, and boxes are not intersected with intervals.

    Args:
        graph: the model, in its own arithmetic; differentiable in its tensors.
        region: the set around each sample, in linf or l2.
        x: samples (n, \\*features).
        c: (n, rows, classes) or (rows, classes).
        d: (rows,) or (n, rows), 0 if missing.
        generator: where the weights come from, on the device of x.
        projections: k, at least 1; 50 in the paper's larger experiments.

    Raises:
        UnsupportedError: a set other than a ball in linf or l2, or an operation that is not affine and no ReLU.
        UsageError: no projections.

    Example:
        >>> from holdfast.graph import trace
        >>> graph = trace(torch.nn.Linear(2, 2), torch.zeros(1, 2))
        >>> ball = LpBall.uniform(Norm.LINF, 0.0, 1)
        >>> found = projected_bound(graph, ball, torch.ones(1, 2), torch.eye(2), generator=torch.Generator())
        >>> found.margins.shape, found.projections
        (torch.Size([1, 2]), 50)
    """
    _check(graph, region, projections)
    clouds = [_start(region, x.to(graph.dtype), projections, generator)]
    for node in graph.nodes[1:]:
        inputs, op = [clouds[j] for j in node.inputs], operation(node.op)
        if isinstance(op, PiecewiseLinear):
            clouds.append(_through_relu(op.flat(node), inputs[0], projections, generator))
        elif op.linear:
            clouds.append(_through_linear(node, inputs))
        else:
            raise UnsupportedError(f"random projections know no lines for '{node.op}', only for (leaky) ReLUs")
    last = clouds[-1]
    rows = c.to(last.centre)
    centre, *generators = (None if t is None else torch.einsum("...rc,...c->...r", rows, t) for t in last)
    out = _Cloud(cast(Tensor, centre), *generators)
    margins = out.centre - out.radius()
    return ProjectedEstimate(margins if d is None else margins + d.to(margins), projections)


def _check(graph: Graph, region: LpBall, projections: int) -> None:
    """Refuses what is not served."""
    if projections < 1:
        raise UsageError(f"an estimate needs at least 1 projection, got {projections}")
    if region.norm not in (Norm.LINF, Norm.L2) or isinstance(region, AffineImage):
        raise UnsupportedError(
            f"random projections estimate l1 and l2 norms, for balls in linf and l2, not {region.norm}"
        )
    if len(graph.output_shape) != 1:
        raise UnsupportedError(f"a specification needs a vector as output, not {graph.output_shape}")


def _start(region: LpBall, x: Tensor, k: int, generator: torch.Generator) -> _Cloud:
    """The inputs: a box around its middle, or a ball around x."""
    if region.norm is Norm.LINF:
        box = Region(region, x, x.dtype).box
        return _Cloud((box.lower + box.upper) / 2, _cauchy((box.upper - box.lower) / 2, k, generator))
    reach = region.eps.to(x.dtype).view(-1, *(1,) * (x.ndim - 1)).expand(x.shape)
    if region.mask is not None:
        reach = torch.where(region.mask, reach, 0.0)
    return _Cloud(x, None, reach * torch.randn(k, *x.shape, dtype=x.dtype, device=x.device, generator=generator))


def _cauchy(size: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """k draws, (k, \\*shape of size)."""
    return size * size.detach().new_empty(k, *size.shape).cauchy_(generator=generator)


def _through_relu(flat: float, given: _Cloud, k: int, generator: torch.Generator) -> _Cloud:
    """The chord's slope for what comes in, and a generator of its own for each unstable ReLU."""
    radius = given.radius()
    box = Box(given.centre - radius, given.centre + radius)
    unstable = (box.lower < 0) & (box.upper > 0)
    width = torch.where(unstable, box.upper - box.lower, 1.0)
    settled = torch.where(box.lower >= 0, torch.ones_like(width), flat)
    slope = torch.where(unstable, (box.upper - flat * box.lower) / width, settled)
    half = torch.where(unstable, (flat - slope) * box.lower / 2, 0.0)  # of the gap between the two lines
    fresh = _cauchy(half, k, generator)
    cauchy = fresh if given.cauchy is None else slope * given.cauchy + fresh
    return _Cloud(slope * given.centre + half, cauchy, None if given.normal is None else slope * given.normal)


def _through_linear(node: Node, inputs: list[_Cloud]) -> _Cloud:
    """The centre with the bias, the combinations without."""
    plain = {name: t for name, t in node.tensors.items() if name not in ("bias", "shift", "size")}
    centre = compute(node.op, [cloud.centre for cloud in inputs], node.tensors, node.attributes)
    parts: list[Tensor | None] = []
    for kind in ("cauchy", "normal"):
        given: list[Tensor | None] = [getattr(cloud, kind) for cloud in inputs]
        some = next((t for t in given if t is not None), None)
        if some is None:
            parts.append(None)
            continue
        filled = [
            some.new_zeros(len(some), *cloud.centre.shape) if t is None else t
            for t, cloud in zip(given, inputs, strict=True)
        ]
        moved = compute(node.op, [t.flatten(0, 1) for t in filled], plain, node.attributes)
        parts.append(moved.view(len(some), *centre.shape))
    return _Cloud(centre, *parts)
