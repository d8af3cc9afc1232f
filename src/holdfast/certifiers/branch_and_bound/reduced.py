"""What is left of a graph once its boxes are known: only the activations that bend, and linear maps between them.

On a trained network most activations are dead or linear over the region. Substituting them leaves dense maps between the
few that bend, the input and the rows in question, and a backward pass becomes a handful of small matrix products. The
search of branch and bound runs on this, in float32: it finds slopes and multipliers. It proves nothing; what it finds is
put to `Propagation` on the whole graph, soundly.

`reduce` (in `reduction`) makes it, `evaluate` (in `passes`) bounds rows over parts of the region, and `ascend` (in
`ascent`) makes these bounds better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.certifiers.propagation.operation import Operation
from holdfast.certifiers.propagation.operations.activations import LeakyRelu, Lines
from holdfast.certifiers.propagation.region import Box, Region
from holdfast.graph.model import Graph, Node

__all__ = ["Cuts", "Entrance", "Layer", "LinearRows", "NeuronState", "Reduced"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Layer:
    """The entries of one activation that bend.

    Attributes:
        node: the activation.
        source: the node that it reads.
        index: (k,) int64, entries of its flattened value.
        start: position of the first of them among all that bend.
        stop: position after the last.
        operation: the activation's entry in the table.
        before: which earlier positions its arguments depend on: none but the last few where nothing linear leads around.
    """

    node: int
    source: int
    index: Tensor
    start: int
    stop: int
    operation: Operation
    before: slice = field(default_factory=lambda: slice(0, 0))

    @property
    def span(self) -> slice:
        """Its positions among all that bend."""
        return slice(self.start, self.stop)

    @property
    def smooth(self) -> bool:
        """Whether it is no (leaky) ReLU, so that its lines depend on more than a slope below."""
        return not isinstance(self.operation, LeakyRelu)


class LinearRows(NamedTuple):
    """Linear functions: ``<r, bent activations> + <x, input> + c``; (n, units), (n, inputs), (n,)."""

    r: Tensor
    x: Tensor
    c: Tensor

    @override
    def __getitem__(self, rows: Tensor) -> LinearRows:  # pyright: ignore[reportIncompatibleMethodOverride]
        return LinearRows(self.r[rows], self.x[rows], self.c[rows])


class Cuts(NamedTuple):
    """Splits on the way to each part, (n, depth): padded with side 0.

    ``unit`` is the position of the activation, whose argument is at least ``point`` (side 1) or at most (side -1).
    """

    unit: Tensor
    side: Tensor
    point: Tensor
    multiplier: Tensor

    def pick(self, rows: Tensor) -> Cuts:
        """The splits of some parts."""
        return Cuts(*(t[rows] for t in self))


class NeuronState(NamedTuple):
    """Parts of the region, and what is optimised for each.

    Attributes:
        low: least arguments of the activations, (n, units).
        high: the largest.
        slope: lower slopes of ReLUs, (n, units).
        alphas: of each layer that is no ReLU what its operation may choose, (n, ..., entries of the layer).
        cuts: with the multipliers.
    """

    low: Tensor
    high: Tensor
    slope: Tensor
    alphas: list[Tensor]
    cuts: Cuts

    def pick(self, rows: Tensor) -> NeuronState:
        """Some of the parts, repeats allowed."""
        alphas = [t[rows] for t in self.alphas]
        return NeuronState(self.low[rows], self.high[rows], self.slope[rows], alphas, self.cuts.pick(rows))

    @classmethod
    def join(cls, states: Sequence[NeuronState]) -> NeuronState:
        """The parts of all, one after another; all have the same number of cuts."""
        low, high, slope, alphas, cuts = zip(*states, strict=True)
        joined = [torch.cat(t) for t in zip(*alphas, strict=True)]
        both = Cuts(*(torch.cat(t) for t in zip(*cuts, strict=True)))
        return cls(torch.cat(low), torch.cat(high), torch.cat(slope), joined, both)

    @property
    def variables(self) -> list[Tensor]:
        """All that is optimised."""
        return [self.slope, self.cuts.multiplier, *self.alphas]

    def replaced(self, variables: list[Tensor]) -> NeuronState:
        """The same parts with other variables."""
        slope, multiplier, *alphas = variables
        return NeuronState(self.low, self.high, slope, alphas, Cuts(*self.cuts[:3], multiplier))


@dataclass(frozen=True, eq=False, kw_only=True)
class Entrance:
    """How linear functions read the input.

    A dense network often has few live neurons in its first layer: then functions read those, the *hub*, and the hub is a
    linear function of the input.

    Attributes:
        region: the inputs, in float32.
        boxed: the region is a box.
        free: (inputs,) int64, the entries of the flattened input that are no points.
        fixed: (features,) the others, with 0 for those that are free.
        centre: (inputs,) of the box around the region.
        radius: (inputs,) likewise.
        hub: (live neurons, ...) if there is one.
    """

    region: Region
    boxed: bool
    free: Tensor
    fixed: Tensor
    centre: Tensor
    radius: Tensor
    hub: LinearRows | None = None

    def minimum(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """The least of ``<a, input>`` for rows (n, inputs), and where: (n,), (n, inputs)."""
        if self.boxed:
            x = torch.where(a > 0, self.centre - self.radius, self.centre + self.radius)
            return (a * x).sum(1), x
        with torch.enable_grad():
            whole = a.unsqueeze(1).requires_grad_()
            value = self.region.minimum(whole.view(len(a), 1, *self.region.x.shape[1:]))[0]
            (x,) = torch.autograd.grad(value.sum(), whole)
        return value.detach().squeeze(1), x.squeeze(1)

    def point(self, x: Tensor) -> Tensor:
        """Inputs of the model (n, \\*features), float64, from their free entries (n, inputs)."""
        whole = self.fixed.repeat(len(x), 1)
        whole[:, self.free] = x.double()
        return whole.view(-1, *self.region.x.shape[1:])

    def direct(self, rows: LinearRows) -> tuple[Any, Any]:
        """The part of linear functions that is of the input and of nothing that bends: arrays (n, inputs), (n,)."""
        x, c = rows.x.double(), rows.c.double()
        if self.hub is not None:
            x, c = x @ self.hub.x.double(), c + x @ self.hub.c.double()
        return x.numpy().copy(), c.numpy().copy()


@dataclass(frozen=True, eq=False, kw_only=True)
class Reduced:
    """A graph over one region, reduced to its bent activations, of which there are ``units``.

    Attributes:
        graph: the graph.
        layers: in topological order.
        ends: (units,) float64, the boxes of their arguments, sound.
        low: least arguments, in float32.
        high: the largest.
        slope: their default lower slopes.
        flat: slopes below 0 of (leaky) ReLUs, NaN for others.
        source: the node that each reads, int64.
        entry: which of its entries.
        rows: the specification.
        values: the arguments of the bent activations.
        entrance: how these read the input.
    """

    graph: Graph
    layers: list[Layer]
    ends: Box
    low: Tensor
    high: Tensor
    slope: Tensor
    flat: Tensor
    source: Tensor
    entry: Tensor
    rows: LinearRows
    values: LinearRows
    entrance: Entrance

    @property
    def units(self) -> int:
        """How many activations bend."""
        return len(self.flat)

    @cached_property
    def smooth(self) -> list[Layer]:
        """The layers that are no ReLUs, in whose order the alphas of a state stand."""
        return [layer for layer in self.layers if layer.smooth and layer.stop > layer.start]

    def activation(self, layer: Layer) -> Node:
        """The node of a layer."""
        return self.graph.nodes[layer.node]

    def state(self, n: int) -> NeuronState:
        """The whole region, n times, with default slopes."""
        empty = self.low.new_zeros(n, 0)
        cuts = Cuts(empty.long(), empty, empty, empty)
        alphas: list[Tensor] = []
        for layer in self.smooth:
            box = Box(self.low[None, layer.span], self.high[None, layer.span])
            lines: Lines = layer.operation.prepare(self.activation(layer), [box])
            alpha = layer.operation.alpha(lines)
            assert alpha is not None
            alphas.append(alpha.detach().repeat(n, *(1,) * (alpha.ndim - 1)))
        return NeuronState(self.low.expand(n, -1), self.high.expand(n, -1), self.slope.repeat(n, 1), alphas, cuts)

    def narrowed(self, layer: Layer, box: Box) -> Reduced:
        """The same with a better box of a layer's arguments, (1, \\*shape)."""
        ends = Box(*(whole.clone() for whole in self.ends))
        low, high, slope = self.low.clone(), self.high.clone(), self.slope.clone()
        for t, new, whole in zip((low, high), box, ends, strict=True):
            whole[layer.span] = new.flatten()[layer.index]
            t[layer.span] = whole[layer.span].float()
        lines: Lines = layer.operation.prepare(self.activation(layer), [box])
        slope[layer.span] = lines.lower_slope.flatten()[layer.index].float()
        return replace(self, ends=ends, low=low, high=high, slope=slope)

    def cut(self, cuts: Cuts) -> Box:
        """Least and largest arguments in each part, (n, units) float64: sound if the boxes were."""
        n, spare = len(cuts.unit), torch.full_like(cuts.unit, self.units)
        low, high = (torch.cat([t, t.new_zeros(1)]).repeat(n, 1) for t in self.ends)
        point = cuts.point.double()
        low.scatter_reduce_(1, torch.where(cuts.side > 0, cuts.unit, spare), point, "amax")
        high.scatter_reduce_(1, torch.where(cuts.side < 0, cuts.unit, spare), point, "amin")
        return Box(low[:, :-1], high[:, :-1])
