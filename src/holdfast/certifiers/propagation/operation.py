"""The contract of an operation in the table of bounds, and the linear operations."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from holdfast.certifiers.propagation.region import Box
from holdfast.graph.model import Node

__all__ = [
    "Add",
    "Affine",
    "Concat",
    "Conv",
    "Linear",
    "Mean",
    "Operation",
    "Pad",
    "Permute",
    "Pull",
    "Reshape",
    "Select",
    "entries_floor",
    "node_size",
    "samples_floor",
    "sums_floor",
]

Pull = tuple[Sequence[Tensor], Tensor | None]
_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class Operation(ABC):
    """One operation: boxes forwards, linear functions backwards.

    Attributes:
        linear: it is a linear (affine) function of its inputs.
        separate: each output entry depends on one input entry alone, and no input entry is used twice.
    """

    linear = True
    elementwise = False

    def check(self, node: Node) -> None:  # noqa: B027
        """Refuses parameters of the node that lie outside of what is declared here.

        Raises:
            UnsupportedError: the message says which are served.
        """

    def range(self, node: Node) -> tuple[float, float]:
        """Between which numbers all values lie, exactly and whatever the inputs are."""
        return -math.inf, math.inf

    def floor(self, node: Node, inputs: Sequence[Box]) -> Tensor | None:
        """What outputs are at least, exactly, where all that is added up is not negative: (n, \\*shape), -inf elsewhere.

        Interval arithmetic rounds, and a sum of squares that came out at -1e-17 would have no root.
        """
        return None

    @abstractmethod
    def interval(self, node: Node, inputs: Sequence[Box]) -> Box:
        """A box around the outputs, up to the rounding that `size` accounts for."""

    def size(self, node: Node, inputs: Sequence[Box], output: Box) -> Tensor | None:
        """What rounding is relative to, (n, \\*shape), or None where no rounding happens.

        With k = features in + features out + 16, both `interval` and `pull` (for a row a, ``|a| . size``) err by at
        most gamma_k times this: no dot product in them has more than k - 16 terms, and the 16 pay for weights that
        were folded in float64 and for functions that are accurate to a few units.
        """
        return None

    def unstable(self, node: Node, box: Box) -> Tensor | None:
        """Entries of the input (n, \\*shape), bool, of which tighter bounds would tighten the output's; None: none."""
        return None

    def prepare(self, node: Node, inputs: Sequence[Box], alpha: Tensor | None = None) -> Any:
        """Whatever `pull` needs that depends on the boxes; a nonlinear operation's two lines.

        Args:
            node: the node.
            inputs: boxes of its inputs.
            alpha: what to choose instead of the default, broadcastable to (rows, \\*shape of `Operation.alpha`).
        """
        return None

    def alpha(self, prepared: Any) -> Tensor | None:
        """What an optimiser may vary in the relaxation: its default (n, \\*any shape), or None where nothing is free.

        Any numbers in [0, 1] give sound lines. What they mean is the operation's affair: a lower slope for ReLU,
        sigmoid and tanh, elsewhere where on the curve a line touches, or how two planes are mixed.
        """
        return None

    def pull_units(self, node: Node, chosen: Tensor, prepared: Any) -> Pull | None:
        """`pull` of unit rows, where that is a mere look-up of weights; None: build the rows and pull them.

        Args:
            node: the node.
            chosen: (rows, n), int64: the entry of the flattened output that is 1.
            prepared: what `prepare` returned.
        """
        return None

    @abstractmethod
    def pull(self, node: Node, a: Tensor, prepared: Any) -> Pull:
        """From a linear function of the output to one of the inputs that is nowhere larger.

        Args:
            node: the node.
            a: (rows, n, \\*output shape).
            prepared: what `prepare` returned.

        Returns:
            Coefficients for each input, (rows, n, \\*input shape), and a constant (rows, n) or None.
        """


def node_size(shape: Sequence[int]) -> int:
    """Number of entries of a shape."""
    return torch.Size(shape).numel()


def _bias_size(node: Node, like: Tensor, bias: str = "bias") -> Tensor:
    size = node.tensors.get("size", node.tensors.get(bias))
    return like.new_zeros(()) if size is None else size.abs()


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


