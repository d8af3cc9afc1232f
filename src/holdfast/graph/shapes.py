"""Shapes of what operations give for one sample, without running them; see `holdfast.graph.operations`.

Each function takes the shapes of the inputs, the constants and the attributes, and returns None where they do not fit. A
first run on tensors without storage would take PyTorch seconds of imports.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

__all__ = [
    "Attributes", "Shape", "Tensors", "added", "broadcast", "concatenated", "convolved", "convolved_back", "looked_up",
    "mapped", "multiplied", "padded", "permuted", "pooled", "reduced", "reshaped", "same", "scaled", "selected",
]  # fmt: skip

Shape = tuple[int, ...]
Tensors = Mapping[str, Tensor]
Attributes = Mapping[str, Any]


def broadcast(*shapes: Sequence[int]) -> Shape:
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
    if any(len(several) > 1 for several in sizes):
        raise ValueError(f"shapes {[tuple(shape) for shape in shapes]} do not broadcast")
    return tuple(own.pop() for own in sizes)


def same(inputs: Sequence[Shape], t: Tensors, a: Attributes) -> Shape | None:
    """That of the first input."""
    return inputs[0]


def mapped(inputs: Sequence[Shape], t: Tensors, a: Attributes) -> Shape | None:
    """A matrix on the last dimension."""
    x, weight = inputs[0], t["weight"]
    return (*x[:-1], len(weight)) if x[-1:] == weight.shape[1:] else None


def scaled(inputs: Sequence[Shape], t: Tensors, a: Attributes) -> Shape | None:
    """Constants that broadcast to the value."""
    x = inputs[0]
    return x if all(len(c.shape) <= len(x) and broadcast(c.shape, x) == x for c in t.values()) else None


def added(inputs: Sequence[Shape], t: Tensors, a: Attributes) -> Shape | None:
    """Two values of one shape."""
    return inputs[0] if inputs[0] == inputs[1] else None


def multiplied(inputs: Sequence[Shape], t: Tensors, a: Attributes) -> Shape | None:
    """A matrix product of two values."""
    x, y = inputs
    fits = len(x) > 1 and x[:-2] == y[:-2] and x[-1] == y[-2]
    return (*x[:-1], y[-1]) if fits else None


def looked_up(inputs: Sequence[Shape], t: Tensors, a: Attributes) -> Shape | None:
    """A row of a table for each entry."""
    return (*inputs[0], t["weight"].shape[1])


def reshaped(inputs: Sequence[Shape], t: Tensors, a: Attributes) -> Shape | None:
    """The shape that is asked for, if it has as many entries."""
    shape: Shape = tuple(a["shape"])
    return shape if torch.Size(inputs[0]).numel() == torch.Size(shape).numel() else None


def permuted(inputs: Sequence[Shape], t: Tensors, a: Attributes) -> Shape | None:
    """Dimensions in another order."""
    x, dims = inputs[0], cast("Sequence[int]", a["dims"])
    return tuple(x[d] for d in dims) if sorted(dims) == list(range(len(x))) else None


def selected(inputs: Sequence[Shape], t: Tensors, a: Attributes) -> Shape | None:
    """Some positions along a dimension."""
    x, dim = inputs[0], int(a["dim"])
    return (*x[:dim], len(t["index"]), *x[dim + 1 :])


def padded(inputs: Sequence[Shape], t: Tensors, a: Attributes) -> Shape | None:
    """More entries before and after."""
    return tuple(s + before + after for s, (before, after) in zip(inputs[0], a["pads"], strict=True))


def concatenated(inputs: Sequence[Shape], t: Tensors, a: Attributes) -> Shape | None:
    """Values one after the other along a dimension, alike in all others."""
    x, dim = inputs[0], int(a["dim"])
    alike = all(y[:dim] + y[dim + 1 :] == x[:dim] + x[dim + 1 :] for y in inputs)
    return (*x[:dim], sum(y[dim] for y in inputs), *x[dim + 1 :]) if alike else None


def reduced(inputs: Sequence[Shape], t: Tensors, a: Attributes) -> Shape | None:
    """Some dimensions become 1."""
    return tuple(1 if d in a["dims"] else s for d, s in enumerate(inputs[0]))


def pooled(inputs: Sequence[Shape], t: Tensors, a: Attributes) -> Shape | None:
    """Windows of each channel."""
    x = inputs[0]
    return (x[0], *_windows(x[1:], a["kernel"], a, ceil=bool(a.get("ceil", False))))


def convolved(inputs: Sequence[Shape], t: Tensors, a: Attributes) -> Shape | None:
    """Windows of the channels of each group."""
    x, weight = inputs[0], t["weight"]
    sizes = _windows(x[1:], tuple(weight.shape[2:]), a)
    return (weight.shape[0], *sizes) if x[0] == weight.shape[1] * a["groups"] else None


def convolved_back(inputs: Sequence[Shape], t: Tensors, a: Attributes) -> Shape | None:
    """What `convolved` has as input."""
    x, weight = inputs[0], t["weight"]
    sizes = [
        (s - 1) * stride - 2 * padding + dilation * (k - 1) + 1 + more
        for s, k, stride, padding, dilation, more in zip(
            x[1:], weight.shape[2:], a["stride"], a["padding"], a["dilation"], a["output_padding"], strict=True
        )
    ]
    return (weight.shape[1] * a["groups"], *sizes) if x[0] == weight.shape[0] else None


def _windows(sizes: Sequence[int], kernel: Sequence[int], a: Attributes, *, ceil: bool = False) -> list[int]:
    """How many windows there are along each dimension; with ``ceil`` also those that begin inside and end beyond."""
    counts: list[int] = []
    for s, k, stride, padding, dilation in zip(sizes, kernel, a["stride"], a["padding"], a["dilation"], strict=True):
        room = s + 2 * padding - dilation * (k - 1) - 1
        count = (-(-room // stride) if ceil else room // stride) + 1
        counts.append(count - 1 if ceil and (count - 1) * stride >= s + padding else count)
    return counts
