"""What a network's own arithmetic may add to each value: bounds on the network as it runs, not as it is written.

A deployed layer computes ``W x + b + e``. In a type with unit roundoff u the error of a sum of k products is at most
gamma_k(u) = k u / (1 - k u) times the sum of their magnitudes in any order of summation, with or without fused
multiply-adds (Higham 2002, section 3.1), so the bounds hold for every such kernel. What is assumed of them:

- no algorithm that changes the products (Winograd, FFT), no reduced products (TF32), no flush of numbers above 1e-30;
- types narrower than float32 are summed in float32; weights, inner and final results are rounded once each;
- exp, tanh and the like are within 8 units in the last place.

Set-up arithmetic that was folded (a batch norm's scale and shift) takes part with 16 more roundings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from holdfast.certify.bounds._operation import Operation, node_size
from holdfast.certify.bounds._region import Box
from holdfast.core.errors import UnsupportedError
from holdfast.graph.model import Node

__all__ = ["roundoff", "run_error", "weight_error"]

_EXACT = frozenset(
    ("relu", "reshape", "permute", "select", "pad", "concat", "max_pool", "abs", "sign", "constant", "embedding")
)
_PRODUCTS = frozenset(
    ("affine", "add", "sub", "mul", "leaky_relu", "linear", "conv", "conv_transpose", "mean", "matmul")
)
_FOLDED = 16
_ULPS = 8
_HIDDEN = 1e-30  # more than what underflow hides in float32 and bfloat16


def roundoff(dtype: torch.dtype) -> float:
    """Unit roundoff of a floating-point type.

    Example:
        >>> roundoff(torch.float32) == 2.0**-24
        True
    """
    return torch.finfo(dtype).eps / 2


def run_error(
    node: Node, op: Operation, inputs: Sequence[Box], shapes: Sequence[tuple[int, ...]], output: Box, dtype: torch.dtype
) -> Tensor | None:
    """How far a value may be from what its node computes on the values that it is given, (n, \\*shape); None: exact.

    Args:
        node: the node.
        op: its entry in the table.
        inputs: boxes of its inputs.
        shapes: their shapes.
        output: a box of its value in exact arithmetic.
        dtype: the type in which the network runs.

    Raises:
        UnsupportedError: nothing is known about how the operation rounds, or a sum is too long for the type.
    """
    if node.op in _EXACT:
        return None
    u, accumulated = roundoff(dtype), min(roundoff(dtype), roundoff(torch.float32))
    if node.op not in _PRODUCTS:
        if len(inputs) > 1 or not op.separate:
            raise UnsupportedError(f"it is not known how '{node.op}' rounds when it runs in {dtype}")
        return 2 * _ULPS * u * output.magnitude + _HIDDEN
    terms = _terms(node, shapes) + _FOLDED
    if terms * accumulated >= 0.5:
        raise UnsupportedError(f"'{node.op}' sums {terms} terms: too many for the rounding of {dtype} to be bounded")
    size = op.size(node, inputs, output)
    size = output.magnitude if size is None else size
    # one percent pays for the rounding of this very computation
    error = 1.01 * terms * accumulated / (1 - terms * accumulated) * size
    if u > accumulated:
        error = error + 2.02 * u * (size + output.magnitude)
    return error + _HIDDEN


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


def _terms(node: Node, shapes: Sequence[tuple[int, ...]]) -> int:
    """The largest number of products that are summed into one entry, with the bias."""
    if node.op in ("linear", "conv"):
        return node_size(node.tensors["weight"].shape[1:]) + 1
    if node.op == "conv_transpose":
        weight = node.tensors["weight"]
        return weight.shape[0] // int(node.attributes["groups"]) * node_size(weight.shape[2:]) + 1
    if node.op == "mean":
        dims: Sequence[int] = node.attributes["dims"]
        return node_size([shapes[0][d] for d in dims]) + 1
    return shapes[0][-1] if node.op == "matmul" else 2
