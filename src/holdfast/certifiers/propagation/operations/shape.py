"""Operations that move entries, leave some out or put zeros around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from holdfast.certifiers.propagation.operation import Operation, Pull
from holdfast.certifiers.propagation.region import Box
from holdfast.graph.model import Node

__all__ = ["Concat", "Pad", "Permute", "Reshape", "Select"]


class Reshape(Operation):
    """The same entries in another shape."""

    elementwise = True

    @override
    def interval(self, node: Node, inputs: Sequence[Box]) -> Box:
        return Box(*(t.reshape(-1, *node.shape) for t in inputs[0]))

    @override
    def prepare(self, node: Node, inputs: Sequence[Box], alpha: Tensor | None = None) -> tuple[int, ...]:
        return tuple(inputs[0].lower.shape[1:])

    @override
    def pull(self, node: Node, a: Tensor, prepared: tuple[int, ...]) -> Pull:
        return [a.reshape(*a.shape[:2], *prepared)], None


class Permute(Operation):
    """Dimensions in another order."""

    elementwise = True

    @override
    def interval(self, node: Node, inputs: Sequence[Box]) -> Box:
        return Box(*(t.permute(0, *(d + 1 for d in node.attributes["dims"])) for t in inputs[0]))

    @override
    def pull(self, node: Node, a: Tensor, prepared: Any) -> Pull:
        dims = node.attributes["dims"]
        back = sorted(range(len(dims)), key=lambda i: dims[i])
        return [a.permute(0, 1, *(d + 2 for d in back))], None


class Select(Operation):
    """Some positions along a dimension, repeats allowed."""

    @override
    def interval(self, node: Node, inputs: Sequence[Box]) -> Box:
        return Box(*(t.index_select(node.attributes["dim"] + 1, node.tensors["index"]) for t in inputs[0]))

    @override
    def size(self, node: Node, inputs: Sequence[Box], output: Box) -> Tensor:
        """Coefficients of an entry that is selected twice are added."""
        return output.magnitude

    @override
    def prepare(self, node: Node, inputs: Sequence[Box], alpha: Tensor | None = None) -> tuple[int, ...]:
        return tuple(inputs[0].lower.shape[1:])

    @override
    def pull(self, node: Node, a: Tensor, prepared: tuple[int, ...]) -> Pull:
        back = a.new_zeros(*a.shape[:2], *prepared)
        return [back.index_add(node.attributes["dim"] + 2, node.tensors["index"], a)], None


class Pad(Operation):
    """Zeros around the entries."""

    @override
    def interval(self, node: Node, inputs: Sequence[Box]) -> Box:
        sides = [side for pair in reversed(node.attributes["pads"]) for side in pair]
        return Box(*(F.pad(t, sides) for t in inputs[0]))

    @override
    def pull(self, node: Node, a: Tensor, prepared: Any) -> Pull:
        inner = [
            slice(before, size - after)
            for (before, after), size in zip(node.attributes["pads"], node.shape, strict=True)
        ]
        return [a[(slice(None), slice(None), *inner)]], None


class Concat(Operation):
    """Several values after one another along a dimension."""

    @override
    def interval(self, node: Node, inputs: Sequence[Box]) -> Box:
        dim = node.attributes["dim"] + 1
        return Box(torch.cat([b.lower for b in inputs], dim), torch.cat([b.upper for b in inputs], dim))

    @override
    def prepare(self, node: Node, inputs: Sequence[Box], alpha: Tensor | None = None) -> list[int]:
        return [b.lower.shape[node.attributes["dim"] + 1] for b in inputs]

    @override
    def pull(self, node: Node, a: Tensor, prepared: list[int]) -> Pull:
        return torch.split(a, prepared, node.attributes["dim"] + 2), None
