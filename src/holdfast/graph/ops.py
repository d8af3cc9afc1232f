"""The vocabulary of the graph: what each operation computes. Their bounds stand in `holdfast.certify.bounds`.

Shapes and dimensions never count the batch: dimension 0 of an attribute is the first feature dimension.

==============  ==========================================  =======================================================
operation       tensors                                     attributes
==============  ==========================================  =======================================================
input
linear          weight (out, in), bias? (out,)              acts on the last dimension
conv            weight (out, in/groups, \\*k), bias? (out,)   stride, padding, dilation (a tuple each), groups
affine          scale?, shift? (broadcastable)              ``x * scale + shift``
relu                                                        ``max(x, 0)``
leaky_relu                                                  slope, in [0, 1]
sigmoid, tanh
softmax                                                     dim
add, sub                                                    of two nodes
reshape                                                     shape
permute                                                     dims
select          index (k,)                                  dim
pad                                                         pads: (before, after) for each dimension, with zeros
concat                                                      dim
max_pool                                                    kernel, stride, padding, dilation (a tuple each), ceil
mean                                                        dims (kept, with size 1)
==============  ==========================================  =======================================================

An average pool is a `conv` whose groups are the channels; a batch norm is an `affine`; a clip is made of two `relu`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["OPERATIONS", "compute"]

Tensors = Mapping[str, Tensor]
Attributes = Mapping[str, Any]
_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def _affine(x: Tensor, t: Tensors) -> Tensor:
    x = x * t["scale"] if "scale" in t else x
    return x + t["shift"] if "shift" in t else x


def _conv(x: Tensor, t: Tensors, a: Attributes) -> Tensor:
    return _CONV[len(a["stride"])](x, t["weight"], t.get("bias"), a["stride"], a["padding"], a["dilation"], a["groups"])


def _max_pool(x: Tensor, a: Attributes) -> Tensor:
    return _MAX_POOL[len(a["kernel"])](x, a["kernel"], a["stride"], a["padding"], a["dilation"], a["ceil"])


def _pad(x: Tensor, a: Attributes) -> Tensor:
    return F.pad(x, [side for pair in reversed(a["pads"]) for side in pair])


OPERATIONS: dict[str, Callable[[Sequence[Tensor], Tensors, Attributes], Tensor]] = {
    "linear": lambda x, t, a: F.linear(x[0], t["weight"], t.get("bias")),
    "conv": lambda x, t, a: _conv(x[0], t, a),
    "affine": lambda x, t, a: _affine(x[0], t),
    "relu": lambda x, t, a: F.relu(x[0]),
    "leaky_relu": lambda x, t, a: F.leaky_relu(x[0], a["slope"]),
    "sigmoid": lambda x, t, a: torch.sigmoid(x[0]),
    "tanh": lambda x, t, a: torch.tanh(x[0]),
    "softmax": lambda x, t, a: torch.softmax(x[0], a["dim"] + 1),
    "add": lambda x, t, a: x[0] + x[1],
    "sub": lambda x, t, a: x[0] - x[1],
    "reshape": lambda x, t, a: x[0].reshape(-1, *a["shape"]),
    "permute": lambda x, t, a: x[0].permute(0, *(d + 1 for d in a["dims"])),
    "select": lambda x, t, a: x[0].index_select(a["dim"] + 1, t["index"]),
    "pad": lambda x, t, a: _pad(x[0], a),
    "concat": lambda x, t, a: torch.cat(list(x), a["dim"] + 1),
    "max_pool": lambda x, t, a: _max_pool(x[0], a),
    "mean": lambda x, t, a: x[0].mean([d + 1 for d in a["dims"]], keepdim=True),
}


def compute(op: str, inputs: Sequence[Tensor], tensors: Tensors, attributes: Attributes) -> Tensor:
    """The value of one operation.

    Args:
        op: a name of the vocabulary other than ``input``.
        inputs: the values of its input nodes, each (n, \\*features).
        tensors: its constants.
        attributes: its attributes.

    Example:
        >>> compute("mean", [torch.tensor([[1.0, 3.0]])], {}, {"dims": (0,)})
        tensor([[2.]])
    """
    return OPERATIONS[op](inputs, tensors, attributes)
