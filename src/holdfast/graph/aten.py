"""The ATen calls that the graph knows."""

from __future__ import annotations

import torch
from torch import fx

from holdfast.graph.aten_call import Handler, call_name
from holdfast.graph.aten_images import IMAGES
from holdfast.graph.aten_shapes import SHAPES
from holdfast.graph.aten_values import VALUES

__all__ = ["CALLS", "WHOLE", "known"]

CALLS: dict[str, Handler] = {**VALUES, **SHAPES, **IMAGES}

WHOLE = frozenset(
    (
        "view", "_unsafe_view", "reshape", "flatten", "squeeze", "unsqueeze", "unflatten", "view_as", "permute", "numpy_T",
        "transpose", "swapaxes", "t", "expand", "expand_as", "broadcast_to", "repeat", "tile", "flip", "roll",
        "repeat_interleave", "index", "split", "split_with_sizes", "chunk", "unbind", "slice", "select", "index_select",
        "contiguous", "clone", "detach", "alias", "lift_fresh_copy", "to", "_to_copy", "embedding",
    )
)  # fmt: skip
"""Calls that serve whole numbers as they serve real ones: they move them, or look them up."""


def known(node: fx.Node) -> bool:
    """Whether the graph knows a call."""
    return call_name(node) in {*CALLS, "getitem"} or isinstance(node.meta.get("val"), torch.SymInt | int)
