"""One ATen call with its arguments by the names of its schema, which notes what has been read of them.

Whatever a handler does not read and the model did set to something else than the schema's default is refused
(`AtenCall.close`), so that no argument can be overlooked.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, fx

from holdfast.core.errors import UnsupportedError
from holdfast.graph.build import Builder, Value
from holdfast.graph.torch_calls import overload_name, overload_of, schema_of

if TYPE_CHECKING:
    from holdfast.graph.aten_reader import AtenReader

__all__ = ["AtenCall", "Handler", "call_name", "tuple_of", "where_of"]

# where a tensor lies and how; the type of a result is held to that of the model by the reader
_VALUELESS = frozenset(
    (
        "memory_format",
        "layout",
        "device",
        "pin_memory",
        "non_blocking",
        "implicit",
        "cudnn_enable",
        "cudnn_enabled",
        "dtype",
    )
)


def call_name(node: fx.Node) -> str:
    """A call's name in the tables, and as a person would look for it: ``add``, or ``mine::squash`` of another library."""
    if node.target is operator.getitem:
        return "getitem"
    overload = overload_of(node)
    if overload is not None and overload.namespace != "aten":
        return overload.name().split(".")[0]
    return str(node.target).removeprefix("aten.").split(".")[0]


def where_of(node: fx.Node) -> str:
    """The line of the model's own code that made a call, in brackets, or nothing."""
    lines = [line.strip() for line in str(node.meta.get("stack_trace") or "").splitlines() if line.strip()]
    for at, line in reversed(list(enumerate(lines))):
        if line.startswith("File ") and ", line " in line:
            file, number = line.removeprefix("File ").split(", line ")
            code = f": {lines[at + 1]}" if at + 1 < len(lines) else ""
            return f" (line {number.split(',')[0]} of {Path(file.strip(chr(34))).name}{code})"
    return ""


def tuple_of(value: Any, k: int) -> tuple[int, ...]:
    """An argument that is one number for all k dimensions or a number for each."""
    values = _each(value)
    return values * k if len(values) == 1 else values


def _each(value: Any) -> tuple[Any, ...]:
    """The entries of what may be one value or a list of them."""
    return tuple(cast("Sequence[Any]", value)) if isinstance(value, list | tuple) else (value,)


class AtenCall:
    """One ATen call.

    Args:
        reader: gives the values of the nodes that were read before.
        node: a call of an ATen operation.
    """

    def __init__(self, reader: AtenReader, node: fx.Node) -> None:
        self.b: Builder = reader.builder
        self.reader = reader
        self.node = node
        self.name = call_name(node)
        target = overload_of(node)
        assert target is not None
        self.overload: str = overload_name(target)
        self._arguments = {a.name: a for a in schema_of(target).arguments}
        self._given = dict(zip(self._arguments, node.args, strict=False)) | dict(node.kwargs)
        self._read: set[str] = set()

    def has(self, name: str) -> bool:
        """Whether the operation has an argument of this name at all."""
        return name in self._arguments

    def raw(self, name: str) -> Any:
        """An argument as it stands in the program, or its default."""
        self._read.add(name)
        argument = self._arguments[name]
        return self._given.get(name, argument.default_value)

    def get(self, name: str) -> Any:
        """An argument that is no tensor, in plain values.

        Raises:
            UnsupportedError: the model computes it.
        """
        value = self.raw(name)
        if any(isinstance(v, fx.Node) for v in _each(value)):
            raise UnsupportedError(f"'{self.name}' whose {name} is computed by the model; give it as a plain number")
        return value

    def skip(self, *names: str) -> None:
        """Arguments that change no value, or that the shape of the result says already."""
        self._read.update(names)

    def close(self) -> None:
        """Refuses what was given and not read.

        Raises:
            UnsupportedError: by the argument's name.
        """
        for name, argument in self._arguments.items():
            if name in self._read or name in _VALUELESS:
                continue
            value = self._given.get(name, argument.default_value)
            if argument.has_default_value() and (name not in self._given or value == argument.default_value):
                continue
            usual = f"; its default {argument.default_value} is served" if argument.has_default_value() else ""
            raise UnsupportedError(
                f"'{self.name}' with {name}={value}{where_of(self.node)} is not served by the graph{usual}"
            )

    @property
    def first(self) -> str:
        """The name of the first argument."""
        return next(iter(self._arguments))

    @property
    def names(self) -> list[str]:
        """The names of all arguments in order."""
        return list(self._arguments)

    @property
    def x(self) -> int:
        """The first argument, which must depend on the input."""
        return self.at(self.first)

    @property
    def shape(self) -> tuple[int, ...]:
        """Feature shape of the first argument."""
        return self.b.shape(self.x)

    @property
    def rank(self) -> int:
        """Number of dimensions of the first argument as the model sees it."""
        return len(self.shape) + self.b.batch_dims

    def at(self, name: str) -> int:
        """A tensor that must depend on the input."""
        value = self.operand(name)
        if isinstance(value, Tensor):
            raise UnsupportedError(f"'{self.name}' whose {name} is a constant while others depend on the input")
        return value

    def operand(self, name: str) -> Value:
        """A number, a constant or a value that depends on the input."""
        return self.reader.operand(self.raw(name))

    def operands(self, name: str) -> list[Value]:
        """A list of them."""
        return [self.reader.operand(value) for value in self.raw(name)]

    def constant(self, name: str) -> Tensor | None:
        """A weight, or None."""
        value = self.raw(name)
        value = None if value is None else self.reader.operand(value)
        if isinstance(value, int):
            raise UnsupportedError(f"'{self.name}' whose {name} depends on the input")
        return value

    def weight(self, name: str) -> Tensor:
        """A weight that must be there."""
        value = self.constant(name)
        if value is None:
            raise UnsupportedError(f"'{self.name}' without its {name}")
        return value

    def number(self, name: str) -> float:
        """A finite number."""
        value = self.get(name)
        if isinstance(value, complex) or value is None or not abs(float(value)) < float("inf"):
            raise UnsupportedError(f"'{self.name}' with {name}={value}: only finite numbers are served")
        return float(value)

    def full_shape(self, name: str) -> Sequence[Any]:
        """The shape of an argument as the program has it, with symbols where the batch enters."""
        node = self.raw(name)
        if not isinstance(node, fx.Node):
            raise UnsupportedError(f"'{self.name}' of a {name} that is no tensor")
        return node.meta["val"].shape

    @property
    def result_shape(self) -> Sequence[Any]:
        """The shape of the result as the program has it."""
        return self.node.meta["val"].shape

    def dim(self, dim: int, rank: int | None = None) -> int:
        """A dimension of the first argument (or of a value with ``rank`` dimensions) without the batch."""
        rank = self.rank if rank is None else rank
        if rank == 0 or dim % rank < self.b.batch_dims:
            raise UnsupportedError(f"'{self.name}' along the batch{where_of(self.node)}")
        return dim % rank - self.b.batch_dims

    def dims(self, dims: Any) -> list[int]:
        """Several of them; None and [] are all, which the batch would join."""
        if dims is None or dims == []:
            dims = range(self.rank)
        return [self.dim(d) for d in ([dims] if isinstance(dims, int) else dims)]


Handler = Callable[[AtenCall], Value | list[Value]]
