"""Makes a graph smaller without changing what it computes.

Chains of reshapes, permutes and selects become one node or none, GELU and SiLU that an exporter wrote out become one
node again, affine nodes move in front of permutes and merge into what feeds them, and unused nodes go.

Merging is done in float64. The merged weights are then the real network's up to a few units of relative rounding, but
a merged bias is a sum that may cancel; each merged node therefore keeps ``size``, the sum of the magnitudes that were
added, and sound bounds pay for a few units of rounding of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from holdfast.graph.model import Graph, Node

__all__ = ["lifted", "simplify", "written"]


def simplify(graph: Graph, output: int) -> Graph:
    """The graph that ends in the node ``output``, smaller."""
    graph = _prune(graph, output)
    for rewrite in (_tidied, _recognised, _swapped, _tidied):
        graph = _rewritten(graph, rewrite)
    nodes = list(graph.nodes)
    consumers = graph.consumers()
    for i, node in enumerate(nodes):
        if node.op != "affine":
            continue
        source = node.inputs[0]
        if len(consumers[source]) == 1 and (merged := _merge(nodes[source], node)):
            nodes[i] = merged
            consumers[merged.inputs[0]] = [i if c == source else c for c in consumers[merged.inputs[0]]]
    return _rewritten(_prune(replace(graph, nodes=tuple(nodes)), len(nodes) - 1), _tidied)


def lifted(graph: Graph) -> Graph:
    """The graph with every single number a vector of one: what bounds and attacks do to features needs a dimension."""
    nodes: list[Node] = []
    place: list[int] = []
    for node in graph.nodes:
        node = replace(node, inputs=tuple(place[j] for j in node.inputs))
        if node.op == "permute" and not node.shape:
            place.append(node.inputs[0])
            continue
        shape = node.shape or (1,)
        if node.op == "embedding" and len(nodes[node.inputs[0]].shape) == len(node.shape):
            nodes.append(replace(node, shape=(1, *node.shape)))
            node = Node(op="reshape", inputs=(len(nodes) - 1,), shape=node.shape, attributes={"shape": node.shape})
        attributes = {"shape": shape} if node.op == "reshape" else node.attributes
        nodes.append(replace(node, shape=shape, attributes=attributes))
        place.append(len(nodes) - 1)
    return replace(graph, nodes=tuple(nodes))


def written(graph: Graph, output: int) -> Graph:
    """The graph that ends in the node ``output`` as the model has it: only what moves entries is put together."""
    return _rewritten(_prune(graph, output), _tidied)


# A rewriting rule takes a node, whose inputs are positions among the nodes so far, those nodes and how often each is
# read; it returns the node itself, other nodes for it (the last is its value), or the position of an equal value.
_Rule = Callable[[Node, list[Node], list[int]], "Node | list[Node] | int"]


def _rewritten(graph: Graph, rule: _Rule) -> Graph:
    """One pass of a rule from the input to the output."""
    nodes: list[Node] = []
    reads: list[int] = []
    place: list[int] = []
    counts = [len(c) for c in graph.consumers()]
    for i, old in enumerate(graph.nodes):
        found = rule(replace(old, inputs=tuple(place[j] for j in old.inputs)), nodes, reads)
        if isinstance(found, int):
            place.append(found)
            reads[found] += counts[i]
            continue
        for node in found if isinstance(found, list) else [found]:
            nodes.append(node)
            reads.append(1)
        reads[-1] = counts[i]
        place.append(len(nodes) - 1)
    return _prune(replace(graph, nodes=tuple(nodes)), place[-1])


def _tidied(node: Node, nodes: list[Node], reads: list[int]) -> Node | int:
    """Reshapes, permutes and selects after one of their kind, and nodes that change nothing."""
    if len(node.inputs) != 1:
        return node
    source = nodes[node.inputs[0]]
    if node.op == "permute":
        dims = tuple(node.attributes["dims"])
        if source.op == "permute":
            dims = tuple(source.attributes["dims"][d] for d in dims)
            node = replace(node, inputs=source.inputs, attributes={"dims": dims})
            source = nodes[source.inputs[0]]
        moved = [d for d in dims if source.shape[d] != 1]
        if moved == sorted(moved):  # only dimensions of size 1 move
            node = replace(node, op="reshape", attributes={"shape": node.shape})
    if node.op == "reshape":
        if source.op == "reshape":
            node = replace(node, inputs=source.inputs)
            source = nodes[source.inputs[0]]
        return node.inputs[0] if source.shape == node.shape else node
    if node.op == "select":
        index = node.tensors["index"]
        dim: int = node.attributes["dim"]
        if source.op == "select" and source.attributes["dim"] == dim:
            index = source.tensors["index"][index]
            node = replace(node, inputs=source.inputs, tensors={"index": index})
            source = nodes[source.inputs[0]]
        same = torch.equal(index.cpu(), torch.arange(source.shape[dim]))
        return node.inputs[0] if same else node
    if node.op == "affine" and "shift" not in node.tensors:
        scale = node.tensors["scale"]  # one that is trained may move away from 1
        return node.inputs[0] if not scale.requires_grad and bool((scale == 1).all()) else node
    return node


def _swapped(node: Node, nodes: list[Node], reads: list[int]) -> Node | list[Node]:
    """An affine node in front of the permute that feeds it, where permutes may then meet and it may merge."""
    if node.op != "affine" or nodes[node.inputs[0]].op != "permute" or reads[node.inputs[0]] != 1:
        return node
    permute = nodes[node.inputs[0]]
    dims = permute.attributes["dims"]
    back = [dims.index(d) for d in range(len(dims))]
    tensors = {k: t if t.ndim < len(dims) else t.permute(back) for k, t in node.tensors.items()}
    shape = nodes[permute.inputs[0]].shape
    affine = replace(node, inputs=permute.inputs, tensors=tensors, shape=shape)
    return [affine, replace(permute, inputs=(len(nodes),))]


def _recognised(node: Node, nodes: list[Node], reads: list[int]) -> Node | list[Node]:
    """The products ``x * sigmoid(k x)`` and ``x * (1 + erf(k x))`` as a SiLU and a GELU, for any k and scale."""
    if node.op != "mul":
        return node
    for value, gate in (node.inputs, node.inputs[::-1]):
        factor, x = _scaled(value, nodes)
        lift, inner = _gate(gate, nodes)
        if inner is None or nodes[inner].op not in ("sigmoid", "erf"):
            continue
        rate, y = _scaled(nodes[inner].inputs[0], nodes)
        if x != y or not rate:
            continue
        if nodes[inner].op == "sigmoid" and lift[1] == 0:
            op, inside, outside, attributes = "silu", rate, factor * lift[0] / rate, {}
        elif nodes[inner].op == "erf" and lift[0] == lift[1]:
            # x (1 + erf(k x)) / 2 = gelu(c x) / c with c = k sqrt(2), whatever k was rounded to
            inside = rate * math.sqrt(2)
            inside = 1.0 if abs(inside - 1) < 1e-15 else inside
            op, outside, attributes = "gelu", 2 * factor * lift[0] / inside, {"approximate": "none"}
        else:
            continue
        found: list[Node] = []
        for kind, value, held in (("affine", inside, {}), (op, 0.0, attributes), ("affine", outside, {})):
            if kind != "affine" or value != 1:
                source = len(nodes) + len(found) - 1 if found else x
                scale = torch.full((1,) * len(node.shape), value, dtype=torch.float64)
                tensors = {"scale": scale} if kind == "affine" else {}
                found.append(
                    Node(op=kind, inputs=(source,), shape=node.shape, tensors=tensors, attributes=held, origin="folded")
                )
        return found
    return node


def _plain(node: Node) -> bool:
    """Whether its constants are numbers that nobody trains."""
    return all(t.numel() == 1 and not t.requires_grad for t in node.tensors.values())


def _scaled(i: int, nodes: list[Node]) -> tuple[float, int]:
    """A value as a number times another value."""
    factor = 1.0
    while nodes[i].op == "affine" and "shift" not in nodes[i].tensors and _plain(nodes[i]):
        factor *= float(nodes[i].tensors["scale"])
        i = nodes[i].inputs[0]
    return factor, i


def _gate(i: int, nodes: list[Node]) -> tuple[tuple[float, float], int | None]:
    """A value as ``scale * other + shift`` with numbers."""
    scale, shift = 1.0, 0.0
    while nodes[i].op == "affine":
        tensors = nodes[i].tensors
        if not _plain(nodes[i]):
            return (0.0, 0.0), None
        shift += scale * float(tensors["shift"]) if "shift" in tensors else 0.0
        scale *= float(tensors["scale"]) if "scale" in tensors else 1.0
        i = nodes[i].inputs[0]
    return (scale, shift), i


def _merge(first: Node, second: Node) -> Node | None:
    """One node for an affine node after a linear one, or None where they do not merge."""
    if first.op == "affine":
        return _merge_into(first, second, "scale", "shift", first.shape)
    if first.op == "linear":
        return _merge_into(first, second, "weight", "bias", first.shape[-1:])
    if first.op == "conv" or (first.op == "conv_transpose" and first.attributes["groups"] == 1):
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
            spread = (1,) * (tensors[weight].ndim - 1)
            row = (1, -1, *spread[1:]) if first.op == "conv_transpose" else (-1, *spread)
            by_row = scale if first.op == "affine" else scale.view(row)
            tensors[weight] = tensors[weight].double() * by_row
    if old is None and shift is None:
        return replace(first, tensors=tensors, shape=second.shape, origin="folded")
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
    return replace(first, tensors=tensors, shape=second.shape, origin="folded")


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
