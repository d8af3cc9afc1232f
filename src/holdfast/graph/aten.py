"""The calls of PyTorch that the graph knows."""

from __future__ import annotations

import torch
from torch import fx

from holdfast.core.errors import UsageError
from holdfast.graph.aten_call import Handler, call_name
from holdfast.graph.aten_images import IMAGES
from holdfast.graph.aten_shapes import SHAPES
from holdfast.graph.aten_values import VALUES
from holdfast.graph.stepwise import STEPWISE

__all__ = ["CALLS", "WHOLE", "define_call", "known"]

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


def define_call(name: str, handler: Handler, *, stepwise: bool = False) -> None:
    """Adds how a call of PyTorch is read, for a plug-in.

    The operation that it becomes is one of the vocabulary, or one's own (`holdfast.graph.operations.define`).

    Args:
        name: of the call: ``atan`` for ``torch.atan``, ``mine::squash`` for an operation of ``torch.library``.
        handler: builds the nodes: ``c.b`` is the builder, ``c.x`` the first argument, ``c.number("scale")`` a number by the
            name in the schema; what it does not read and the model sets is refused.
        stepwise: the call computes what these nodes compute, step by step or in finer steps, so that they say how it rounds.
            Otherwise a model with it is served in real numbers and refused as it runs.

    Raises:
        UsageError: the call is known.

    Example:
        >>> define_call("tanh", lambda c: c.b.unary("tanh", c.x))
        Traceback (most recent call last):
        ...
        holdfast.core.errors.UsageError: the call 'tanh' is read already; give an operation of your own another name
    """
    if name in CALLS or name == "getitem":
        raise UsageError(f"the call '{name}' is read already; give an operation of your own another name")
    CALLS[name] = handler
    if stepwise:
        STEPWISE.add(name)


def known(node: fx.Node) -> bool:
    """Whether the graph knows a call."""
    return call_name(node) in {*CALLS, "getitem"} or isinstance(node.meta.get("val"), torch.SymInt | int)
