"""The contract of an operation in the table of bounds."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from holdfast.certifiers.propagation.region import Box
from holdfast.graph.model import Node

__all__ = ["Operation", "Pull", "node_size"]

Pull = tuple[Sequence[Tensor], Tensor | None]


class Operation(ABC):
    """One operation: boxes forwards, linear functions backwards.

    Attributes:
        linear: it is a linear (affine) function of its inputs.
        elementwise: each output entry depends on one input entry alone, and no input entry is used twice.
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
