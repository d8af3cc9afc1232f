"""What values are at least, exactly: sums and products of what is not negative are not negative, however they round."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from holdfast.certifiers.propagation.region import Box
from holdfast.graph.model import Node

__all__ = ["entries_floor", "samples_floor", "sums_floor"]


def sums_floor(node: Node, inputs: Sequence[Box]) -> Tensor:
    """0 for the samples whose values, and all weights, are not negative; -inf for the others: (n, 1, ..., 1)."""
    least = torch.stack([node.tensors[name].amin() for name in ("weight", "bias") if name in node.tensors]).amin()
    return samples_floor(node, inputs, least >= 0)


def samples_floor(node: Node, inputs: Sequence[Box], more: Tensor | None = None) -> Tensor:
    """0 for the samples whose values are not negative (and where ``more`` holds), -inf for the others."""
    whole = torch.stack([box.lower.flatten(1).amin(1) >= 0 for box in inputs]).all(0)
    whole = whole if more is None else whole & more
    return torch.where(whole, 0.0, -torch.inf).to(inputs[0].lower).view(-1, *(1,) * len(node.shape))


def entries_floor(*parts: Tensor) -> Tensor:
    """0 where all parts are at least 0, -inf elsewhere."""
    least = parts[0]
    for part in parts[1:]:
        least = torch.minimum(least, part)
    return torch.where(least >= 0, 0.0, -torch.inf).to(least)
