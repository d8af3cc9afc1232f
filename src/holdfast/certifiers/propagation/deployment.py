"""What a network's own arithmetic may add to each value: bounds on the network as it runs, not as it is written.

A deployed layer computes ``W' x + b' + e``: its weights, too, are rounded to the type that runs. Counted are

- roundings of k products in any order, with or without fused multiply-adds, each to the type itself or to a finer one:
  at most k u times the sum of the magnitudes (Jeannerod & Rump 2013, Improved error bounds for inner products in
  floating-point arithmetic; u is the unit roundoff). float16 may thus be summed in float16, as some processors do;
  bfloat16 is summed in float32, as they all do, with up to four partial sums in bfloat16 (split sums; transposed
  convolutions, which PyTorch adds up in the type itself, with all);
- underflow, gradual or flushed to zero, of constants, values, products and sums: as many times the smallest normal
  number as there are of them, and values below it as they stand;
- overflow: where partial sums may pass the largest number of the type, in some order, nothing is known of the value;
- the rounding of the input itself, for which the graph has a node of its own;
- each step of the model: `holdfast.graph.model.Graph` gives the nodes as written, no chain folded into one.

What is assumed: no algorithm that changes the products (Winograd, FFT) and no products narrower than the type (TF32).
Operations of which none of this is known are refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from holdfast.certifiers.propagation.function_errors import LOSSES, function_error
from holdfast.certifiers.propagation.operation import Operation, node_size
from holdfast.certifiers.propagation.region import Box
from holdfast.core.errors import UnsupportedError
from holdfast.graph.model import Graph, Node
from holdfast.graph.operations import OPERATIONS, Rounding
from holdfast.graph.stepwise import STEPWISE

__all__ = ["check_runs", "roundoff", "run_error", "tie", "weight_error"]

_SLOP = 1.01  # one percent pays for the rounding of this very computation, and for products of errors
_SOFT = 64  # units by which two logits must differ so that a softmax tells them apart, see `tie`

_DIVISIONS = frozenset(("div", "Div"))


def roundoff(dtype: torch.dtype) -> float:
    """Unit roundoff of a floating-point type.

    Example:
        >>> roundoff(torch.float32) == 2.0**-24
        True
    """
    return torch.finfo(dtype).eps / 2


def check_runs(graph: Graph) -> None:
    """Holds that it is known how each operation of a deployed graph rounds.

    Raises:
        UnsupportedError: the message names the operation.
    """
    kind = str(graph.deployed).removeprefix("torch.")
    for node in graph.nodes[1:]:
        operation = OPERATIONS.get(node.op)
        if operation is not None and operation.rounding is Rounding.EXACT:
            continue
        if node.origin == "folded":
            raise UnsupportedError(
                f"'{node.op}' stands for a chain of operations, and how each of them rounds in {kind} is not known; read "
                "the graph from the model anew, or leave --deployed out"
            )
        if operation is None or operation.rounding is Rounding.UNKNOWN or node.origin not in STEPWISE:
            raise UnsupportedError(
                f"it is not known how '{node.origin or node.op}' rounds when it runs in {kind}; leave --deployed out to "
                "certify the model in real numbers"
            )
    if graph.written is not None and graph.written.computed:
        raise UnsupportedError(
            f"the model computes constants of its own with '{graph.written.computed[0]}' each time that it runs, and what "
            f"becomes of them in {kind} is not known; store their values in the model, or leave --deployed out"
        )


def tie(graph: Graph) -> float:
    """By how much a score must exceed another so that the deployed model's decision, by its output, is for it.

    Numbers below the smallest normal one may compare as equal where they are flushed. After a softmax, which runs as
    ``exp(x - max x) / sum`` (exp within 16 u relative, quotient and difference within 2 u, the sum the same for all),
    two probabilities are told apart if their logits differ by 64 u: the larger is that of ``exp(0) = 1``.

    Args:
        graph: the model with its softmax, if it ends in one.
    """
    if graph.deployed is None:
        return 0.0
    least = 2 * torch.finfo(graph.deployed).tiny
    last = graph.nodes[-1]
    if last.op != "softmax":
        return least
    if last.shape[last.attributes["dim"]] * least > 0.5:  # the largest of them may underflow
        return torch.inf
    return _SOFT * roundoff(graph.deployed) + least


def run_error(
    node: Node, op: Operation, inputs: Sequence[Box], shapes: Sequence[tuple[int, ...]], output: Box, dtype: torch.dtype
) -> Tensor | None:
    """How far a value may be from what its node computes on the values that it is given; None: exact.

    Args:
        node: the node.
        op: its entry in the table.
        inputs: boxes of its inputs, as they run.
        shapes: their shapes.
        output: a box of its value in exact arithmetic on those.
        dtype: the type in which the network runs.

    Returns:
        (n, \\*shape) or what broadcasts to it, infinite where nothing is known: what may overflow.

    Raises:
        UnsupportedError: nothing is known about how the operation rounds.
    """
    operation = OPERATIONS[node.op]
    if operation.rounding is Rounding.EXACT:
        return None
    if node.origin == "input":
        error, size = roundoff(dtype) * inputs[0].magnitude + torch.finfo(dtype).tiny, inputs[0].magnitude
    elif operation.rounding is Rounding.LOOK_UP:
        error, size = roundoff(dtype) * output.magnitude + torch.finfo(dtype).tiny, output.magnitude
    elif operation.factor is not None:
        error, size = _layer(node, op, inputs, shapes, dtype)
    elif operation.rounding is Rounding.SUM_OF_PRODUCTS and node.op not in LOSSES:
        error, size = _sum(node, inputs, shapes, dtype)
    else:
        error, size = function_error(node, inputs[0], output, dtype), output.magnitude
    return torch.where(
        _SLOP * size + error <= torch.finfo(dtype).max, error, torch.inf
    )  # of NaN nothing is known either


def _layer(
    node: Node, op: Operation, inputs: Sequence[Box], shapes: Sequence[tuple[int, ...]], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The error of ``W x + b`` with constants of the type, and what its partial sums stay below."""
    operation = OPERATIONS[node.op]
    tiny, terms = torch.finfo(dtype).tiny, operation.products(shapes, node.tensors, node.attributes)
    weight, bias = str(operation.factor), str(operation.addend)
    tensors = {k: t.detach() for k, t in node.tensors.items() if k != "size"}
    moved = {k: _stored(t, dtype) for k, t in tensors.items()}
    held = inputs[0]
    reach = held.magnitude
    if "variance" in node.attributes and weight in tensors:
        moved[weight] = moved[weight] + _scale_error(node, tensors[weight], dtype).to(moved[weight])
    elif node.origin in _DIVISIONS and weight in tensors:
        moved[weight] = moved[weight] + _inverse_error(tensors[weight], dtype).to(moved[weight])
    largest = {k: t.abs() + moved[k] for k, t in tensors.items()}

    def sized(magnitude: Tensor, constants: dict[str, Tensor]) -> Tensor:
        plain = {k: t for k, t in constants.items() if k in (weight, bias)}
        found = op.size(replace(node, tensors=plain), [Box(-magnitude, magnitude)], held)
        assert found is not None
        return found

    # each term: its roundings, its constant's own, and its value if that is flushed; then all underflows together
    c = _roundings(node, terms, dtype)
    constant = {bias: c * largest[bias] + moved[bias]} if bias in tensors else {}
    factor = {weight: largest[weight]} if weight in tensors else {}
    error = sized(c * reach + reach.clamp(max=tiny), factor | constant)
    if weight in tensors:
        error = error + sized(reach, {weight: moved[weight]})
    size = sized(reach, largest)
    if "mean" in node.attributes:  # it may also run as ``x scale + (shift - mean scale)``
        mean = node.attributes["mean"].to(reach).abs() * 2 * largest.get(weight, torch.ones_like(reach))
        size = size + mean
        error = error + c * mean
    if "pool" in node.origin.lower():  # sums first, and then divides
        size = size * terms
    return _SLOP * error + (2 * terms + 4) * tiny, size


