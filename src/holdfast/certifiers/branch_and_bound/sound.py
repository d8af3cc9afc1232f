"""The float64 pass that decides: what a search propagation, put to the whole graph with rounding paid for."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.certifiers.branch_and_bound.reduced import Cuts, NeuronState, Reduced
from holdfast.certifiers.propagation.operation import node_size
from holdfast.certifiers.propagation.propagation import Propagation
from holdfast.certifiers.propagation.region import Box, Region, gamma
from holdfast.certifiers.propagation.specification import specification
from holdfast.certifiers.proved import numbers
from holdfast.certifiers.verification.query import Query

__all__ = ["sound_bounds", "sound_units", "spread_slopes"]

_MEMORY = 1 << 26


def sound_bounds(
    propagation: Propagation,
    reduced: Reduced,
    query: Query,
    c: Tensor,
    d: Tensor,
    state: NeuronState,
    chunk: int | None = None,
) -> Tensor:
    """Sound lower bounds of ``C f + d`` over parts of the region.

    Args:
        propagation: of the whole region.
        reduced: what the state refers to.
        query: whose set the region is.
        c: (n, rows, outputs), of each part.
        d: (n, rows).
        state: n times rows of them, those of a part together; the rows of a part have the same cuts.
        chunk: parts at a time.

    Returns:
        (n, rows) float64; what is not a number is -inf.
    """
    n, rows = c.shape[:2]
    sizes = sum(node_size(propagation.graph.nodes[y.node].shape) for y in reduced.layers)
    chunk = chunk or max(_MEMORY // (8 * rows * max(sizes, 1)), 1)
    parts = [
        _sound_chunk(propagation, reduced, query, c[i], d[i], state.pick(_rows_of(i, rows)))
        for i in torch.split(torch.arange(n), chunk)
    ]
    lower = torch.cat(parts) if parts else d
    return numbers(lower)


def _rows_of(parts: Tensor, rows: int) -> Tensor:
    return (parts.unsqueeze(1) * rows + torch.arange(rows)).flatten()


def sound_units(
    propagation: Propagation, reduced: Reduced, query: Query, i: int, index: Tensor, sign: Tensor, state: NeuronState
) -> Tensor:
    """Sound lower bounds of ``sign * entry index of node i``, (n,) float64, one for each part of the region.

    Args:
        propagation: of the whole region.
        reduced: what the state refers to.
        query: whose set the region is.
        i: the node.
        index: (n,), entries of its flattened value.
        sign: (n,), 1 or -1.
        state: of the parts.
    """
    shape = propagation.graph.nodes[i].shape
    size = node_size(shape)
    sizes = sum(node_size(propagation.graph.nodes[y.node].shape) for y in reduced.layers) + size
    ends: list[Tensor] = []
    for part in torch.split(torch.arange(len(index)), max(_MEMORY // (16 * sizes), 1)):
        a = sign.new_zeros(1, len(part), size)
        a[0, torch.arange(len(part)), index[part]] = sign[part]
        own = state.pick(part)
        cut, extra, shift = _cut(propagation, reduced, query, own, len(part), 1)
        slopes = spread_slopes(propagation, reduced, own, len(part), 1, i)
        ends.append((cut.minimum(i, a.view(1, len(part), *shape), slopes, extra=extra).T + shift).squeeze(1))
    return numbers(torch.cat(ends))


def _sound_chunk(
    propagation: Propagation, reduced: Reduced, query: Query, c: Tensor, d: Tensor, state: NeuronState
) -> Tensor:
    n, rows = c.shape[:2]
    cut, extra, shift = _cut(propagation, reduced, query, state, n, rows)
    slopes = spread_slopes(propagation, reduced, state, n, rows, len(propagation.graph.nodes) - 1)
    return specification(cut, c, d, slopes, extra=extra) + shift


def _cut(
    propagation: Propagation, reduced: Reduced, query: Query, state: NeuronState, n: int, rows: int
) -> tuple[Propagation, dict[int, Tensor], Tensor]:
    """The propagation of parts, the coefficients that their multipliers add, and the constants (n, rows), rounded down.

    Multipliers are at least 0 and stand for splits that hold in the part, so what they add is at most 0.
    """
    unit, side, point, multiplier = state.cuts
    cuts = Cuts(unit[::rows], side[::rows], point[::rows], multiplier)
    nodes = propagation.graph.nodes
    boxes: dict[int, Box] = {}
    extra: dict[int, Tensor] = {}
    constant = torch.zeros(n, rows, dtype=torch.float64)
    if cuts.unit.shape[1]:
        ends = reduced.cut(cuts)
        pull = (state.cuts.side.double() * cuts.multiplier.double()).view(n, rows, -1)
        terms = pull * cuts.point.double().unsqueeze(1)
        constant = terms.sum(2) - gamma(terms.shape[2] + 2) * terms.abs().sum(2)
        shift = torch.zeros(n * rows, reduced.units, dtype=torch.float64)
        shift = shift.scatter_add_(1, state.cuts.unit, -pull.flatten(0, 1)).view(n, rows, -1)
        for layer in reduced.layers:
            if not len(layer.index):
                continue
            source, shape = layer.source, nodes[layer.source].shape
            low, high = (t.flatten(1).expand(n, -1).clone() for t in boxes.get(source, propagation.boxes[source]))
            low[:, layer.index] = torch.maximum(low[:, layer.index], ends.lower[:, layer.span])
            high[:, layer.index] = torch.minimum(high[:, layer.index], ends.upper[:, layer.span])
            boxes[source] = Box(low.view(n, *shape), high.view(n, *shape))
            if shift[..., layer.span].any():
                e = shift.new_zeros(rows, n, node_size(shape))
                e[..., layer.index] = shift[..., layer.span].transpose(0, 1)
                e = e.view(rows, n, *shape)
                extra[source] = extra[source] + e if source in extra else e
    region = Region(query.ball.select(torch.zeros(n, dtype=torch.int64)), query.x.expand(n, *query.x.shape[1:]))
    return propagation.parts(region, boxes), extra, constant


def spread_slopes(
    propagation: Propagation, reduced: Reduced, state: NeuronState, n: int, rows: int, i: int
) -> dict[int, Tensor]:
    """The alphas of the rows, spread over whole nodes: node -> (rows, n, ..., \\*shape) float64."""
    slopes: dict[int, Tensor] = {}
    smooth = {y.node: t for y, t in zip(reduced.smooth, state.alphas, strict=True)}
    defaults = propagation.alphas(i)
    for layer in reduced.layers:
        default = defaults.get(layer.node)
        if default is None or not len(layer.index):
            continue
        shape = propagation.graph.nodes[layer.node].shape
        own = smooth.get(layer.node, state.slope[:, layer.span]).double()
        whole = default.flatten(default.ndim - len(shape)).expand(
            rows, n, *default.shape[1 : default.ndim - len(shape)], -1
        )
        whole = whole.clone()
        whole[..., layer.index] = own.view(n, rows, *own.shape[1:]).transpose(0, 1)
        slopes[layer.node] = whole.view(*whole.shape[:-1], *shape)
    return slopes
