"""Matrix products of values and constants. Each function takes the builder first and returns a position."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.core.errors import ModelError
from holdfast.graph.build import BatchError, Builder, Value
from holdfast.graph.shapes import broadcast

__all__ = ["matmul"]


def matmul(b: Builder, x: Value, y: Value) -> int:
    """The matrix product ``x @ y`` of the last two dimensions.

    Raises:
        UnsupportedError: it mixes the batch with the features.
    """
    if isinstance(x, Tensor) and isinstance(y, int):
        return _constant_first(b, x, y)
    if isinstance(x, int) and isinstance(y, Tensor):
        return _constant_last(b, x, y)
    if not isinstance(x, int) or not isinstance(y, int):
        raise ModelError("a product of two constants")
    return _of_values(b, x, y)


def _of_values(b: Builder, x: int, y: int) -> int:
    """Both depend on the input."""
    first, second = b.shape(x), b.shape(y)
    if not b.batch_dims and len(second) == 1:
        z = matmul(b, x, b.reshape(y, (*second, 1)))
        return b.reshape(z, b.shape(z)[:-1])
    if not b.batch_dims and len(first) == 1:
        return _without_row(b, matmul(b, b.reshape(x, (1, *first)), y))
    if len(first) < 2 or len(second) < 2 or (b.batch_dims and len(first) != len(second)):
        raise BatchError(
            f"a matrix product of values of shapes {first} and {second}: it mixes the batch with the features"
        )
    blocks = broadcast(first[:-2], second[:-2])
    return b.add_node("matmul", [b.expand(x, (*blocks, *first[-2:])), b.expand(y, (*blocks, *second[-2:]))])


def _constant_first(b: Builder, x: Tensor, y: int) -> int:
    """``x @ y = (y' @ x')'``."""
    rank = len(b.shape(y))
    if rank == 1 and b.batch_dims:
        raise BatchError("a constant matrix before a batch of vectors: it mixes the batch with the features")
    if rank == 1:
        return matmul(b, y, x.mT if x.ndim > 1 else x)
    z = _transposed(b, matmul(b, _transposed(b, y), (x[None] if x.ndim == 1 else x).mT))
    return b.reshape(z, [s for d, s in enumerate(b.shape(z)) if d != rank - 2]) if x.ndim == 1 else z


def _constant_last(b: Builder, x: int, weight: Tensor) -> int:
    if weight.ndim == 1:
        y = b.linear(x, weight[None])
        return b.reshape(y, b.shape(y)[:-1])
    if b.batch_dims and weight.ndim > 2:
        weight = b.feature_constant(weight, max(len(b.shape(x)), weight.ndim - 1))
    if not b.batch_dims and weight.ndim > max(len(b.shape(x)), 2):
        if len(b.shape(x)) == 1:
            return _without_row(b, _constant_last(b, b.reshape(x, (1, *b.shape(x))), weight))
        x = b.expand(x, (1,) * (weight.ndim - len(b.shape(x))) + b.shape(x))
    if torch.Size(weight.shape[:-2]).numel() == 1:
        return b.linear(x, weight.reshape(weight.shape[-2:]).mT)
    return _matrix_each(b, x, weight)


def _matrix_each(b: Builder, x: int, weight: Tensor) -> int:
    """A matrix for each block: a convolution of size 1 whose groups are the blocks."""
    shape = b.shape(x)
    if len(shape) < 2 or (b.batch_dims and weight.ndim > len(shape)):
        raise BatchError("a matrix product with a constant that differs along the batch")
    leading = broadcast(shape[:-2], weight.shape[:-2])
    (m, k), n, blocks = shape[-2:], weight.shape[-1], torch.Size(leading).numel()
    weight = weight.expand(*leading, k, n).reshape(blocks, k, n).mT.reshape(blocks * n, k, 1)
    x = _transposed(b, b.expand(x, (*leading, m, k)))
    x = b.reshape(x, (blocks * k, m))
    attributes = {"stride": (1,), "padding": (0,), "dilation": (1,), "groups": blocks}
    x = b.add_node("conv", [x], {"weight": weight}, attributes)
    return _transposed(b, b.reshape(x, (*leading, n, m)))


def _without_row(b: Builder, z: int) -> int:
    """A product whose first factor was a vector, without the row that it became."""
    return b.reshape(z, [*b.shape(z)[:-2], b.shape(z)[-1]])


def _transposed(b: Builder, x: int) -> int:
    rank = len(b.shape(x))
    return b.permute(x, [*range(rank - 2), rank - 1, rank - 2])
