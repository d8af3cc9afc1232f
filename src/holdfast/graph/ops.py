"""The vocabulary of the graph: what each operation computes. Their bounds stand in `holdfast.certifiers.bounds`.

Shapes and dimensions never count the batch: dimension 0 of an attribute is the first feature dimension.

==================  ==========================================  ===================================================
operation           tensors                                     attributes
==================  ==========================================  ===================================================
input
linear              weight (out, in), bias? (out,)              acts on the last dimension
conv                weight (out, in/groups, \\*k), bias? (out,)   stride, padding, dilation (a tuple each), groups
conv_transpose      weight (in, out/groups, \\*k), bias? (out,)   stride, padding, output_padding, dilation, groups
affine              scale?, shift? (broadcastable)              ``x * scale + shift``
relu                                                            ``max(x, 0)``
leaky_relu                                                      slope, in [0, 1]
elu                                                             alpha: ``x`` or, below 0, ``alpha * (exp(x) - 1)``
gelu                                                            approximate: "none" or "tanh"
power                                                           exponent (a float)
softplus                                                        threshold?: ``log(1 + exp(x))``, or x beyond it
sigmoid, tanh, silu, erf, exp, log, sin, cos, sqrt, reciprocal, abs, sign: of one node, without attributes
softmax                                                         dim
add, sub, mul                                                   of two nodes of the same shape
matmul                                                          of two nodes (\\*b, m, k) and (\\*b, k, n), the same b
embedding           weight (v, e)                               rows of weight: (\\*s) whole numbers to (\\*s, e)
reshape                                                         shape
permute                                                         dims
select              index (k,)                                  dim; an index may repeat (that is how values expand)
pad                                                             pads: (before, after) by dimension, with zeros
concat                                                          dim
max_pool                                                        kernel, stride, padding, dilation (tuples), ceil
mean                                                            dims (kept, with size 1)
==================  ==========================================  ===================================================

What is made of these: an average pool is a `conv` whose groups are the channels, a batch norm an `affine`, a clip two
`relu`, a maximum ``y + relu(x - y)``, a division ``mul`` with a ``reciprocal``, a sum a `mean` times its count, a layer
norm `mean`, `sub`, `power`, `sqrt`, `reciprocal` and `mul`, nearest upsampling a `select`, linear upsampling a
`linear` along each dimension, and a constant beside a value in a concatenation a `pad` and an `affine`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["OPERATIONS", "broadcast", "compute", "shape_of"]

Tensors = Mapping[str, Tensor]
Attributes = Mapping[str, Any]
_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def _affine(x: Tensor, t: Tensors) -> Tensor:
    x = x * t["scale"] if "scale" in t else x
    return x + t["shift"] if "shift" in t else x


def _conv(x: Tensor, t: Tensors, a: Attributes) -> Tensor:
    return _CONV[len(a["stride"])](x, t["weight"], t.get("bias"), a["stride"], a["padding"], a["dilation"], a["groups"])


def _conv_transpose(x: Tensor, t: Tensors, a: Attributes) -> Tensor:
    padding, output_padding = a["padding"], a["output_padding"]
    run = _CONV_TRANSPOSE[len(a["stride"])]
    return run(x, t["weight"], t.get("bias"), a["stride"], padding, output_padding, a["groups"], a["dilation"])


def _max_pool(x: Tensor, a: Attributes) -> Tensor:
    return _MAX_POOL[len(a["kernel"])](x, a["kernel"], a["stride"], a["padding"], a["dilation"], a["ceil"])


def _pad(x: Tensor, a: Attributes) -> Tensor:
    return F.pad(x, [side for pair in reversed(a["pads"]) for side in pair])


OPERATIONS: dict[str, Callable[[Sequence[Tensor], Tensors, Attributes], Tensor]] = {
    "linear": lambda x, t, a: F.linear(x[0], t["weight"], t.get("bias")),
    "conv": lambda x, t, a: _conv(x[0], t, a),
    "conv_transpose": lambda x, t, a: _conv_transpose(x[0], t, a),
    "affine": lambda x, t, a: _affine(x[0], t),
    "relu": lambda x, t, a: F.relu(x[0]),
    "leaky_relu": lambda x, t, a: F.leaky_relu(x[0], a["slope"]),
    "elu": lambda x, t, a: F.elu(x[0], a["alpha"]),
    "gelu": lambda x, t, a: F.gelu(x[0], approximate=a["approximate"]),
    "power": lambda x, t, a: torch.pow(x[0], a["exponent"]),
    "sigmoid": lambda x, t, a: torch.sigmoid(x[0]),
    "tanh": lambda x, t, a: torch.tanh(x[0]),
    "silu": lambda x, t, a: F.silu(x[0]),
    # without a threshold of its own: exp(-40) is nothing even in float64
    "softplus": lambda x, t, a: F.softplus(x[0], threshold=min(a.get("threshold", 40.0), 40.0)),
    "erf": lambda x, t, a: torch.erf(x[0]),
    "exp": lambda x, t, a: torch.exp(x[0]),
    "log": lambda x, t, a: torch.log(x[0]),
    "sin": lambda x, t, a: torch.sin(x[0]),
    "cos": lambda x, t, a: torch.cos(x[0]),
    "sqrt": lambda x, t, a: torch.sqrt(x[0]),
    "reciprocal": lambda x, t, a: torch.reciprocal(x[0]),
    "abs": lambda x, t, a: torch.abs(x[0]),
    "sign": lambda x, t, a: torch.sign(x[0]),
    "softmax": lambda x, t, a: torch.softmax(x[0], a["dim"] + 1),
    "add": lambda x, t, a: x[0] + x[1],
    "sub": lambda x, t, a: x[0] - x[1],
    "mul": lambda x, t, a: x[0] * x[1],
    "matmul": lambda x, t, a: torch.matmul(x[0], x[1]),
    "embedding": lambda x, t, a: F.embedding(x[0].long(), t["weight"]),
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


def broadcast(*shapes: Sequence[int]) -> tuple[int, ...]:
    """The common shape of values that broadcast (PyTorch's own function takes it seconds of imports).

    Raises:
        ValueError: they do not.

    Example:
        >>> broadcast((2, 1), (3,))
        (2, 3)
    """
    rank = max(len(shape) for shape in shapes)
    columns = zip(*((1,) * (rank - len(shape)) + tuple(shape) for shape in shapes), strict=True)
    sizes = [{s for s in column if s != 1} or {1} for column in columns]
    if any(len(found) > 1 for found in sizes):
        raise ValueError(f"shapes {[tuple(shape) for shape in shapes]} do not broadcast")
    return tuple(found.pop() for found in sizes)


def shape_of(op: str, inputs: Sequence[tuple[int, ...]], tensors: Tensors, attributes: Attributes) -> tuple[int, ...]:
    """The shape of what `compute` gives for one sample, without running it (a first run on tensors without storage
    takes PyTorch seconds of imports).

    Args:
        op: a name of the vocabulary other than ``input``.
        inputs: the shapes of its input nodes.
        tensors: its constants.
        attributes: its attributes.

    Raises:
        ValueError: the operation cannot have inputs of these shapes.

    Example:
        >>> shape_of("mean", [(3, 4)], {}, {"dims": (1,)})
        (3, 1)
    """
    x, a = inputs[0], attributes
    fits, shape = True, x
    if op == "linear":
        fits, shape = x[-1:] == tensors["weight"].shape[1:], (*x[:-1], len(tensors["weight"]))
    elif op in ("conv", "conv_transpose", "max_pool"):
        fits, shape = _windows(op, x, tensors, a)
    elif op in ("add", "sub", "mul"):
        fits = x == inputs[1]
    elif op == "affine":
        fits = all(len(t.shape) <= len(x) and broadcast(t.shape, x) == x for t in tensors.values())
    elif op == "matmul":
        y = inputs[1]
        fits, shape = len(x) > 1 and x[:-2] == y[:-2] and x[-1] == y[-2], (*x[:-1], y[-1])
    elif op == "embedding":
        shape = (*x, tensors["weight"].shape[1])
    elif op == "reshape":
        fits, shape = torch.Size(x).numel() == torch.Size(a["shape"]).numel(), tuple(a["shape"])
    elif op == "permute":
        fits, shape = sorted(a["dims"]) == list(range(len(x))), tuple(x[d] for d in a["dims"])
    elif op == "select":
        shape = (*x[: a["dim"]], len(tensors["index"]), *x[a["dim"] + 1 :])
    elif op == "pad":
        shape = tuple(s + before + after for s, (before, after) in zip(x, a["pads"], strict=True))
    elif op == "concat":
        d = a["dim"]
        fits = all(y[:d] + y[d + 1 :] == x[:d] + x[d + 1 :] for y in inputs)
        shape = (*x[:d], sum(y[d] for y in inputs), *x[d + 1 :])
    elif op == "mean":
        shape = tuple(1 if d in a["dims"] else s for d, s in enumerate(x))
    if not fits or any(s < 1 for s in shape):
        given = ", ".join(str(tuple(t.shape)) for k, t in tensors.items() if k != "size")
        raise ValueError(f"'{op}' of values of shapes {list(inputs)} with constants of shapes [{given}]")
    return tuple(shape)


def _windows(op: str, x: tuple[int, ...], t: Tensors, a: Attributes) -> tuple[bool, tuple[int, ...]]:
    """Whether an operation of windows fits a value, and the shape of its result."""
    kernel = a["kernel"] if op == "max_pool" else tuple(t["weight"].shape[2:])
    sizes: list[int] = []
    for i, (s, k) in enumerate(zip(x[1:], kernel, strict=True)):
        stride, padding, reach = a["stride"][i], a["padding"][i], a["dilation"][i] * (k - 1) + 1
        if op == "conv_transpose":
            sizes.append((s - 1) * stride - 2 * padding + reach + a["output_padding"][i])
            continue
        room = s + 2 * padding - reach
        size = (-(-room // stride) if a.get("ceil", False) else room // stride) + 1
        sizes.append(size - 1 if a.get("ceil", False) and (size - 1) * stride >= s + padding else size)
    if op == "max_pool":
        return True, (x[0], *sizes)
    if op == "conv":
        return x[0] == t["weight"].shape[1] * a["groups"], (t["weight"].shape[0], *sizes)
    return x[0] == t["weight"].shape[0], (t["weight"].shape[1] * a["groups"], *sizes)
