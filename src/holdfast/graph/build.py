"""Builds a graph node by node; both readers (`capture`, `onnx`) speak to this one builder.

A value is an int (the position of a node) or a tensor (a constant). Operations of constants never get here: readers
fold them by computing them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from holdfast.core.errors import ModelError, UnsupportedError
from holdfast.graph.model import Graph, Node
from holdfast.graph.ops import compute
from holdfast.graph.simplify import simplify

__all__ = ["Builder", "Value"]

Value = int | Tensor


class Builder:
    """A graph under construction.

    Args:
        shape: shape of one input sample.
        dtype: the type in which the model runs.
        device: where the constants shall lie.
    """

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        self.nodes: list[Node] = [Node("input", (), tuple(shape))]
        self.dtype = dtype
        self.device = device

    def finish(self, output: Value) -> Graph:
        """The simplified graph that ends in ``output``.

        Raises:
            ModelError: the output does not depend on the input.
        """
        if isinstance(output, Tensor):
            raise ModelError("the model's output does not depend on its input")
        return simplify(Graph(tuple(self.nodes), self.dtype), output)

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
        """Appends a node; its shape is found by running it on tensors without storage."""
        tensors, attributes = tensors or {}, attributes or {}
        blanks = [torch.empty(2, *self.shape(i), device="meta") for i in inputs]
        constants = {
            k: t.to("meta", torch.float32 if t.is_floating_point() else None) for k, t in tensors.items() if k != "size"
        }
        shape = tuple(compute(op, blanks, constants, attributes).shape[1:])
        held = {k: t.to(self.device) for k, t in tensors.items()}
        self.nodes.append(Node(op, tuple(inputs), shape, held, dict(attributes)))
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
                raise UnsupportedError(f"a constant of shape {tuple(constant.shape)} differs along the batch")
            constant = constant[0]
        return constant.reshape((1,) * (rank - constant.ndim) + tuple(constant.shape))

    def affine(self, x: int, scale: Tensor | float | None = None, shift: Tensor | float | None = None) -> int:
        """``x * scale + shift`` with constants; a constant that makes the value larger is not supported."""
        rank = len(self.shape(x))
        tensors: dict[str, Tensor] = {}
        for key, value in (("scale", scale), ("shift", shift)):
            if value is not None:
                value = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
                tensors[key] = self.feature_constant(value.to(torch.promote_types(value.dtype, self.dtype)), rank)
        y = self.add_node("affine", [x], tensors)
        if self.shape(y) != self.shape(x):
            raise UnsupportedError(f"a constant that turns {self.shape(x)} into {self.shape(y)} by broadcasting")
        return y

    def add(self, x: Value, y: Value, sign: float = 1.0) -> Value:
        """``x + sign * y``."""
        if isinstance(x, int) and isinstance(y, int):
            same = self.shape(x) == self.shape(y)
            if not same:
                raise UnsupportedError(f"adding values of shapes {self.shape(x)} and {self.shape(y)}")
            return self.add_node("add" if sign > 0 else "sub", [x, y])
        if isinstance(x, int):
            return self.affine(x, shift=y * sign)
        if isinstance(y, int):
            return self.affine(y, scale=None if sign > 0 else -1.0, shift=x)
        return x + sign * y

    def multiply(self, x: Value, y: Value) -> Value:
        """``x * y`` with at most one of them a node."""
        if isinstance(x, int) and isinstance(y, int):
            raise UnsupportedError("the product of two values that both depend on the input")
        if isinstance(x, int):
            return self.affine(x, scale=y)
        return self.affine(y, scale=x) if isinstance(y, int) else x * y

    def divide(self, x: Value, y: Value) -> Value:
        """``x / y`` with a constant y."""
        if isinstance(y, int):
            raise UnsupportedError("division by a value that depends on the input")
        # the quotient of the real network is 1 / y, which float32 would miss by 6e-8
        inverse = 1.0 / y.to(torch.float64)
        return self.affine(x, scale=inverse) if isinstance(x, int) else x / y

    def linear(self, x: int, weight: Tensor, bias: Tensor | None = None) -> int:
        """``x @ weight.T + bias`` on the last dimension."""
        return self.add_node("linear", [x], {"weight": weight} | ({} if bias is None else {"bias": bias}))

    def conv(
        self,
        x: int,
        weight: Tensor,
        bias: Tensor | None,
        stride: Sequence[int],
        pads: Sequence[tuple[int, int]],
        dilation: Sequence[int],
        groups: int,
    ) -> int:
        """A convolution; padding that differs on the two sides becomes a node of its own."""
        if any(before != after for before, after in pads):
            x, pads = self.pad(x, [(0, 0), *pads]), [(0, 0)] * len(pads)
        tensors = {"weight": weight} | ({} if bias is None else {"bias": bias})
        padding = tuple(before for before, _ in pads)
        attributes = {"stride": tuple(stride), "padding": padding, "dilation": tuple(dilation), "groups": groups}
        return self.add_node("conv", [x], tensors, attributes)

    def batch_norm(
        self, x: int, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, eps: float
    ) -> int:
        """Batch norm with fixed statistics, in float64: two affine nodes, which `simplify` merges."""
        scale = 1.0 / torch.sqrt(variance.double() + eps)
        if weight is not None:
            scale = weight.double() * scale
        rank = len(self.shape(x))
        per_channel = (-1,) + (1,) * (rank - 1)
        x = self.affine(x, shift=-mean.double().view(per_channel))
        return self.affine(x, scale.view(per_channel), None if bias is None else bias.double().view(per_channel))

    def average_pool(
        self,
        x: int,
        kernel: Sequence[int],
        stride: Sequence[int],
        pads: Sequence[tuple[int, int]],
        count_padding: bool = True,
    ) -> int:
        """An average pool: a convolution in which each channel is a group of its own."""
        channels = self.shape(x)[0]
        count = torch.Size(kernel).numel()
        ones = torch.ones(channels, 1, *kernel, dtype=torch.float64)
        if count_padding or not any(side for pair in pads for side in pair):
            return self.conv(x, ones / count, None, stride, pads, [1] * len(kernel), channels)
        total = self.conv(x, ones, None, stride, pads, [1] * len(kernel), channels)
        inside = Builder(self.shape(x), torch.float64)
        inside.conv(0, ones, None, stride, pads, [1] * len(kernel), channels)
        counts = torch.ones(1, *self.shape(x), dtype=torch.float64)
        for node in inside.nodes[1:]:
            counts = compute(node.op, [counts], node.tensors, node.attributes)
        return self.affine(total, scale=1.0 / counts[0])

    def max_pool(
        self,
        x: int,
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        ceil: bool = False,
    ) -> int:
        """A max pool; what it pads never wins."""
        attributes = {
            "kernel": tuple(kernel),
            "stride": tuple(stride),
            "padding": tuple(padding),
            "dilation": tuple(dilation),
            "ceil": ceil,
        }
        return self.add_node("max_pool", [x], attributes=attributes)

    def clip(self, x: int, low: float | None, high: float | None) -> int:
        """``min(max(x, low), high)`` as ``low + relu(x - low)`` and ``high - relu(high - x)``."""
        if low is not None:
            x = self.relu(self.affine(x, shift=-low)) if low else self.relu(x)
            x = self.affine(x, shift=low) if low else x
        if high is not None:
            x = self.affine(self.relu(self.affine(x, -1.0, high)), -1.0, high)
        return x

    def relu(self, x: int) -> int:
        """``max(x, 0)``."""
        return self.add_node("relu", [x])

    def leaky_relu(self, x: int, slope: float) -> int:
        """``max(x, slope * x)``."""
        if not 0 <= slope <= 1:
            raise UnsupportedError(f"leaky_relu with slope {slope}: only slopes in [0, 1]")
        return self.add_node("leaky_relu", [x], attributes={"slope": float(slope)})

    def reshape(self, x: int, shape: Sequence[int]) -> int:
        """The same features in another shape; one entry may be -1."""
        size = torch.Size(self.shape(x)).numel()
        known = -torch.Size(shape).numel() if -1 in shape else 0
        shape = tuple(size // max(known, 1) if s == -1 else int(s) for s in shape)
        return x if shape == self.shape(x) else self.add_node("reshape", [x], attributes={"shape": shape})

    def permute(self, x: int, dims: Sequence[int]) -> int:
        """The feature dimensions in another order."""
        return self.add_node("permute", [x], attributes={"dims": tuple(dims)})

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
        return self.add_node("pad", [x], attributes={"pads": sides})

    def mean(self, x: int, dims: Sequence[int], keep: bool) -> int:
        """The mean over feature dimensions."""
        shape = self.shape(x)
        x = self.add_node("mean", [x], attributes={"dims": tuple(dims)})
        return x if keep else self.reshape(x, [s for d, s in enumerate(shape) if d not in dims])

    def softmax(self, x: int, dim: int) -> int:
        """Softmax along a feature dimension."""
        return self.add_node("softmax", [x], attributes={"dim": dim})
