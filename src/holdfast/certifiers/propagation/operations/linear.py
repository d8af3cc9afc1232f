"""Linear operations: sums of products with constants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from holdfast.certifiers.propagation.operation import Operation, Pull, node_size
from holdfast.certifiers.propagation.operations.floors import entries_floor, sums_floor
from holdfast.certifiers.propagation.region import Box
from holdfast.graph.model import Node
from holdfast.graph.operations import compute

__all__ = ["Add", "Affine", "Conv", "ConvTranspose", "Linear", "Mean"]

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class _Layer(Operation):
    """``W x + b``. Boxes have a middle and a radius, which sees the magnitudes of the weights (Rump 1999)."""

    @override
    def floor(self, node: Node, inputs: Sequence[Box]) -> Tensor | None:
        return sums_floor(node, inputs)

    def _spread(self, node: Node, x: Tensor) -> Tensor:
        return compute(node.op, [x], {"weight": node.tensors["weight"].abs()}, node.attributes)

    @override
    def interval(self, node: Node, inputs: Sequence[Box]) -> Box:
        (lower, upper), at = inputs[0], node.attributes
        centre = compute(node.op, [(lower + upper) / 2], node.tensors, at)
        radius = self._spread(node, (upper - lower) / 2)
        return Box(centre - radius, centre + radius)

    @override
    def size(self, node: Node, inputs: Sequence[Box], output: Box) -> Tensor:
        spread = self._spread(node, inputs[0].magnitude)
        size = _bias_size(node, spread)
        return spread + (size if node.op == "linear" else size.view(-1, *(1,) * (spread.ndim - 2)))


class Linear(_Layer):
    """``x @ weight.T + bias``."""

    @override
    def pull(self, node: Node, a: Tensor, prepared: Any) -> Pull:
        bias = node.tensors.get("bias")
        constant = None if bias is None else (a @ bias).reshape(*a.shape[:2], -1).sum(2)
        return [a @ node.tensors["weight"]], constant

    @override
    def pull_units(self, node: Node, chosen: Tensor, prepared: Any) -> Pull | None:
        if len(node.shape) != 1:
            return None
        bias = node.tensors.get("bias")
        return [node.tensors["weight"][chosen]], None if bias is None else bias[chosen]


class Conv(_Layer):
    """A convolution; coefficients keep the shape of the feature maps."""

    @override
    def prepare(self, node: Node, inputs: Sequence[Box], alpha: Tensor | None = None) -> tuple[int, ...]:
        """The input's spatial shape, which the transpose must give back."""
        return tuple(inputs[0].lower.shape[2:])

    @override
    def pull(self, node: Node, a: Tensor, prepared: tuple[int, ...]) -> Pull:
        at, weight, bias = node.attributes, node.tensors["weight"], node.tensors.get("bias")
        beyond = [
            size - ((out - 1) * s - 2 * p + d * (k - 1) + 1)
            for size, out, s, p, d, k in zip(
                prepared, node.shape[1:], at["stride"], at["padding"], at["dilation"], weight.shape[2:], strict=True
            )
        ]
        constant = None if bias is None else a.flatten(3).sum(3) @ bias
        transposed: Tensor = _CONV_TRANSPOSE[len(beyond)](
            a.flatten(0, 1), weight, None, at["stride"], at["padding"], beyond, at["groups"], at["dilation"]
        )
        return [transposed.view(*a.shape[:2], *transposed.shape[1:])], constant

    @override
    def pull_units(self, node: Node, chosen: Tensor, prepared: tuple[int, ...]) -> Pull:
        """One patch of weights for each row, put in its place."""
        at, weight, bias = node.attributes, node.tensors["weight"], node.tensors.get("bias")
        padded = [size + 2 * p for size, p in zip(prepared, at["padding"], strict=True)]
        channel: Tensor = chosen.flatten() // node_size(node.shape[1:])
        rest, area = chosen.flatten() % node_size(node.shape[1:]), 1
        corner = torch.zeros_like(rest)
        inner = torch.zeros((), dtype=torch.int64, device=chosen.device)
        for d in reversed(range(len(padded))):
            corner = corner + rest % node.shape[d + 1] * at["stride"][d] * area
            rest = rest // node.shape[d + 1]
            steps = torch.arange(weight.shape[d + 2], device=chosen.device) * at["dilation"][d] * area
            inner = steps.view(-1, *(1,) * inner.ndim) + inner
            area *= padded[d]
        group = channel // (weight.shape[0] // at["groups"])
        planes = torch.arange(weight.shape[1], device=chosen.device) + (group * weight.shape[1]).unsqueeze(1)
        place = (planes * area).unsqueeze(2) + inner.flatten() + corner.view(-1, 1, 1)
        back = weight.new_zeros(len(channel), weight.shape[1] * at["groups"] * area)
        back = back.scatter(1, place.flatten(1), weight[channel].flatten(1)).view(*chosen.shape, -1, *padded)
        crop = (slice(p, p + size) for size, p in zip(prepared, at["padding"], strict=True))
        patches: Tensor = back[(..., *crop)]
        return [patches], None if bias is None else bias[channel].view(chosen.shape)


