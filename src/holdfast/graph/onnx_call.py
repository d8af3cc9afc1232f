"""One ONNX operation with its inputs and attributes resolved."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from holdfast.core.errors import ModelError, UnsupportedError
from holdfast.graph.build import Builder, Value

__all__ = ["Call", "Handler"]


class Call:
    """One ONNX node with its resolved inputs and attributes."""

    def __init__(
        self,
        builder: Builder,
        node: Any,
        inputs: Sequence[Value | None],
        batch: int,
        opset: int,
        whole: bool,
        tensor: Callable[[Any], Tensor],
    ) -> None:
        self.b = builder
        self.op: str = f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
        self.inputs = inputs
        self.outputs = len(node.output)
        self.attributes = {a.name: a for a in node.attribute}
        self.batch = batch
        self.opset = opset
        self.whole = whole
        self.tensor = tensor

    @property
    def x(self) -> int:
        """The first input, which must depend on the model's."""
        if not isinstance(self.inputs[0], int):
            raise UnsupportedError(f"'{self.op}' whose first input is a constant")
        return self.inputs[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Feature shape of the first input."""
        return self.b.shape(self.x)

    @property
    def full(self) -> list[int]:
        """Shape of the first input as the file sees it."""
        return [self.batch, *self.shape] if self.b.lead else list(self.shape)

    def constant(self, i: int) -> Tensor | None:
        """Input i, which must be constant, or None if it is absent."""
        value = self.inputs[i] if i < len(self.inputs) else None
        if isinstance(value, int):
            raise UnsupportedError(f"'{self.op}' whose input {i} depends on the model's input")
        return value

    def weight(self, i: int) -> Tensor:
        """Input i, which must be constant and present."""
        value = self.constant(i)
        if value is None:
            raise ModelError(f"'{self.op}' lacks its input {i}")
        return value

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute as a plain value."""
        if name not in self.attributes:
            return default
        a = self.attributes[name]
        kinds: dict[int, Callable[[], Any]] = {
            1: lambda: a.f,
            2: lambda: a.i,
            3: lambda: a.s.decode(),
            6: lambda: list(a.floats),
            7: lambda: list(a.ints),
        }
        return kinds[a.type]()

    def argument(self, name: str, i: int) -> Any:
        """What newer opsets pass as input i and older ones as an attribute, as plain values."""
        value = self.constant(i)
        return self.get(name) if value is None else value.tolist()

    def literal(self) -> Tensor:
        """The value of a Constant."""
        if "value" in self.attributes:
            return self.tensor(self.attributes["value"].t)
        return torch.tensor(next(self.get(name) for name in self.attributes))

    def dim(self, axis: int, rank: int | None = None) -> int:
        """A feature dimension from an axis of the file."""
        rank = len(self.full) if rank is None else rank
        if axis % rank < self.b.lead:
            raise UnsupportedError(f"'{self.op}' along the batch")
        return axis % rank - self.b.lead

    def dims(self, axes: Sequence[int] | None) -> list[int]:
        """Several of them; None is all."""
        return [self.dim(a) for a in (range(len(self.full)) if axes is None else axes)]

    def reshaped(self, target: Sequence[int]) -> int:
        """The first input in another shape, as the file sees it; one entry may be -1."""
        size = math.prod(self.full)
        known = math.prod(s for s in target if s != -1)
        target = [size // max(known, 1) if s == -1 else int(s) for s in target]
        if self.b.lead and (len(target) < 2 or target[0] != self.batch):
            raise UnsupportedError(f"'{self.op}' to {target}: it mixes the batch with the features")
        return self.b.reshape(self.x, target[self.b.lead :])

    def sample(self) -> int:
        """The first input without its batch, for operations of samples."""
        return self.b.samples(self.x, len(self.full) - 1)


Handler = Callable[[Call], Value | list[Value]]
