"""How far rounding may carry the values of a graph, by stochastic arithmetic (Parker 1997; CADNA).

The graph runs in float64, the truth in its own type. What the truth's arithmetic rounds is found by running the graph again
with each operation's value moved by as much as its rounding may be, gamma_k times the magnitudes that it adds up, by
normal draws. Where a function jumps and rounding decides on which side an argument lies, either value is possible.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from holdfast.graph.model import Graph, Node
from holdfast.graph.operations import OPERATIONS, Rounding, compute

__all__ = ["difference", "differing", "rounded", "values", "work"]

_EXACT = frozenset((Rounding.EXACT, Rounding.STEP, Rounding.LOOK_UP))  # constants are those that the truth has
_FOLDED = 8  # roundings of what the graph does in one operation and the truth in several
_ULPS = 16  # of exp, tanh and the like
_FEW_ULPS = 4
_DRAWS = 4
_SAFETY = 4.0  # times the deviation of the draws, each of which already moves every value as far as it may round


def values(graph: Graph, x: Tensor, *, last: bool = False, upto: int | None = None) -> list[Tensor]:
    """Every node's value for inputs (n, \\*features); ``last`` keeps only what is still read, ``upto`` ends at a node."""
    consumers = graph.consumers()
    found: list[Tensor] = [x]
    for i, node in enumerate(graph.nodes[1 : None if upto is None else upto + 1], 1):
        found.append(compute(node.op, [found[j] for j in node.inputs], node.tensors, node.attributes))
        for j in node.inputs if last else ():
            if consumers[j][-1] == i:
                found[j] = found[j].new_empty(0)
    return found


def difference(found: Tensor, expected: Tensor) -> Tensor:
    """Distances, 0 where both are the same infinity or no number."""
    same = (found == expected) | (found.isnan() & expected.isnan())
    return torch.where(same, 0.0, (found - expected).abs().nan_to_num(torch.inf, torch.inf, torch.inf))


def differing(graph: Graph, dtype: torch.dtype, x: Tensor, given: Sequence[tuple[int, Tensor]]) -> list[int]:
    """Which of the truth's values differ from the graph's by more than rounding.

    Args:
        graph: in float64.
        dtype: the type in which the truth runs.
        x: (1, \\*features), in float64.
        given: a position in the graph and the truth's value there, each.

    Returns:
        Positions in ``given``.
    """
    with torch.no_grad():
        found, spread = rounded(graph, dtype, x)
    highest = float(torch.finfo(dtype).max)
    wrong: list[int] = []
    for k, (i, expected) in enumerate(given):
        expected = expected.to(x.device, torch.float64).reshape(found[i].shape)
        allowed = (_SAFETY * spread[i]).nan_to_num(torch.inf, torch.inf, torch.inf)
        beyond = difference(found[i], expected) > allowed
        # what the type cannot hold, the truth has as an infinity
        beyond &= ~((found[i].abs() > highest / 2) & ~(expected.abs() <= highest))
        if bool(beyond.any()):
            wrong.append(k)
    return wrong


def rounded(graph: Graph, dtype: torch.dtype, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Every node's value for one input, and how far rounding in a type spreads it (the root of the mean square)."""
    generator = torch.Generator().manual_seed(1130)

    def moved(value: Tensor, by: Tensor) -> Tensor:
        return value + torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value) * by

    clean: list[Tensor] = [x]
    noisy: list[Tensor] = [x.repeat(_DRAWS, *(1,) * (x.ndim - 1))]
    floor = float(torch.finfo(dtype).tiny)
    u = torch.finfo(dtype).eps / 2
    for node in graph.nodes[1:]:
        given, turned = [clean[j] for j in node.inputs], [noisy[j] for j in node.inputs]
        clean.append(compute(node.op, given, node.tensors, node.attributes))
        kind = OPERATIONS[node.op].rounding
        if kind is not Rounding.SUM_OF_PRODUCTS and kind not in _EXACT:
            # a few roundings of what goes in: 1 - x, x - max(x), k x of the composite functions
            turned = [moved(t, 4 * u * _reach(node, t)) for t in turned]
        value = compute(node.op, turned, node.tensors, node.attributes)
        if kind not in _EXACT:
            value = moved(value, _rounding(node, given, clean[-1], dtype) + _one_pass(graph, node, clean, u) + floor)
        jump = _jump(node, given, turned, u)
        if jump is not None:
            value = value + jump * (torch.rand(value.shape, generator=generator) < 0.5).to(value).mul(2).sub(1)
        noisy.append(value)
    spread = [
        (n - c).square().mean(0, keepdim=True).sqrt() if n is not c else torch.zeros_like(c)
        for n, c in zip(noisy, clean, strict=True)
    ]
    return clean, spread


