"""Rows of a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.certifiers.propagation.operation import Operation, Pull
from holdfast.certifiers.propagation.region import Box
from holdfast.graph.model import Node

__all__ = ["Embedding"]


class _Rows(NamedTuple):
    """The least and largest entries of the rows in range, and the input's shape."""

    lower: Tensor
    upper: Tensor
    shape: tuple[int, ...]


class Embedding(Operation):
    """Rows of a table, chosen by numbers without their fraction; bounds are those of all rows in range.

    An end of the box that lies within two roundings of a whole number is that number.
    """

    linear = False

    @override
    def interval(self, node: Node, inputs: Sequence[Box]) -> Box:
        weight, (low, high) = node.tensors["weight"], inputs[0]
        ends = torch.stack([low, high]).flatten(1).double()
        whole = ends.round()
        ends = torch.where((ends - whole).abs() <= 4e-16 * whole.abs().clamp(min=1), whole, ends.trunc())
        known = (ends >= 0).all(0) & (ends < len(weight)).all(0)
        first, last = torch.where(known, ends, 0.0).long()
        # rows of boxes that are points are looked up at once, the others one by one
        lower, upper = list(weight[first]), list(weight[last])
        for i, known_here in enumerate(known):
            if known_here and first[i] == last[i]:
                continue
            rows = weight[first[i] : last[i] + 1]
            lower[i] = rows.amin(0) if known_here else torch.full_like(rows[0], -torch.inf)
            upper[i] = rows.amax(0) if known_here else torch.full_like(rows[0], torch.inf)
        shape = (len(low), *node.shape)
        return Box(torch.stack(lower).view(shape), torch.stack(upper).view(shape))

    @override
    def prepare(self, node: Node, inputs: Sequence[Box], alpha: Tensor | None = None) -> _Rows:
        return _Rows(*self.interval(node, inputs), tuple(inputs[0].lower.shape[1:]))

    @override
    def size(self, node: Node, inputs: Sequence[Box], output: Box) -> Tensor:
        return output.magnitude

    @override
    def pull(self, node: Node, a: Tensor, prepared: _Rows) -> Pull:
        """Level: the input has no part in the result but through the range of rows."""
        negative = a.clamp(max=0)
        constant = ((a - negative) * prepared.lower + negative * prepared.upper).flatten(2).sum(2)
        return [a.new_zeros(*a.shape[:2], *prepared.shape)], constant
