"""Lines that single methods have of their own, to stand in for those of the table."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from typing_extensions import override

from holdfast.certifiers.propagation.operation import Operation
from holdfast.certifiers.propagation.operations.activations import LeakyRelu, Lines
from holdfast.certifiers.propagation.region import Box
from holdfast.graph.model import Node

__all__ = ["PARALLEL", "ParallelRelu"]


class ParallelRelu(LeakyRelu):
    """A ReLU between two parallel lines: the chord, and its slope again through the kink (Weng et al. 2018, Fast-Lin)."""

    @override
    def prepare(self, node: Node, inputs: Sequence[Box], alpha: Tensor | None = None) -> Lines:
        lines = super().prepare(node, inputs, alpha)
        return lines if alpha is not None else lines._replace(lower_slope=lines.upper_slope)


PARALLEL: dict[str, Operation] = {"relu": ParallelRelu(), "leaky_relu": ParallelRelu()}