def _sum(
    node: Node, inputs: Sequence[Box], shapes: Sequence[tuple[int, ...]], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The error of sums of values and of products of two, and what their partial sums stay below."""
    operation, a = OPERATIONS[node.op], node.attributes
    if node.tensors or not (operation.linear or len(inputs) == 2):
        raise UnsupportedError(
            f"it is not known how '{node.op}' rounds when it runs in {str(dtype).removeprefix('torch.')}: sums of products are "
            "those of two values, or of a layer whose definition names its factor and addend; leave --deployed out"
        )
    tiny, terms = torch.finfo(dtype).tiny, operation.products(shapes, node.tensors, a)
    magnitudes = [box.magnitude for box in inputs]
    small = [m.clamp(max=tiny) for m in magnitudes]
    added = operation.magnitudes or operation.compute
    size = added(magnitudes, {}, a)
    if operation.linear:
        flushed = added(small, {}, a)
    else:  # a factor is flushed, and the other one is what it may be
        flushed = added([small[0], magnitudes[1]], {}, a) + added([magnitudes[0], small[1]], {}, a)
    error = _SLOP * (_roundings(node, terms, dtype) * size + flushed) + (2 * terms + 4) * tiny
    return error, size * terms if node.op == "mean" else size


def _roundings(node: Node, terms: int, dtype: torch.dtype) -> float:
    """The error of a sum, relative to the sum of its terms' magnitudes, with four roundings for all that is done once."""
    u = roundoff(dtype)
    if dtype is torch.bfloat16 and not OPERATIONS[node.op].sums_in_type:
        return terms * roundoff(torch.float32) + 6 * u
    return (terms + 4) * u


def _stored(t: Tensor, dtype: torch.dtype) -> Tensor:
    """How far each entry of a constant moves when it is stored in a type; one that may be flushed to zero, wholly."""
    held = t.to(dtype).double()
    moved = (held - t.double()).abs()
    moved = torch.where(held.abs() < torch.finfo(dtype).tiny, torch.maximum(moved, t.double().abs()), moved)
    return torch.where(held.isfinite(), moved, torch.inf).to(t.dtype)


def _inverse_error(inverse: Tensor, dtype: torch.dtype) -> Tensor:
    """How far the inverse of a constant moves when the constant is stored in a type."""
    divisor = 1 / inverse.double()
    moved = _stored(divisor, dtype)
    found = inverse.double().abs() * moved / (divisor.abs() - moved) + 2 * roundoff(dtype) * inverse.double().abs()
    found = torch.where(moved < divisor.abs() / 2, found, torch.inf)
    # beyond the type's largest number the divisor is infinite, and nothing is left of the quotient
    return torch.where(divisor.abs() > torch.finfo(dtype).max, inverse.double().abs(), found)


def _scale_error(node: Node, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """How far ``weight / sqrt(variance + eps)`` moves when all three are stored in a type."""
    variance, eps = (
        node.attributes["variance"].double(),
        torch.tensor(float(node.attributes["eps"]), dtype=torch.float64),
    )
    whole = variance + eps.to(variance.device)
    moved = (_stored(variance, dtype) + _stored(eps, dtype).to(variance.device)) / whole
    relative = (1 - moved).clamp(min=1e-6).rsqrt() - 1 + 12 * roundoff(dtype)
    root, size = whole.sqrt(), scale.double().abs()
    return torch.where(moved < 0.99, relative * size + 1.01 * _stored(size * root, dtype) / root, torch.inf)


def weight_error(node: Node, op: Operation, inputs: Sequence[Box], output: Box) -> Tensor:
    """How far a value may move when the node's tensors move within their tolerance, (n, \\*shape).

    For ``W x + b`` that is ``T |x| + t``: exact where x is a point, since the rows of W move independently (Weng et al.
    2020, section 3). Differentiable.

    Raises:
        UnsupportedError: not a linear operation.
    """
    size = op.size(replace(node, tensors=node.tolerance), inputs, output) if op.linear else None
    if size is None:
        raise UnsupportedError(f"'{node.op}' has no weights that could have a tolerance")
    return size.expand_as(output.lower) * (1 + 1e-12 * node_size(size.shape[1:]))
