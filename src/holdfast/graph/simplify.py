"""Makes a graph smaller without changing what it computes: unused nodes go, affine nodes merge into what feeds them.

Merging is done in float64. The merged weights are then the real network's up to a few units of relative rounding, but
a merged bias is a sum that may cancel; each merged node therefore keeps ``size``, the sum of the magnitudes that were
added, and sound bounds pay for a few units of rounding of it.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from holdfast.graph.model import Graph, Node

__all__ = ["simplify"]


def simplify(graph: Graph, output: int) -> Graph:
    """The graph that ends in the node ``output``, with affine nodes merged and unused nodes gone."""
    nodes = list(graph.nodes)
    consumers = graph.consumers()
    for i, node in enumerate(nodes):
        if node.op != "affine":
            continue
        source = node.inputs[0]
        if len(consumers[source]) == 1 and (merged := _merge(nodes[source], node)):
            nodes[i] = merged
            consumers[merged.inputs[0]] = [i if c == source else c for c in consumers[merged.inputs[0]]]
    return _prune(replace(graph, nodes=tuple(nodes)), output)


def _merge(first: Node, second: Node) -> Node | None:
    """One node for an affine node after a linear one, or None where they do not merge."""
    if first.op == "affine":
        return _merge_into(first, second, "scale", "shift", first.shape)
    if first.op == "linear":
        return _merge_into(first, second, "weight", "bias", first.shape[-1:])
    if first.op == "conv":
        return _merge_into(first, second, "weight", "bias", first.shape[:1])
    return None


def _merge_into(first: Node, second: Node, weight: str, bias: str, channels: tuple[int, ...]) -> Node | None:
    """``(weight, bias)`` of ``first`` followed by ``(scale, shift)`` of ``second``; a bias has shape ``channels``."""

    def per_channel(t: Tensor) -> Tensor | None:
        if first.op == "affine":
            return t
        other = t.shape[:-1] if first.op == "linear" else t.shape[1:]
        if torch.Size(other).numel() != 1:
            return None
        return t.reshape(-1).expand(channels)

    scale, shift = second.tensors.get("scale"), second.tensors.get("shift")
    scale = None if scale is None else per_channel(scale.double())
    shift = None if shift is None else per_channel(shift.double())
    if (scale is None) != ("scale" not in second.tensors) or (shift is None) != ("shift" not in second.tensors):
        return None
    tensors = dict(first.tensors)
    old, size = tensors.get(bias), tensors.get("size")
    if scale is not None:
        if weight not in tensors:
            tensors[weight] = scale
        else:
            by_row = scale if first.op == "affine" else scale.view(-1, *(1,) * (tensors[weight].ndim - 1))
            tensors[weight] = tensors[weight].double() * by_row
    if old is None and shift is None:
        return replace(first, tensors=tensors, shape=second.shape)
    size = old.double().abs() if size is None and old is not None else size
    factor = torch.ones((), dtype=torch.float64) if scale is None else scale
    parts = [t for t in (None if old is None else old.double() * factor, shift) if t is not None]
    sizes = [
        t
        for t in (None if size is None else size * factor.abs(), None if shift is None else shift.abs())
        if t is not None
    ]
    tensors[bias] = sum(parts[1:], parts[0])
    tensors["size"] = sum(sizes[1:], sizes[0])
    return replace(first, tensors=tensors, shape=second.shape)


def _prune(graph: Graph, output: int) -> Graph:
    """Only the nodes that the output needs; the output last."""
    needed = {output}
    for i in range(output, -1, -1):
        if i in needed:
            needed.update(graph.nodes[i].inputs)
    order = sorted(needed | {0})
    place = {old: new for new, old in enumerate(order)}
    nodes = (replace(graph.nodes[i], inputs=tuple(place[j] for j in graph.nodes[i].inputs)) for i in order)
    return replace(graph, nodes=tuple(nodes))
