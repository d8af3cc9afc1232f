"""The largest entry of each window."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from holdfast.certifiers.propagation.operation import Operation, Pull
from holdfast.certifiers.propagation.operations.floors import samples_floor
from holdfast.certifiers.propagation.region import Box
from holdfast.graph.model import Node

__all__ = ["MaxPool"]


class _Choice(NamedTuple):
    """For each output of a max pool: an input below it, and an input, slope and intercept above it."""

    below: Tensor
    above: Tensor
    slope: Tensor
    intercept: Tensor
    shape: tuple[int, ...]


class MaxPool(Operation):
    """The largest entry of each window.

    Below: the entry with the largest lower bound. Above: with y the entry of the largest upper bound and c the largest
    upper bound among the others, ``max(y, c)``, which is a ReLU shifted to c and is bounded by its chord.
    """

    linear = False

    @override
    def floor(self, node: Node, inputs: Sequence[Box]) -> Tensor | None:
        return samples_floor(node, inputs)

    def _pool(self, node: Node, x: Tensor) -> tuple[Tensor, Tensor]:
        a = node.attributes
        pool = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[len(a["kernel"])]
        value, index = pool(x, a["kernel"], a["stride"], a["padding"], a["dilation"], a["ceil"], return_indices=True)
        return value, index.flatten(2)

    @override
    def interval(self, node: Node, inputs: Sequence[Box]) -> Box:
        return Box(self._pool(node, inputs[0].lower)[0], self._pool(node, inputs[0].upper)[0])

    @override
    def size(self, node: Node, inputs: Sequence[Box], output: Box) -> Tensor:
        """A coefficient reaches one input, of at most the windows' reach; intercepts are at most ``2 |z|``."""
        reach = max(float(t.abs().max()) for t in inputs[0])
        return torch.full_like(output.lower, 4 * reach)

    @override
    def unstable(self, node: Node, box: Box) -> Tensor:
        """All that are not points."""
        return ~(box.lower >= box.upper)

    @override
    def prepare(self, node: Node, inputs: Sequence[Box], alpha: Tensor | None = None) -> _Choice:
        (lower, upper), shape = inputs[0], tuple(inputs[0].lower.shape[1:])
        below = self._pool(node, lower)[1]
        top, above = self._pool(node, upper)
        top = top.flatten(2)
        foot = lower.flatten(2).gather(2, above)
        second = self._second(node, upper, above)
        open_ = foot < second
        slope_ = torch.where(open_, (top - second) / torch.where(open_, top - foot, 1.0), 1.0).clamp(0, 1)
        second = torch.where(open_, second, 0.0)
        intercept = torch.where(open_, torch.maximum(second - slope_ * foot, top - slope_ * top), 0.0)
        return _Choice(below, above, slope_, intercept, shape)

    def _second(self, node: Node, upper: Tensor, above: Tensor) -> Tensor:
        """The largest upper bound in each window but that of the entry ``above``: (n, channels, windows)."""
        a = node.attributes
        k = len(a["kernel"])
        sizes = upper.shape[2:]
        where = torch.arange(upper[0, 0].numel(), device=upper.device, dtype=upper.dtype).view(1, 1, *sizes)
        pads = [p for size in reversed(a["padding"]) for p in (size, size)]
        beyond = [0] * k
        if a["ceil"]:  # windows may then reach past the padding
            beyond = [
                max((out - 1) * s + d * (w - 1) + 1 - size - 2 * p, 0)
                for out, s, d, w, size, p in zip(
                    node.shape[1:], a["stride"], a["dilation"], a["kernel"], sizes, a["padding"], strict=True
                )
            ]
            pads = [p + (beyond[k - 1 - i // 2] if i % 2 else 0) for i, p in enumerate(pads)]

        def windows(x: Tensor, fill: float) -> Tensor:
            x = F.pad(x, pads, value=fill)
            for dim in range(k):
                reach = a["dilation"][dim] * (a["kernel"][dim] - 1) + 1
                x = x.unfold(dim + 2, reach, a["stride"][dim])[..., :: a["dilation"][dim]]
            slices = (slice(None), slice(None), *(slice(0, out) for out in node.shape[1:]))
            return x[slices].flatten(2 + k).flatten(2, 1 + k)

        values = windows(upper, -torch.inf)
        positions = windows(where, -1.0)
        return values.masked_fill(positions == above.unsqueeze(-1), -torch.inf).amax(-1)

    @override
    def pull(self, node: Node, a: Tensor, prepared: _Choice) -> Pull:
        below, above, slope, intercept, shape = prepared
        flat = a.flatten(3)
        negative = flat.clamp(max=0)
        back = a.new_zeros(*flat.shape[:3], torch.Size(shape[1:]).numel())
        back = back.scatter_add(3, below.expand_as(flat), flat - negative)
        back = back.scatter_add(3, above.expand_as(flat), negative * slope)
        constant = torch.einsum("snd,nd->sn", negative.flatten(2), intercept.flatten(1))
        return [back.view(*a.shape[:2], *shape)], constant
