"""Builds a graph node by node; both readers (`capture`, `onnx`) speak to this one builder.

A value is an int (the position of a node) or a tensor (a constant). Operations of constants never get here: readers
fold them by computing them. What several operations make together stands in `compose`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from holdfast.core.errors import ModelError, UnsupportedError
from holdfast.graph.model import Graph, Node, Written
from holdfast.graph.operations import shape_of
from holdfast.graph.shapes import broadcast
from holdfast.graph.simplify import simplify, written

__all__ = ["BatchError", "Builder", "Value"]

Value = int | Tensor


class BatchError(UnsupportedError):
    """An operation that mixes the batch with the features; read for one sample it may be served."""


class Builder:
    """A graph under construction.

    Args:
        shape: shape of one input sample.
        dtype: the type in which the model runs.
        device: where the constants shall lie.
        batch_dims: how many dimensions stand before the features in the constants and axes of the model: 1 (the batch), or 0
            where the model is read for one sample and every dimension is a feature.

    Attributes:
        origin: the model's operation that is being read, which its nodes then bear.
        computed: operations of constants alone, other than those that move them, which a reader has folded.
    """

    def __init__(
        self, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu", batch_dims: int = 1
    ) -> None:
        self.nodes: list[Node] = [Node(op="input", inputs=(), shape=tuple(shape))]
        self.dtype = dtype
        self.device = device
        self.batch_dims = batch_dims
        self.origin = ""
        self.computed: list[str] = []

    def finish(self, output: Value) -> Graph:
        """The simplified graph that ends in ``output``.

        Raises:
            ModelError: the output does not depend on the input.
        """
        if isinstance(output, Tensor):
            raise ModelError("the model's output does not depend on its input")
        whole = Graph(tuple(self.nodes), self.dtype)
        found = simplify(whole, output)
        plain = Written(found.nodes, written(whole, output).nodes, tuple(dict.fromkeys(self.computed)))
        return replace(found, written=plain)

    def shape(self, x: int) -> tuple[int, ...]:
        """Shape of a node's value for one sample."""
        return self.nodes[x].shape

    def add_node(
        self,
        op: str,
        inputs: Sequence[int],
        tensors: Mapping[str, Tensor] | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> int:
        """Appends a node."""
        tensors, attributes = tensors or {}, attributes or {}
        shape = shape_of(op, [self.shape(i) for i in inputs], tensors, attributes)
        held = {k: t.to(self.device) for k, t in tensors.items()}
        self.nodes.append(
            Node(
                op=op, inputs=tuple(inputs), shape=shape, tensors=held, attributes=dict(attributes), origin=self.origin
            )
        )
        return len(self.nodes) - 1

    def feature_constant(self, constant: Tensor, rank: int) -> Tensor:
        """A constant that broadcasts against (n, \\*features), seen as one that broadcasts against the features alone.

        Args:
            constant: any rank up to ``rank`` + 1.
            rank: number of feature dimensions.

        Returns:
            A tensor of exactly ``rank`` dimensions.

        Raises:
            UnsupportedError: the constant differs along the batch.
        """
        if constant.ndim > rank:
            if constant.ndim > rank + 1 or constant.shape[0] != 1:
                raise BatchError(f"a constant of shape {tuple(constant.shape)} differs along the batch")
            constant = constant[0]
        return constant.reshape((1,) * (rank - constant.ndim) + tuple(constant.shape))

    def broadcast(self, x: int, constant: Tensor) -> tuple[int, Tensor]:
        """A node and a constant with equally many dimensions, the node enlarged to what broadcasting gives."""
        shape = self.shape(x)
        if not self.batch_dims and constant.ndim > len(shape):
            x = self.reshape(x, (1,) * (constant.ndim - len(shape)) + shape)
        constant = self.feature_constant(constant, len(self.shape(x)))
        return self.expand(x, broadcast(self.shape(x), constant.shape)), constant

    def broadcast_nodes(self, x: int, y: int) -> tuple[int, int]:
        """Two nodes enlarged to what broadcasting gives."""
        first, second = self.shape(x), self.shape(y)
        if self.batch_dims and len(first) != len(second):
            raise BatchError(f"two values of shapes {first} and {second}: it mixes the batch with the features")
        shape = broadcast(first, second)
        return self.expand(x, shape), self.expand(y, shape)

    def expand(self, x: int, shape: Sequence[int]) -> int:
        """The value repeated along its dimensions of size 1; new dimensions come first."""
        x = self.reshape(x, (1,) * (len(shape) - len(self.shape(x))) + self.shape(x))
        for dim, (own, size) in enumerate(zip(self.shape(x), shape, strict=True)):
            if own != size:
                x = self.select(x, dim, torch.zeros(size, dtype=torch.int64))
        return x

    def affine(self, x: int, scale: Tensor | float | None = None, shift: Tensor | float | None = None) -> int:
        """``x * scale + shift`` with constants; one that is larger than the value makes the value larger."""
        tensors: dict[str, Tensor] = {}
        for key, value in (("scale", scale), ("shift", shift)):
            if value is not None:
                value = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
                if not torch.isfinite(value).all():
                    raise UnsupportedError("a constant that is infinite or no number; served are finite ones")
                x, tensors[key] = self.broadcast(x, value.to(torch.promote_types(value.dtype, self.dtype)))
        rank = len(self.shape(x))
        tensors = {k: t.reshape((1,) * (rank - t.ndim) + tuple(t.shape)) for k, t in tensors.items()}
        return self.add_node("affine", [x], tensors)

    def add(self, x: Value, y: Value, sign: float = 1.0) -> Value:
        """``x + sign * y``."""
        if isinstance(x, int) and isinstance(y, int):
            if abs(sign) != 1:
                return self.add(x, self.affine(y, scale=sign))
            return self.add_node("add" if sign > 0 else "sub", self.broadcast_nodes(x, y))
        if isinstance(x, int):
            return self.affine(x, shift=y * sign)
        if isinstance(y, int):
            return self.affine(y, scale=None if sign == 1 else sign, shift=x)
        return x + sign * y

    def multiply(self, x: Value, y: Value) -> Value:
        """``x * y``."""
        if isinstance(x, int) and isinstance(y, int):
            return self.power(x, 2.0) if x == y else self.add_node("mul", self.broadcast_nodes(x, y))
        if isinstance(x, int):
            return self.affine(x, scale=y)
        return self.affine(y, scale=x) if isinstance(y, int) else x * y

    def divide(self, x: Value, y: Value) -> Value:
        """``x / y``."""
        if isinstance(y, int):
            return self.multiply(x, self.unary("reciprocal", y))
        # the quotient of the real network is 1 / y, which float32 would miss by 6e-8
        inverse = 1.0 / y.to(torch.float64)
        return self.affine(x, scale=inverse) if isinstance(x, int) else x / y

    def unary(self, op: str, x: int, **attributes: Any) -> int:
        """An operation of one node without constants."""
        return self.add_node(op, [x], attributes=attributes)

    def power(self, x: int, exponent: float) -> int:
        """``x ** exponent``."""
        if exponent == 1:
            return x
        if exponent in (0.5, -0.5):
            x = self.unary("sqrt", x)
        if exponent in (-1.0, -0.5):
            return self.unary("reciprocal", x)
        return x if exponent == 0.5 else self.unary("power", x, exponent=float(exponent))

    def linear(self, x: int, weight: Tensor, bias: Tensor | None = None) -> int:
        """``x @ weight.T + bias`` on the last dimension."""
        return self.add_node("linear", [x], {"weight": weight} | ({} if bias is None else {"bias": bias}))

    def drop_batch(self, x: int, rank: int) -> int:
        """The value as an operation of samples with ``rank`` feature dimensions takes it, without a batch of one."""
        shape = self.shape(x)
        if not self.batch_dims and len(shape) == rank + 1 and shape[0] == 1:
            return self.reshape(x, shape[1:])
        if len(shape) != rank:
            raise BatchError(f"an operation of samples with {rank} dimensions on a value of shape {shape}")
        return x

    def restore_batch(self, x: int, like: int) -> int:
        """What `drop_batch` dropped from the value ``like``, for the result."""
        return x if len(self.shape(x)) == len(self.shape(like)) else self.reshape(x, (1, *self.shape(x)))

    def relu(self, x: int) -> int:
        """``max(x, 0)``."""
        return self.unary("relu", x)

    def leaky_relu(self, x: int, slope: float) -> int:
        """``x``, or ``slope * x`` below zero."""
        if not 0 <= slope <= 1:  # the vocabulary's is a maximum
            return self.add_node("add", [self.affine(x, slope), self.affine(self.relu(x), 1 - slope)])
        return self.unary("leaky_relu", x, slope=float(slope))

    def reshape(self, x: int, shape: Sequence[int]) -> int:
        """The same features in another shape; one entry may be -1."""
        size = torch.Size(self.shape(x)).numel()
        known = -torch.Size(shape).numel() if -1 in shape else 0
        shape = tuple(size // max(known, 1) if s == -1 else int(s) for s in shape)
        return x if shape == self.shape(x) else self.unary("reshape", x, shape=shape)

    def permute(self, x: int, dims: Sequence[int]) -> int:
        """The feature dimensions in another order."""
        dims = tuple(dims)
        return x if dims == tuple(range(len(dims))) else self.unary("permute", x, dims=dims)

    def select(self, x: int, dim: int, index: Tensor) -> int:
        """Positions ``index`` along a feature dimension."""
        same = torch.equal(index.cpu(), torch.arange(self.shape(x)[dim]))
        return x if same else self.add_node("select", [x], {"index": index.long()}, {"dim": dim})

    def pad(self, x: int, pads: Sequence[tuple[int, int]]) -> int:
        """Zeros around the features: (before, after) for each dimension; negative sides crop."""
        for dim, (before, after) in enumerate(pads):
            if before < 0 or after < 0:
                size = self.shape(x)[dim]
                x = self.select(x, dim, torch.arange(max(-before, 0), size - max(-after, 0)))
        sides = tuple((max(before, 0), max(after, 0)) for before, after in pads)
        if not any(side for pair in sides for side in pair):
            return x
        return self.unary("pad", x, pads=sides)

    def mean(self, x: int, dims: Sequence[int], keep: bool) -> int:
        """The mean over feature dimensions."""
        shape = self.shape(x)
        x = self.unary("mean", x, dims=tuple(dims)) if dims else x
        return x if keep else self.reshape(x, [s for d, s in enumerate(shape) if d not in dims])

    def softmax(self, x: int, dim: int) -> int:
        """Softmax along a feature dimension."""
        return self.unary("softmax", x, dim=dim)

    def concat(self, parts: Sequence[Value], dim: int) -> int:
        """Values one after the other along a feature dimension; constants enter as a shift where zeros were padded."""
        first = next(p for p in parts if isinstance(p, int))
        rank, other = len(self.shape(first)), [s for d, s in enumerate(self.shape(first)) if d != dim]
        constants = {i: self.feature_constant(p, rank) for i, p in enumerate(parts) if isinstance(p, Tensor)}
        sizes = [constants[i].shape[dim] if i in constants else self.shape(int(p))[dim] for i, p in enumerate(parts)]
        last = max(i for i, size in enumerate(sizes) if size and i not in constants)
        waiting = 0  # zeros that the next node brings
        nodes: list[int] = []
        shift: list[Tensor] = []
        for i, (part, size) in enumerate(zip(parts, sizes, strict=True)):
            shape = [*other[:dim], size, *other[dim:]]
            if i in constants:
                shift.append(constants[i].to(torch.promote_types(constants[i].dtype, self.dtype)).expand(shape))
                waiting += size
            elif size:
                pads = (waiting, sum(sizes[i + 1 :]) if i == last else 0)
                nodes.append(self.pad(int(part), [pads if d == dim else (0, 0) for d in range(rank)]))
                shift.append(torch.zeros(shape, device=self.device, dtype=self.dtype))
                waiting = 0
        x = nodes[0] if len(nodes) == 1 else self.add_node("concat", nodes, attributes={"dim": dim})
        return self.affine(x, shift=torch.cat(shift, dim)) if constants else x