class Linear(Operation):
    """``x @ weight.T + bias``."""

    @override
    def floor(self, node: Node, inputs: Sequence[Box]) -> Tensor | None:
        return sums_floor(node, inputs)

    @override
    def interval(self, node: Node, inputs: Sequence[Box]) -> Box:
        (box,), weight = inputs, node.tensors["weight"]
        centre = F.linear((box.lower + box.upper) / 2, weight, node.tensors.get("bias"))
        radius = F.linear((box.upper - box.lower) / 2, weight.abs())
        return Box(centre - radius, centre + radius)

    @override
    def size(self, node: Node, inputs: Sequence[Box], output: Box) -> Tensor:
        spread = F.linear(inputs[0].magnitude, node.tensors["weight"].abs())
        return spread + _bias_size(node, spread)

    @override
    def pull(self, node: Node, a: Tensor, prepared: Any) -> Pull:
        bias = node.tensors.get("bias")
        constant = None if bias is None else (a @ bias).reshape(*a.shape[:2], -1).sum(2)
        return [a @ node.tensors["weight"]], constant

    @override
    def pull_units(self, node: Node, chosen: Tensor, prepared: Any) -> Pull | None:
        if len(node.shape) != 1:
            return None
        bias = node.tensors.get("bias")
        return [node.tensors["weight"][chosen]], None if bias is None else bias[chosen]