class ConvTranspose(_Layer):
    """A transposed convolution; its own transpose is a convolution."""

    @override
    def prepare(self, node: Node, inputs: Sequence[Box], alpha: Tensor | None = None) -> tuple[int, ...]:
        """The input's spatial shape."""
        return tuple(inputs[0].lower.shape[2:])

    @override
    def pull(self, node: Node, a: Tensor, prepared: tuple[int, ...]) -> Pull:
        at, bias = node.attributes, node.tensors.get("bias")
        constant = None if bias is None else a.flatten(3).sum(3) @ bias
        back: Tensor = _CONV[len(prepared)](
            a.flatten(0, 1), node.tensors["weight"], None, at["stride"], at["padding"], at["dilation"], at["groups"]
        )
        # output padding beyond the stride would give the convolution positions that no input has
        back = back[(slice(None), slice(None), *(slice(0, size) for size in prepared))]
        return [back.view(*a.shape[:2], *back.shape[1:])], constant


class Affine(Operation):
    """``x * scale + shift``."""

    elementwise = True

    @override
    def floor(self, node: Node, inputs: Sequence[Box]) -> Tensor | None:
        return entries_floor(inputs[0].lower, *(t for k, t in node.tensors.items() if k != "size"))

    @override
    def interval(self, node: Node, inputs: Sequence[Box]) -> Box:
        (lower, upper), scale, shift = inputs[0], node.tensors.get("scale"), node.tensors.get("shift")
        if scale is not None:
            lower, upper = lower * scale, upper * scale
            lower, upper = torch.minimum(lower, upper), torch.maximum(lower, upper)
        return Box(lower, upper) if shift is None else Box(lower + shift, upper + shift)

    @override
    def size(self, node: Node, inputs: Sequence[Box], output: Box) -> Tensor:
        scale = node.tensors.get("scale")
        scaled = inputs[0].magnitude if scale is None else inputs[0].magnitude * scale.abs()
        return scaled + _bias_size(node, scaled, "shift")

    @override
    def pull(self, node: Node, a: Tensor, prepared: Any) -> Pull:
        scale, shift = node.tensors.get("scale"), node.tensors.get("shift")
        constant = None if shift is None else a.flatten(2) @ shift.expand(node.shape).flatten()
        return [a if scale is None else a * scale], constant


class Add(Operation):
    """``x + sign * y``."""

    def __init__(self, sign: int) -> None:
        self.sign = sign

    @override
    def floor(self, node: Node, inputs: Sequence[Box]) -> Tensor | None:
        """A sum of two floats has the sign of the exact sum."""
        x, y = inputs
        return entries_floor(x.lower + y.lower if self.sign > 0 else x.lower - y.upper)

    @override
    def interval(self, node: Node, inputs: Sequence[Box]) -> Box:
        x, y = inputs
        return Box(x.lower + y.lower, x.upper + y.upper) if self.sign > 0 else Box(x.lower - y.upper, x.upper - y.lower)

    @override
    def size(self, node: Node, inputs: Sequence[Box], output: Box) -> Tensor:
        return inputs[0].magnitude + inputs[1].magnitude

    @override
    def pull(self, node: Node, a: Tensor, prepared: Any) -> Pull:
        return [a, a if self.sign > 0 else -a], None


class Mean(Operation):
    """The mean over some dimensions, which stay with size 1."""

    @override
    def floor(self, node: Node, inputs: Sequence[Box]) -> Tensor | None:
        return entries_floor(inputs[0].lower.amin([d + 1 for d in node.attributes["dims"]], keepdim=True))

    @override
    def interval(self, node: Node, inputs: Sequence[Box]) -> Box:
        dims = [d + 1 for d in node.attributes["dims"]]
        return Box(inputs[0].lower.mean(dims, keepdim=True), inputs[0].upper.mean(dims, keepdim=True))

    @override
    def size(self, node: Node, inputs: Sequence[Box], output: Box) -> Tensor:
        dims = [d + 1 for d in node.attributes["dims"]]
        return inputs[0].magnitude.mean(dims, keepdim=True)

    @override
    def prepare(self, node: Node, inputs: Sequence[Box], alpha: Tensor | None = None) -> tuple[int, ...]:
        return tuple(inputs[0].lower.shape[1:])

    @override
    def pull(self, node: Node, a: Tensor, prepared: tuple[int, ...]) -> Pull:
        dims: Sequence[int] = node.attributes["dims"]
        count = node_size([prepared[d] for d in dims])
        return [(a / count).expand(*a.shape[:2], *prepared)], None


def _bias_size(node: Node, like: Tensor, bias: str = "bias") -> Tensor:
    size = node.tensors.get("size", node.tensors.get(bias))
    return like.new_zeros(()) if size is None else size.abs()
