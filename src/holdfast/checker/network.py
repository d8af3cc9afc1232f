"""A piecewise-linear network as the checker has it: linear maps, each forwards and back, and activations between them.

A value is a node: the input, a linear map of earlier values plus a bias, or an activation. Shapes never count the batch.
"""

from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np

__all__ = ["ActivationNode", "ConvMap", "LinearNode", "Matrix", "Move", "Network", "PadMap", "Scale"]

Array = Any
Shape = tuple[int, ...]


@dataclass(eq=False)
class Matrix:
    """``x @ weight`` on the last dimension."""

    weight: Array
    exact = False

    def forward(self, x: Array, absolute: bool = False) -> Array:
        """The map, or the map with the magnitudes of its weights."""
        return x @ (np.abs(self.weight) if absolute else self.weight)

    def back(self, a: Array) -> Array:
        """The transposed map."""
        return a @ self.weight.T


@dataclass(eq=False)
class Scale:
    """``x * scale``, entry by entry."""

    scale: Array
    exact = False

    def forward(self, x: Array, absolute: bool = False) -> Array:
        """See `Matrix.forward`."""
        return x * (np.abs(self.scale) if absolute else self.scale)

    def back(self, a: Array) -> Array:
        """See `Matrix.back`."""
        return a * self.scale


@dataclass(eq=False)
class Move:
    """The same entries in another order and shape, without rounding."""

    before: Shape
    after: Shape
    order: Shape | None = None  # of a transpose
    exact = True

    def forward(self, x: Array, absolute: bool = False) -> Array:
        """See `Matrix.forward`."""
        x = x if self.order is None else x.transpose(0, *(d + 1 for d in self.order))
        return x.reshape(len(x), *self.after)

    def back(self, a: Array) -> Array:
        """See `Matrix.back`."""
        if self.order is None:
            return a.reshape(len(a), *self.before)
        return a.transpose(0, *(int(d) + 1 for d in np.argsort(self.order)))


@dataclass(eq=False)
class PadMap:
    """Zeros around the entries: (before, after) for each dimension."""

    sides: tuple[tuple[int, int], ...]
    exact = True

    def forward(self, x: Array, absolute: bool = False) -> Array:
        """See `Matrix.forward`."""
        return np.pad(x, ((0, 0), *self.sides))

    def back(self, a: Array) -> Array:
        """See `Matrix.back`."""
        return a[(slice(None), *(slice(b, n - e) for (b, e), n in zip(self.sides, a.shape[1:], strict=True)))]


@dataclass(eq=False, kw_only=True)
class ConvMap:
    """A convolution of any dimension as one product for each position in the kernel."""

    weight: Array  # (groups, out / groups, in / groups, *kernel)
    stride: Shape
    dilation: Shape
    before: Shape  # spatial shape of the padded input
    exact = False

    def __post_init__(self) -> None:
        kernel = self.weight.shape[3:]
        lines = list(zip(self.before, kernel, self.stride, self.dilation, strict=True))
        self.after = tuple((n - d * (k - 1) - 1) // s + 1 for n, k, s, d in lines)
        steps = list(zip(self.after, self.stride, self.dilation, strict=True))
        self.parts = [
            (at, (..., *(slice(i * d, i * d + (n - 1) * s + 1, s) for i, (n, s, d) in zip(at, steps, strict=True))))
            for at in product(*map(range, kernel))
        ]

    def forward(self, x: Array, absolute: bool = False) -> Array:
        """See `Matrix.forward`."""
        weight = np.abs(self.weight) if absolute else self.weight
        groups, out, into = weight.shape[:3]
        x = x.reshape(len(x), groups, into, *self.before)
        total = np.zeros((len(x), groups, out, prod(self.after)))
        for at, where in self.parts:
            total += weight[(..., *at)] @ x[where].reshape(len(x), groups, into, -1)
        return total.reshape(len(x), groups * out, *self.after)

    def back(self, a: Array) -> Array:
        """See `Matrix.back`."""
        groups, out, into = self.weight.shape[:3]
        a = a.reshape(len(a), groups, out, -1)
        total = np.zeros((len(a), groups, into, *self.before))
        for at, where in self.parts:
            total[where] += (self.weight[(..., *at)].swapaxes(1, 2) @ a).reshape(len(a), groups, into, *self.after)
        return total.reshape(len(a), groups * into, *self.before)


@dataclass(eq=False, kw_only=True)
class LinearNode:
    """A node: the sum over inputs of a map of each, plus a bias that broadcasts to the shape."""

    inputs: tuple[int, ...]
    shape: Shape
    maps: tuple[Any, ...]
    bias: Array | None = None


@dataclass(eq=False)
class ActivationNode:
    """A node: ``max(z, slope z)`` of each entry."""

    inputs: tuple[int, ...]
    shape: Shape
    slope: float = 0.0


@dataclass(eq=False)
class Network:
    """Nodes in topological order; node 0 is the input (None) and the last is the output."""

    shape: Shape  # of the input
    nodes: list[LinearNode | ActivationNode | None]

    @property
    def activations(self) -> list[int]:
        """Positions of the activations: files name values by these."""
        return [i for i, node in enumerate(self.nodes) if isinstance(node, ActivationNode)]

    def values(self, x: Array) -> list[Array]:
        """Every node's value for inputs (n, \\*shape), in float64."""
        found: list[Array] = [np.asarray(x, dtype=np.float64).reshape(-1, *self.shape)]
        for node in self.nodes[1:]:
            if isinstance(node, ActivationNode):
                z = found[node.inputs[0]]
                found.append(np.where(z > 0, z, node.slope * z))
            elif node is not None:
                parts = [m.forward(found[i]) for i, m in zip(node.inputs, node.maps, strict=True)]
                found.append(sum(parts[1:], parts[0]) + (0.0 if node.bias is None else node.bias))
        return found

    def read_by(self, activation: int) -> int:
        """Position of the value that the activation at a position is of."""
        node = self.nodes[activation]
        assert node is not None
        return node.inputs[0]

    def shape_of(self, i: int) -> Shape:
        """Shape of a node's value."""
        node = self.nodes[i]
        return self.shape if node is None else node.shape