class Conv(Operation):
    """A convolution; coefficients keep the shape of the feature maps."""

    @override
    def floor(self, node: Node, inputs: Sequence[Box]) -> Tensor | None:
        return sums_floor(node, inputs)

    def _apply(self, node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        a = node.attributes
        return _CONV[len(a["stride"])](x, weight, bias, a["stride"], a["padding"], a["dilation"], a["groups"])

    @override
    def interval(self, node: Node, inputs: Sequence[Box]) -> Box:
        (box,), weight = inputs, node.tensors["weight"]
        centre = self._apply(node, (box.lower + box.upper) / 2, weight, node.tensors.get("bias"))
        radius = self._apply(node, (box.upper - box.lower) / 2, weight.abs())
        return Box(centre - radius, centre + radius)

    @override
    def size(self, node: Node, inputs: Sequence[Box], output: Box) -> Tensor:
        spread = self._apply(node, inputs[0].magnitude, node.tensors["weight"].abs())
        return spread + _bias_size(node, spread).view(-1, *(1,) * (spread.ndim - 2))

    @override
    def prepare(self, node: Node, inputs: Sequence[Box], alpha: Tensor | None = None) -> tuple[int, ...]:
        """The input's spatial shape, which the transpose must give back."""
        return tuple(inputs[0].lower.shape[2:])

    @override
    def pull(self, node: Node, a: Tensor, prepared: tuple[int, ...]) -> Pull:
        at, weight, bias = node.attributes, node.tensors["weight"], node.tensors.get("bias")
        beyond = [
            size - ((out - 1) * s - 2 * p + d * (k - 1) + 1)
            for size, out, s, p, d, k in zip(
                prepared, node.shape[1:], at["stride"], at["padding"], at["dilation"], weight.shape[2:], strict=True
            )
        ]
        constant = None if bias is None else a.flatten(3).sum(3) @ bias
        transposed: Tensor = _CONV_TRANSPOSE[len(beyond)](
            a.flatten(0, 1), weight, None, at["stride"], at["padding"], beyond, at["groups"], at["dilation"]
        )
        return [transposed.view(*a.shape[:2], *transposed.shape[1:])], constant

    @override
    def pull_units(self, node: Node, chosen: Tensor, prepared: tuple[int, ...]) -> Pull:
        """One patch of weights for each row, put in its place."""
        at, weight, bias = node.attributes, node.tensors["weight"], node.tensors.get("bias")
        padded = [size + 2 * p for size, p in zip(prepared, at["padding"], strict=True)]
        channel: Tensor = chosen.flatten() // node_size(node.shape[1:])
        rest, area = chosen.flatten() % node_size(node.shape[1:]), 1
        corner = torch.zeros_like(rest)
        inner = torch.zeros((), dtype=torch.int64, device=chosen.device)
        for d in reversed(range(len(padded))):
            corner = corner + rest % node.shape[d + 1] * at["stride"][d] * area
            rest = rest // node.shape[d + 1]
            steps = torch.arange(weight.shape[d + 2], device=chosen.device) * at["dilation"][d] * area
            inner = steps.view(-1, *(1,) * inner.ndim) + inner
            area *= padded[d]
        group = channel // (weight.shape[0] // at["groups"])
        planes = torch.arange(weight.shape[1], device=chosen.device) + (group * weight.shape[1]).unsqueeze(1)
        place = (planes * area).unsqueeze(2) + inner.flatten() + corner.view(-1, 1, 1)
        back = weight.new_zeros(len(channel), weight.shape[1] * at["groups"] * area)
        back = back.scatter(1, place.flatten(1), weight[channel].flatten(1)).view(*chosen.shape, -1, *padded)
        crop = (slice(p, p + size) for size, p in zip(prepared, at["padding"], strict=True))
        patches: Tensor = back[(..., *crop)]
        return [patches], None if bias is None else bias[channel].view(chosen.shape)


class Affine(Operation):
    """``x * scale + shift``."""

    elementwise = True

    @override
    def floor(self, node: Node, inputs: Sequence[Box]) -> Tensor | None:
        return entries_floor(inputs[0].lower, *(t for k, t in node.tensors.items() if k != "size"))

    @override
    def interval(self, node: Node, inputs: Sequence[Box]) -> Box:
        (lower, upper), scale, shift = inputs[0], node.tensors.get("scale"), node.tensors.get("shift")
        if scale is not None:
            lower, upper = lower * scale, upper * scale
            lower, upper = torch.minimum(lower, upper), torch.maximum(lower, upper)
        return Box(lower, upper) if shift is None else Box(lower + shift, upper + shift)

    @override
    def size(self, node: Node, inputs: Sequence[Box], output: Box) -> Tensor:
        scale = node.tensors.get("scale")
        scaled = inputs[0].magnitude if scale is None else inputs[0].magnitude * scale.abs()
        return scaled + _bias_size(node, scaled, "shift")

    @override
    def pull(self, node: Node, a: Tensor, prepared: Any) -> Pull:
        scale, shift = node.tensors.get("scale"), node.tensors.get("shift")
        constant = None if shift is None else a.flatten(2) @ shift.expand(node.shape).flatten()
        return [a if scale is None else a * scale], constant


class Add(Operation):
    """``x + sign * y``."""

    def __init__(self, sign: int) -> None:
        self.sign = sign

    @override
    def floor(self, node: Node, inputs: Sequence[Box]) -> Tensor | None:
        """A sum of two floats has the sign of the exact sum."""
        x, y = inputs
        return entries_floor(x.lower + y.lower if self.sign > 0 else x.lower - y.upper)

    @override
    def interval(self, node: Node, inputs: Sequence[Box]) -> Box:
        x, y = inputs
        return Box(x.lower + y.lower, x.upper + y.upper) if self.sign > 0 else Box(x.lower - y.upper, x.upper - y.lower)

    @override
    def size(self, node: Node, inputs: Sequence[Box], output: Box) -> Tensor:
        return inputs[0].magnitude + inputs[1].magnitude

    @override
    def pull(self, node: Node, a: Tensor, prepared: Any) -> Pull:
        return [a, a if self.sign > 0 else -a], None


class Mean(Operation):
    """The mean over some dimensions, which stay with size 1."""

    @override
    def floor(self, node: Node, inputs: Sequence[Box]) -> Tensor | None:
        return entries_floor(inputs[0].lower.amin([d + 1 for d in node.attributes["dims"]], keepdim=True))

    @override
    def interval(self, node: Node, inputs: Sequence[Box]) -> Box:
        dims = [d + 1 for d in node.attributes["dims"]]
        return Box(inputs[0].lower.mean(dims, keepdim=True), inputs[0].upper.mean(dims, keepdim=True))

    @override
    def size(self, node: Node, inputs: Sequence[Box], output: Box) -> Tensor:
        dims = [d + 1 for d in node.attributes["dims"]]
        return inputs[0].magnitude.mean(dims, keepdim=True)

    @override
    def prepare(self, node: Node, inputs: Sequence[Box], alpha: Tensor | None = None) -> tuple[int, ...]:
        return tuple(inputs[0].lower.shape[1:])

    @override
    def pull(self, node: Node, a: Tensor, prepared: tuple[int, ...]) -> Pull:
        dims: Sequence[int] = node.attributes["dims"]
        count = node_size([prepared[d] for d in dims])
        return [(a / count).expand(*a.shape[:2], *prepared)], None


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
