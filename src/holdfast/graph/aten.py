"""The ATen calls that the graph knows."""

from __future__ import annotations

import torch
from torch import fx

from holdfast.graph.aten_reader import Handler, call_name
from holdfast.graph.aten_shapes import SHAPES
from holdfast.graph.aten_values import VALUES

__all__ = ["CALLS", "known"]

CALLS: dict[str, Handler] = {**VALUES, **SHAPES}


def known(node: fx.Node) -> bool:
    """Whether the graph knows a call."""
    return call_name(node) in CALLS or isinstance(node.meta.get("val"), torch.SymInt | int)
