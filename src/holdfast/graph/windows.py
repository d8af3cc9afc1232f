"""Operations of windows: convolutions and pools. Each function takes the builder first and returns a position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from holdfast.graph.build import Builder
from holdfast.graph.operations import compute

__all__ = ["Windows", "average_pool", "conv", "conv_transpose", "max_pool"]


@dataclass(frozen=True, kw_only=True)
class Windows:
    """How windows lie, one number for each spatial dimension.

    Attributes:
        stride: from one window to the next.
        pads: (before, after): zeros around the value.
        dilation: from one entry of a window to the next.
    """

    stride: Sequence[int]
    pads: Sequence[tuple[int, int]]
    dilation: Sequence[int]

    @classmethod
    def plain(cls, kernel: Sequence[int]) -> Windows:
        """Windows of a size side by side."""
        return cls(stride=kernel, pads=[(0, 0)] * len(kernel), dilation=[1] * len(kernel))

    def attributes(self, padding: Sequence[int]) -> dict[str, Any]:
        """As a node has them, with the padding that is left to it."""
        return {"stride": tuple(self.stride), "padding": tuple(padding), "dilation": tuple(self.dilation)}


def conv(b: Builder, x: int, weight: Tensor, bias: Tensor | None, windows: Windows, groups: int = 1) -> int:
    """A convolution; padding that differs on the two sides becomes a node of its own."""
    given, x, pads = x, b.drop_batch(x, weight.ndim - 1), windows.pads
    if any(before != after for before, after in pads):
        x, pads = b.pad(x, [(0, 0), *pads]), [(0, 0)] * len(pads)
    tensors = {"weight": weight} | ({} if bias is None else {"bias": bias})
    attributes = windows.attributes([before for before, _ in pads]) | {"groups": groups}
    return b.restore_batch(b.add_node("conv", [x], tensors, attributes), given)


def conv_transpose(
    b: Builder,
    x: int,
    weight: Tensor,
    bias: Tensor | None,
    windows: Windows,
    output_padding: Sequence[int],
    groups: int = 1,
) -> int:
    """A transposed convolution; padding that differs on the two sides is cropped afterwards."""
    given, x, pads = x, b.drop_batch(x, weight.ndim - 1), windows.pads
    tensors = {"weight": weight} | ({} if bias is None else {"bias": bias})
    padding = [min(pair) for pair in pads]
    attributes = windows.attributes(padding) | {"output_padding": tuple(output_padding), "groups": groups}
    x = b.add_node("conv_transpose", [x], tensors, attributes)
    x = b.pad(x, [(0, 0), *((least - pair[0], least - pair[1]) for least, pair in zip(padding, pads, strict=True))])
    return b.restore_batch(x, given)


def average_pool(
    b: Builder,
    x: int,
    kernel: Sequence[int],
    windows: Windows,
    count_padding: bool = True,
    divisor: float | None = None,
) -> int:
    """An average pool: a convolution in which each channel is a group of its own; ``divisor`` instead of a count."""
    given, x = x, b.drop_batch(x, len(kernel) + 1)
    channels = b.shape(x)[0]
    count = torch.Size(kernel).numel() if divisor is None else divisor
    ones = torch.ones(channels, 1, *kernel, dtype=torch.float64)
    if divisor is not None or count_padding or not any(side for pair in windows.pads for side in pair):
        return b.restore_batch(conv(b, x, ones / count, None, windows, channels), given)
    total = conv(b, x, ones, None, windows, channels)
    inside = Builder(b.shape(x), torch.float64)
    conv(inside, 0, ones, None, windows, channels)
    counts = torch.ones(1, *b.shape(x), dtype=torch.float64)
    for node in inside.nodes[1:]:
        counts = compute(node.op, [counts], node.tensors, node.attributes)
    return b.restore_batch(b.affine(total, scale=1.0 / counts[0]), given)


def max_pool(b: Builder, x: int, kernel: Sequence[int], windows: Windows, ceil: bool = False) -> int:
    """A max pool, padded alike on both sides; what it pads never wins."""
    attributes = windows.attributes([before for before, _ in windows.pads]) | {"kernel": tuple(kernel), "ceil": ceil}
    pooled = b.add_node("max_pool", [b.drop_batch(x, len(kernel) + 1)], attributes=attributes)
    return b.restore_batch(pooled, x)
