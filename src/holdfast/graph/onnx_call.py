"""One ONNX operation with its inputs and attributes resolved, and the record of what was read of it.

A handler that does not look at an attribute, an input or an output that the file has would compute another function.
So the call remembers what was asked for, and `OnnxCall.finished` refuses whatever is left, by its name. Defaults come from
the operator's schema, as the file's opset has them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from holdfast.core.arrays import listed
from holdfast.core.errors import ModelError, UnsupportedError
from holdfast.graph.build import BatchError, Builder, Value

__all__ = ["BOOL", "FLOATS", "TYPES", "WHOLE", "Handler", "OnnxCall", "OnnxOp", "type_name"]

# the file's element types, as the numbers that it gives them
TYPES: dict[int, torch.dtype] = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
}
FLOATS, WHOLE, BOOL = frozenset((1, 10, 11)), frozenset((2, 3, 5, 6, 7)), 9
_NAMES = {
    1: "float", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool",
    10: "float16", 11: "double", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16",
}  # fmt: skip


def type_name(kind: int) -> str:
    """An element type as the specification calls it."""
    return _NAMES.get(kind, f"element type {kind}")


@dataclass(frozen=True)
class OnnxOp:
    """An operation of the vocabulary.

    Attributes:
        handler: what it becomes.
        newest: the newest version of its schema that the handler was written for.
        oldest: the oldest one.
        kinds: the element types of inputs that it serves where they depend on the model's input.
    """

    handler: Handler
    newest: int
    oldest: int = 1
    kinds: frozenset[int] = FLOATS


@dataclass(kw_only=True)
class OnnxCall:
    """One ONNX node.

    Attributes:
        b: the graph under construction.
        op: the operation, with its domain unless that is ONNX's own.
        inputs: what stands under its inputs' names; None where one is left out.
        kinds: their element types; 0 where one is left out.
        outputs: the names of its outputs, empty where one is not asked for.
        attributes: as they stand in the file.
        schema: of the operation at the file's opset, or None if the `onnx` package has none.
        batch: size of the batch that the file's shapes are about.
        tensor: makes a tensor of the file's.
        kind: element type of the outputs.
        asked: the inputs and attributes that a handler has looked at.
    """

    b: Builder
    op: str
    inputs: Sequence[Value | None]
    kinds: Sequence[int]
    outputs: Sequence[str]
    attributes: dict[str, Any]
    schema: Any
    batch: int
    tensor: Callable[[Any], Tensor]
    kind: int = 0
    asked: set[str | int] = field(default_factory=set[str | int])

    def __post_init__(self) -> None:
        self.kind = self.kind or next((k for k in self.kinds if k), 0)

    @property
    def version(self) -> int:
        """The opset that brought the operation's present meaning."""
        return int(self.schema.since_version)

    def value(self, i: int) -> Value | None:
        """Input i, or None if it is left out."""
        self.asked.add(i)
        return self.inputs[i] if i < len(self.inputs) else None

    def required(self, i: int) -> Value:
        """Input i, which must be there."""
        value = self.value(i)
        if value is None:
            raise ModelError(f"'{self.op}' lacks its input {i}")
        return value

    def all(self) -> list[Value]:
        """The inputs of an operation of any number of them."""
        return [self.required(i) for i in range(len(self.inputs))]

    @property
    def x(self) -> int:
        """The first input, which must depend on the model's."""
        value = self.value(0)
        if not isinstance(value, int):
            raise UnsupportedError(
                f"'{self.op}' whose first input is a constant and another one depends on the model's input"
            )
        return value

    @property
    def shape(self) -> tuple[int, ...]:
        """Feature shape of the first input."""
        return self.b.shape(self.x)

    @property
    def full(self) -> list[int]:
        """Shape of the first input as the file sees it."""
        return [self.batch, *self.shape] if self.b.batch_dims else list(self.shape)

    def constant(self, i: int) -> Tensor | None:
        """Input i, which must be constant, or None if it is left out."""
        value = self.value(i)
        if isinstance(value, int):
            raise UnsupportedError(f"'{self.op}' whose input {i} depends on the model's input; served is a constant")
        return value

    def weight(self, i: int) -> Tensor:
        """Input i, which must be constant and there."""
        value = self.constant(i)
        if value is None:
            raise ModelError(f"'{self.op}' lacks its input {i}")
        return value

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute as a plain value; where the file has none the schema's default, or else ``default``.

        Floats come as the float32 numbers that the file holds.
        """
        self.asked.add(name)
        if name in self.attributes:
            return self._plain(self.attributes[name])
        known = self.schema.attributes.get(name) if self.schema is not None else None
        if known is not None and known.default_value.name:
            return self._plain(known.default_value)
        return default

    def _plain(self, a: Any) -> Any:
        kinds: dict[int, Callable[[], Any]] = {
            1: lambda: a.f,
            2: lambda: a.i,
            3: lambda: a.s.decode(),
            4: lambda: self.tensor(a.t),
            6: lambda: list(a.floats),
            7: lambda: list(a.ints),
        }
        if a.type not in kinds:
            raise UnsupportedError(f"'{self.op}' with an attribute '{a.name}' of a kind that is not served")
        return kinds[a.type]()

    def need(self, name: str, *served: Any) -> Any:
        """An attribute that must have one of the values that are served."""
        value = self.get(name, served[0])
        if value not in served:
            raise UnsupportedError(f"'{self.op}' with {name}={value}; served is {_listed(served)}")
        return value

    def argument(self, name: str, i: int) -> Any:
        """What newer opsets pass as input i and older ones as an attribute, as plain values."""
        if self.schema is not None and name in self.schema.attributes:
            return self.get(name)
        value = self.constant(i)
        return None if value is None else listed(value)

    def dim(self, axis: int, rank: int | None = None) -> int:
        """A feature dimension from an axis of the file."""
        rank = len(self.full) if rank is None else rank
        if not -rank <= axis < rank:
            raise ModelError(f"'{self.op}' along axis {axis} of a value of {rank} dimensions")
        if axis % rank < self.b.batch_dims:
            raise BatchError(f"'{self.op}' along the batch; served is a model whose samples do not mix")
        return axis % rank - self.b.batch_dims

    def dims(self, axes: Sequence[int] | None) -> list[int]:
        """Several of them; None is all."""
        dims = [self.dim(a) for a in (range(len(self.full)) if axes is None else axes)]
        if len(set(dims)) != len(dims):
            raise ModelError(f"'{self.op}' names an axis twice: {list(axes or ())}")
        return dims

    def reshaped(self, target: Sequence[int]) -> int:
        """The first input in another shape, as the file sees it; one entry may be -1."""
        size = math.prod(self.full)
        known = math.prod(s for s in target if s != -1)
        target = [size // max(known, 1) if s == -1 else int(s) for s in target]
        if self.b.batch_dims and (len(target) < 2 or target[0] != self.batch):
            raise BatchError(f"'{self.op}' to {target}: it mixes the batch with the features")
        return self.b.reshape(self.x, target[self.b.batch_dims :])

    def sample(self) -> int:
        """The first input without its batch, for operations of samples."""
        return self.b.drop_batch(self.x, len(self.full) - 1)

    def finished(self, found: int) -> None:
        """Refuses what the file asks for beyond what a handler read and made.

        Args:
            found: how many outputs the handler gave.

        Raises:
            UnsupportedError: an attribute, an input or an output that nobody looked at.
        """
        for name in self.attributes:
            if name not in self.asked:
                raise UnsupportedError(
                    f"'{self.op}' with the attribute '{name}', which is not served; export the model without it"
                )
        for i, value in enumerate(self.inputs):
            if value is not None and i not in self.asked:
                raise UnsupportedError(
                    f"'{self.op}' with its input {i}, which is not served; export the model without it"
                )
        more = [name for name in self.outputs[found:] if name]
        if more:
            raise UnsupportedError(
                f"'{self.op}' with {len(self.outputs)} outputs; served is {found}: export the model in eval mode and "
                f"without '{more[0]}'"
            )


def _listed(values: Sequence[Any]) -> str:
    return " or ".join(str(v) for v in values)


Handler = Callable[[OnnxCall], Value | list[Value]]
