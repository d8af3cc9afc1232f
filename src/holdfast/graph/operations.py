"""The vocabulary of the graph: one entry an operation says what it computes, its shape, and how it rounds.

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

A plug-in adds an operation with `define`; what bounds know about it stands in `holdfast.certifiers.propagation.table`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

import torch
from torch import Tensor
from torch.nn import functional as F

from holdfast.core.errors import UsageError
from holdfast.graph import shapes
from holdfast.graph.shapes import Attributes, Shape, Tensors

__all__ = ["OPERATIONS", "Definition", "Rounding", "compute", "define", "definition", "shape_of"]

Compute = Callable[[Sequence[Tensor], Tensors, Attributes], Tensor]
_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


class Rounding(Enum):
    """How an operation rounds when a network runs."""

    EXACT = auto()
    """Values are moved, left out, compared or have their signs changed."""
    STEP = auto()
    """Exact, but it jumps: what rounding did to its argument decides on which side."""
    LOOK_UP = auto()
    """A constant is looked up, by whole numbers."""
    SUM_OF_PRODUCTS = auto()
    """Sums of products, in any order, of values with constants or of two values with each other."""
    ULPS = auto()
    """A function of one variable, within 16 unit roundoffs of its value, with slopes of at most 1.2 near 0, so that what is
    flushed to zero there costs no more; those that lose more stand in `holdfast.certifiers.propagation.function_errors`."""
    UNKNOWN = auto()
    """Nothing is known: the network as it runs is refused by name, in real numbers it is served."""


def _few_products(inputs: Sequence[Shape], t: Tensors, a: Attributes) -> int:
    return 2


@dataclass(frozen=True, kw_only=True)
class Definition:
    """One operation.

    Attributes:
        compute: from the values of its inputs (n, \\*features), its constants and attributes to its value.
        shape: the shape of that for one sample, or None where inputs of these shapes do not fit.
        rounding: how it rounds.
        linear: it is an affine function of its inputs.
        factor: the constant that values are multiplied by, if it is a layer ``factor * x + addend``.
        addend: the constant that is added then.
        channel_dim: the dimension of ``factor`` that counts output channels.
        products: how many products are summed into one entry, with the addend, from the shapes of the inputs, the constants
            and the attributes.
        magnitudes: what bounds the magnitudes of all that is added up, from magnitudes; None: ``compute``.
        sums_in_type: narrow floats are summed in their own type, where other operations take float32.
        total: it is defined for all numbers.
        monotone: a function of one variable that nowhere turns, on each side of where it is not defined.
        bend: the argument at which it bends or jumps (``threshold`` among the attributes instead), if it does at one.
    """

    compute: Compute
    shape: Callable[[Sequence[Shape], Tensors, Attributes], Shape | None] = shapes.same
    rounding: Rounding = Rounding.UNKNOWN
    linear: bool = False
    factor: str | None = None
    addend: str | None = None
    channel_dim: int = 0
    products: Callable[[Sequence[Shape], Tensors, Attributes], int] = _few_products
    magnitudes: Compute | None = None
    sums_in_type: bool = False
    total: bool = True
    monotone: bool = False
    bend: float | None = None


def _affine(x: Sequence[Tensor], t: Tensors, a: Attributes) -> Tensor:
    value = x[0] * t["scale"] if "scale" in t else x[0]
    return value + t["shift"] if "shift" in t else value


def _conv(x: Sequence[Tensor], t: Tensors, a: Attributes) -> Tensor:
    run = _CONV[len(a["stride"])]
    return run(x[0], t["weight"], t.get("bias"), a["stride"], a["padding"], a["dilation"], a["groups"])


def _conv_transpose(x: Sequence[Tensor], t: Tensors, a: Attributes) -> Tensor:
    padding, output_padding = a["padding"], a["output_padding"]
    run = _CONV_TRANSPOSE[len(a["stride"])]
    return run(x[0], t["weight"], t.get("bias"), a["stride"], padding, output_padding, a["groups"], a["dilation"])


def _max_pool(x: Sequence[Tensor], t: Tensors, a: Attributes) -> Tensor:
    return _MAX_POOL[len(a["kernel"])](x[0], a["kernel"], a["stride"], a["padding"], a["dilation"], a["ceil"])


def _pad(x: Sequence[Tensor], t: Tensors, a: Attributes) -> Tensor:
    return F.pad(x[0], [side for pair in reversed(a["pads"]) for side in pair])


def _row_products(inputs: Sequence[Shape], t: Tensors, a: Attributes) -> int:
    return torch.Size(t["weight"].shape[1:]).numel() + 1


def _transposed_products(inputs: Sequence[Shape], t: Tensors, a: Attributes) -> int:
    weight = t["weight"]
    return weight.shape[0] // int(a["groups"]) * torch.Size(weight.shape[2:]).numel() + 1


def _mean_products(inputs: Sequence[Shape], t: Tensors, a: Attributes) -> int:
    dims: Sequence[int] = a["dims"]
    return torch.Size([inputs[0][d] for d in dims]).numel() + 1


def _function(compute: Compute, *, total: bool = True, monotone: bool = False, bend: float | None = None) -> Definition:
    """A function of one variable, entry by entry."""
    return Definition(compute=compute, rounding=Rounding.ULPS, total=total, monotone=monotone, bend=bend)


OPERATIONS: dict[str, Definition] = {
    "linear": Definition(
        compute=lambda x, t, a: F.linear(x[0], t["weight"], t.get("bias")),
        shape=shapes.mapped,
        rounding=Rounding.SUM_OF_PRODUCTS,
        linear=True,
        factor="weight",
        addend="bias",
        products=_row_products,
    ),
    "conv": Definition(
        compute=_conv,
        shape=shapes.convolved,
        rounding=Rounding.SUM_OF_PRODUCTS,
        linear=True,
        factor="weight",
        addend="bias",
        products=_row_products,
    ),
    "conv_transpose": Definition(
        compute=_conv_transpose,
        shape=shapes.convolved_back,
        rounding=Rounding.SUM_OF_PRODUCTS,
        linear=True,
        factor="weight",
        addend="bias",
        channel_dim=1,
        products=_transposed_products,
        sums_in_type=True,
    ),
    "affine": Definition(
        compute=_affine,
        shape=shapes.scaled,
        rounding=Rounding.SUM_OF_PRODUCTS,
        linear=True,
        factor="scale",
        addend="shift",
    ),
    "add": Definition(
        compute=lambda x, t, a: x[0] + x[1], shape=shapes.added, rounding=Rounding.SUM_OF_PRODUCTS, linear=True
    ),
    "sub": Definition(
        compute=lambda x, t, a: x[0] - x[1],
        shape=shapes.added,
        rounding=Rounding.SUM_OF_PRODUCTS,
        linear=True,
        magnitudes=lambda x, t, a: x[0] + x[1],
    ),
    "mean": Definition(
        compute=lambda x, t, a: x[0].mean([d + 1 for d in a["dims"]], keepdim=True),
        shape=shapes.reduced,
        rounding=Rounding.SUM_OF_PRODUCTS,
        linear=True,
        products=_mean_products,
    ),
    "mul": Definition(compute=lambda x, t, a: x[0] * x[1], shape=shapes.added, rounding=Rounding.SUM_OF_PRODUCTS),
    "matmul": Definition(
        compute=lambda x, t, a: torch.matmul(x[0], x[1]),
        shape=shapes.multiplied,
        rounding=Rounding.SUM_OF_PRODUCTS,
        products=lambda inputs, t, a: inputs[0][-1],
    ),
    "embedding": Definition(
        compute=lambda x, t, a: F.embedding(x[0].long(), t["weight"]),
        shape=shapes.looked_up,
        rounding=Rounding.LOOK_UP,
    ),
    "reshape": Definition(
        compute=lambda x, t, a: x[0].reshape(-1, *a["shape"]),
        shape=shapes.reshaped,
        rounding=Rounding.EXACT,
        linear=True,
    ),
    "permute": Definition(
        compute=lambda x, t, a: x[0].permute(0, *(d + 1 for d in a["dims"])),
        shape=shapes.permuted,
        rounding=Rounding.EXACT,
        linear=True,
    ),
    "select": Definition(
        compute=lambda x, t, a: x[0].index_select(a["dim"] + 1, t["index"]),
        shape=shapes.selected,
        rounding=Rounding.EXACT,
        linear=True,
    ),
    "pad": Definition(compute=_pad, shape=shapes.padded, rounding=Rounding.EXACT, linear=True),
    "concat": Definition(
        compute=lambda x, t, a: torch.cat(list(x), a["dim"] + 1),
        shape=shapes.concatenated,
        rounding=Rounding.EXACT,
        linear=True,
    ),
    "max_pool": Definition(compute=_max_pool, shape=shapes.pooled, rounding=Rounding.EXACT),
    "relu": Definition(compute=lambda x, t, a: F.relu(x[0]), rounding=Rounding.EXACT, bend=0.0),
    "abs": Definition(compute=lambda x, t, a: torch.abs(x[0]), rounding=Rounding.EXACT, bend=0.0),
    "sign": Definition(compute=lambda x, t, a: torch.sign(x[0]), rounding=Rounding.STEP, monotone=True, bend=0.0),
    "leaky_relu": Definition(
        compute=lambda x, t, a: F.leaky_relu(x[0], a["slope"]), rounding=Rounding.SUM_OF_PRODUCTS, bend=0.0
    ),
    "elu": _function(lambda x, t, a: F.elu(x[0], a["alpha"]), monotone=True, bend=0.0),
    "gelu": _function(lambda x, t, a: F.gelu(x[0], approximate=a["approximate"])),
    "power": _function(lambda x, t, a: torch.pow(x[0], a["exponent"]), total=False),
    "sigmoid": _function(lambda x, t, a: torch.sigmoid(x[0]), monotone=True),
    "tanh": _function(lambda x, t, a: torch.tanh(x[0]), monotone=True),
    "silu": _function(lambda x, t, a: F.silu(x[0])),
    # without a threshold of its own: exp(-40) is nothing even in float64
    "softplus": _function(
        lambda x, t, a: F.softplus(x[0], threshold=min(a.get("threshold", 40.0), 40.0)), monotone=True, bend=20.0
    ),
    "erf": _function(lambda x, t, a: torch.erf(x[0]), monotone=True),
    "exp": _function(lambda x, t, a: torch.exp(x[0]), monotone=True),
    "log": _function(lambda x, t, a: torch.log(x[0]), total=False, monotone=True),
    "sin": _function(lambda x, t, a: torch.sin(x[0])),
    "cos": _function(lambda x, t, a: torch.cos(x[0])),
    "sqrt": _function(lambda x, t, a: torch.sqrt(x[0]), total=False, monotone=True),
    "reciprocal": _function(lambda x, t, a: torch.reciprocal(x[0]), total=False, monotone=True),
    "softmax": Definition(compute=lambda x, t, a: torch.softmax(x[0], a["dim"] + 1)),
}
"""What each operation is, by its name in the graph."""


def define(name: str, operation: Definition) -> None:
    """Adds an operation to the vocabulary, for a plug-in.

    Bounds of it are a second entry (`holdfast.certifiers.propagation.table.define_bounds`); without one it is refused by name
    wherever bounds are asked for.

    Args:
        name: what nodes call it.
        operation: what it is.

    Raises:
        UsageError: there is an operation of that name.

    Example:
        >>> define("relu", Definition(compute=lambda x, t, a: x[0].clamp(min=0)))
        Traceback (most recent call last):
        ...
        holdfast.core.errors.UsageError: the graph has an operation 'relu'; give the new one another name
    """
    if name in OPERATIONS or name == "input":
        raise UsageError(f"the graph has an operation '{name}'; give the new one another name")
    OPERATIONS[name] = operation


def definition(name: str) -> Definition:
    """What an operation is.

    Raises:
        UsageError: nobody has defined it.

    Example:
        >>> definition("quantum_gate")
        Traceback (most recent call last):
        ...
        holdfast.core.errors.UsageError: the graph has no operation 'quantum_gate'; a plug-in may define it
    """
    if name not in OPERATIONS:
        raise UsageError(f"the graph has no operation '{name}'; a plug-in may define it")
    return OPERATIONS[name]


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
    return definition(op).compute(inputs, tensors, attributes)


def shape_of(op: str, inputs: Sequence[Shape], tensors: Tensors, attributes: Attributes) -> Shape:
    """The shape of what `compute` gives for one sample, without running it.

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
    shape = definition(op).shape(inputs, tensors, attributes)
    if shape is None or any(size < 1 for size in shape):
        given = ", ".join(str(tuple(t.shape)) for k, t in tensors.items() if k != "size")
        raise ValueError(f"'{op}' of values of shapes {list(inputs)} with constants of shapes [{given}]")
    return shape