def _jump(node: Node, inputs: Sequence[Tensor], noisy: Sequence[Tensor], u: float) -> Tensor | None:
    """How far a value jumps where its argument lies at a jump to within rounding; 0 elsewhere, None where nothing jumps."""
    at = 0.0 if node.op == "sign" else float(node.attributes.get("threshold", math.inf))
    if math.isinf(at):
        return None
    x = inputs[0]
    spread = _SAFETY * (noisy[0] - x).square().mean(0, keepdim=True).sqrt()
    near = (x - at).abs() <= spread + _FEW_ULPS * u * abs(at)
    # a softplus falls by what log(1 + exp(x)) is above x
    return near * (2.0 if node.op == "sign" else math.log1p(math.exp(-at)) if at > -700 else -at)


def _reach(node: Node, value: Tensor) -> Tensor:
    """The magnitude that rounds where a value enters: a softmax takes the largest off all others first."""
    if node.op == "softmax":
        return value.abs().amax(node.attributes["dim"] + 1, keepdim=True)
    return value.abs()


def _rounding(node: Node, inputs: Sequence[Tensor], value: Tensor, dtype: torch.dtype) -> Tensor:
    """How far one operation may be from what it computes, for one input."""
    u = torch.finfo(dtype).eps / 2
    if node.op == "gelu":  # x / 2 (1 + erf(x / sqrt 2)) cancels for negative x
        return _ULPS * u * (value.abs() + inputs[0].abs())
    operation = OPERATIONS[node.op]
    if operation.rounding is not Rounding.SUM_OF_PRODUCTS:
        return _ULPS * u * value.abs() + _FEW_ULPS * u * _inner(node, inputs[0])
    tensors = {k: t.abs() for k, t in node.tensors.items() if k != "size"}
    if "size" in node.tensors:
        key = operation.addend or "bias"
        tensors[key] = node.tensors["size"].to(value).expand_as(tensors[key])
    size = (operation.magnitudes or operation.compute)([t.abs() for t in inputs], tensors, node.attributes)
    # types narrower than float32 are summed in float32 and rounded at the end
    return (_terms(node) + _FOLDED) * min(u, 2.0**-24) * size + (2 * _FOLDED * u * size if u > 2.0**-24 else 0.0)


def _one_pass(graph: Graph, node: Node, clean: Sequence[Tensor], u: float) -> Tensor | float:
    """How far a variance moves that the truth takes as E x^2 - (E x)^2: by what the squares round, however small it is."""
    square = graph.nodes[node.inputs[0]] if node.op == "mean" else None
    if square is None or square.op != "power" or square.attributes["exponent"] != 2:
        return 0.0
    centred = graph.nodes[square.inputs[0]]
    x = clean[centred.inputs[0]] if centred.op in ("linear", "sub") else None
    if x is None or x.shape != clean[node.inputs[0]].shape:
        return 0.0
    return 2 * _FOLDED * u * compute("mean", [x.square()], {}, node.attributes)


def _inner(node: Node, x: Tensor) -> Tensor:
    """The magnitude of what a function takes the difference of, or of the quotient of polynomials that stands for it."""
    if node.op == "elu":
        return (x < 0) * abs(node.attributes["alpha"])
    if node.op in ("silu", "gelu"):
        return x.abs()
    return torch.ones_like(x) if node.op in ("sigmoid", "tanh", "erf", "softplus", "softmax") else torch.zeros_like(x)


def _terms(node: Node) -> int:
    """How many products are added up to one entry, at most."""
    weight = node.tensors.get("weight")
    if weight is None:
        return 2
    return weight.select(OPERATIONS[node.op].channel_dim, 0).numel()


def work(graph: Graph) -> int:
    """Multiplications for one sample."""
    return sum(
        torch.Size(n.shape).numel() * (_terms(n) if "weight" in n.tensors and OPERATIONS[n.op].factor else 1)
        for n in graph.nodes
    )
