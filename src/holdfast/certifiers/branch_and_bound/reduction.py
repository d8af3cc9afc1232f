"""Reduces a graph to its bent activations: everything linear between them is multiplied out."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.certifiers.branch_and_bound.reduced import Entrance, Layer, LinearRows, Reduced
from holdfast.certifiers.propagation.operation import node_size
from holdfast.certifiers.propagation.operations.activations import LeakyRelu, Lines
from holdfast.certifiers.propagation.propagation import Propagation
from holdfast.certifiers.propagation.region import Box, Region
from holdfast.certifiers.verification.query import Query
from holdfast.core.errors import UnsupportedError
from holdfast.core.threat import Norm

__all__ = ["reduce"]

_CHUNK = 1 << 26


def reduce(propagation: Propagation, query: Query, memory: int) -> Reduced:
    """The graph of a propagation, reduced over its region.

    Args:
        propagation: of one sample, over the query's set; it has run.
        query: its rows are the specification.
        memory: bytes that the maps may take.

    Raises:
        UnsupportedError: a nonlinear operation that is no activation of single entries, or maps that are too large.
    """
    pieces = _Pieces(propagation=propagation)
    for k, op in enumerate(propagation.operations):
        if op is not None and not op.linear:
            pieces.add(k)
    entrance = _entrance(propagation, Region(query.ball, query.x, torch.float32))
    units, rows = pieces.units, len(query.c)
    if 4 * (units + rows) * (units + len(entrance.free)) > memory:
        raise UnsupportedError(f"{units} bent activations of {len(entrance.free)} inputs need more memory than given")
    maps = _Maps(propagation=propagation, pieces=pieces, entrance=entrance, columns=entrance.free)
    index = _hub(maps, rows)
    if index is not None:
        source = pieces.layers[0].source
        hub = maps.of(source, maps.unit(source, index))
        maps = replace(maps, entrance=replace(entrance, hub=hub), hub=source, columns=index)
    c = query.c.to(entrance.fixed).view(rows, 1, *propagation.graph.output_shape)
    outputs = maps.of(len(propagation.graph.nodes) - 1, c)
    specification = outputs._replace(c=outputs.c + query.d.to(outputs.c))
    parts = [LinearRows(*(t[:0] for t in specification)), *(maps.arguments(layer) for layer in pieces.layers)]
    values = LinearRows(*(torch.cat(t) for t in zip(*parts, strict=True)))
    none = entrance.fixed.new_zeros(0)
    low, high, slope, flat = (torch.cat([*t, none]) for t in (pieces.low, pieces.high, pieces.slope, pieces.flat))
    return Reduced(
        graph=propagation.graph,
        layers=[replace(layer, before=_before(layer, values)) for layer in pieces.layers],
        ends=Box(low, high),
        low=low.float(),
        high=high.float(),
        slope=slope.float(),
        flat=flat.float(),
        source=torch.cat([torch.full_like(y.index, y.source) for y in pieces.layers] + [none.long()]),
        entry=torch.cat([*(y.index for y in pieces.layers), none.long()]),
        rows=specification,
        values=values,
        entrance=maps.entrance,
    )


class _Stable(NamedTuple):
    """What an activation does to entries that do not bend: ``slope z + intercept``, both 0 where one does."""

    slope: Tensor
    intercept: Tensor
    layer: Layer


@dataclass(eq=False, kw_only=True)
class _Pieces:
    """The activations of a graph, entry by entry: those that bend, and what the others do."""

    propagation: Propagation
    layers: list[Layer] = field(default_factory=list[Layer])
    stable: dict[int, _Stable] = field(default_factory=dict[int, _Stable])
    low: list[Tensor] = field(default_factory=list[Tensor])
    high: list[Tensor] = field(default_factory=list[Tensor])
    slope: list[Tensor] = field(default_factory=list[Tensor])
    flat: list[Tensor] = field(default_factory=list[Tensor])

    @property
    def units(self) -> int:
        return self.layers[-1].stop if self.layers else 0

    def add(self, k: int) -> None:
        """Takes in node ``k``, which is not linear."""
        propagation = self.propagation
        node, op = propagation.graph.nodes[k], propagation.operations[k]
        assert op is not None
        source = node.inputs[0]
        box = propagation.boxes[source]
        lines = op.prepare(node, [propagation.boxes[j] for j in node.inputs]) if op.elementwise else None
        if not isinstance(lines, Lines) or len(node.inputs) > 1:
            raise UnsupportedError(f"neurons are split at activations of one argument; '{node.op}' is none")
        unstable = op.unstable(node, box)
        bent = (torch.ones_like(box.lower, dtype=torch.bool) if unstable is None else unstable).flatten()
        index = bent.nonzero().squeeze(1)
        start = self.units
        layer = Layer(node=k, source=source, index=index, start=start, stop=start + len(index), operation=op)
        self.layers.append(layer)
        rest = lines.upper_slope.masked_fill(bent.view_as(lines.upper_slope), 0.0)
        self.stable[k] = _Stable(rest, lines.upper_intercept.masked_fill(bent.view_as(rest), 0.0), layer)
        self.low.append(box.lower.flatten()[index])
        self.high.append(box.upper.flatten()[index])
        self.slope.append(lines.lower_slope.flatten()[index])
        kink = float(node.attributes.get("slope", 0.0)) if isinstance(op, LeakyRelu) else torch.nan
        self.flat.append(torch.full_like(self.low[-1], kink))


def _entrance(propagation: Propagation, region: Region) -> Entrance:
    box = propagation.boxes[0]
    boxed = region.norm is Norm.LINF and region.independent
    # an input that is a point is a constant
    free = box.upper > box.lower if boxed else torch.ones_like(box.lower, dtype=torch.bool)
    index = free.flatten().nonzero().squeeze(1)
    centre = ((box.lower + box.upper) / 2).flatten()[index]
    return Entrance(
        region=region,
        boxed=boxed,
        free=index,
        fixed=torch.where(free, 0.0, box.lower).flatten(),
        centre=centre.float(),
        radius=(box.upper.flatten()[index] - centre).float(),
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class _Maps:
    """Values of the graph as linear functions of bent activations and of the input, or of a hub behind it.

    Attributes:
        propagation: of the whole region.
        pieces: its activations.
        entrance: of the input.
        columns: the entries of the input, or of the hub, that functions read.
        hub: the node of the hub, if there is one.
    """

    propagation: Propagation
    pieces: _Pieces
    entrance: Entrance
    columns: Tensor
    hub: int | None = None

    def unit(self, i: int, index: Tensor) -> Tensor:
        """Coefficients (entries, 1, \\*shape) of single entries of node ``i``."""
        shape = self.propagation.graph.nodes[i].shape
        unit = self.entrance.fixed.new_zeros(len(index), node_size(shape)).scatter_(1, index.unsqueeze(1), 1.0)
        return unit.view(-1, 1, *shape)

    def arguments(self, layer: Layer) -> LinearRows:
        """The arguments of a layer's activations."""
        largest = max(node_size(n.shape) for n in self.propagation.graph.nodes)
        parts = [
            self.of(layer.source, self.unit(layer.source, chosen))
            for chosen in (torch.split(layer.index, max(_CHUNK // (8 * largest), 1)) if len(layer.index) else ())
        ]
        if not parts:
            shapes = ((self.pieces.units,), (len(self.columns),), ())
            return LinearRows(*(self.entrance.centre.new_zeros(0, *shape) for shape in shapes))
        return LinearRows(*(torch.cat(t) for t in zip(*parts, strict=True)))

    def of(self, i: int, a: Tensor) -> LinearRows:
        """``<a, value of node i>`` in terms of bent activations and input; float32, and not sound."""
        nodes, boxes, pending = self.propagation.graph.nodes, self.propagation.boxes, {i: a}
        constant, centre = a.new_zeros(len(a)), self.entrance.centre
        r, x = centre.new_zeros(len(a), self.pieces.units), centre.new_zeros(len(a), len(self.columns))
        if not len(a):  # a layer in which nothing is live
            return LinearRows(r, x, constant.float())
        for k in range(i, -1, -1):
            if k not in pending:
                continue
            a, node, op = pending.pop(k), nodes[k], self.propagation.operations[k]
            if k == self.hub or op is None:
                flat = a.flatten(1)
                constant = constant if k == self.hub else constant + flat @ self.entrance.fixed
                x = flat[:, self.columns].float()
                continue
            if k in self.pieces.stable:
                stable = self.pieces.stable[k]
                flat = a.flatten(1)
                r[:, stable.layer.span] = flat[:, stable.layer.index].float()
                constant = constant + flat @ stable.intercept.flatten()
                pulled = [a * stable.slope]
            else:
                pulled, more = op.pull(node, a, op.prepare(node, [boxes[j] for j in node.inputs]))
                constant = constant if more is None else constant + more.squeeze(1)
            for j, part in zip(node.inputs, pulled, strict=True):
                pending[j] = pending[j] + part if j in pending else part
        return LinearRows(r, x, constant.float())


def _hub(maps: _Maps, rows: int) -> Tensor | None:
    """The live entries of the first activation's argument, if that is what all else reads and they are few.

    Then these are the space to work in, and not the inputs.
    """
    propagation, pieces, graph = maps.propagation, maps.pieces, maps.propagation.graph
    if not pieces.layers:
        return None
    first = pieces.layers[0]
    before = set(range(first.source))
    entry = any(j in before for i, node in enumerate(graph.nodes) if i > first.source for j in node.inputs)
    if entry or not propagation.affine_in_input(first.source):
        return None
    live = pieces.stable[first.node].slope.flatten() != 0
    live[first.index] = True
    if sum(first.source in node.inputs for node in graph.nodes) > 1:
        live = torch.ones_like(live)
    count, inputs = int(live.sum()), len(maps.columns)
    if count * (inputs + pieces.units + rows) >= (pieces.units + rows) * inputs:
        return None
    return live.nonzero().squeeze(1)


def _before(layer: Layer, values: LinearRows) -> slice:
    used = values.r[layer.span, : layer.start].any(0).nonzero()
    return slice(int(used[0]) if len(used) else layer.start, layer.start)
