"""Translates one ATen call after the other; what each becomes stands in `aten_values` and `aten_shapes`."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from holdfast.core.errors import HoldfastError, UnsupportedError
from holdfast.graph.build import Builder, Value

__all__ = ["Handler", "Reader", "Size", "call_name", "tuple_of"]


@dataclass(frozen=True)
class Size:
    """A number that the batch size enters; ``value`` is what it is for a batch of one."""

    value: int


Held = Value | Size | list[Value]


def call_name(node: fx.Node) -> str:
    """A call's name in the tables, and as a person would look for it."""
    return "getitem" if node.target is operator.getitem else str(node.target).removeprefix("aten.").split(".")[0]


class Reader:
    """Translates ATen calls.

    A value is a graph node's position, a constant tensor, a number of the batch size, or a list of values.

    Args:
        builder: what the graph is built with.
        handlers: what each call becomes, by its name.
    """

    def __init__(self, builder: Builder, handlers: Mapping[str, Handler]) -> None:
        self.builder = builder
        self.handlers = handlers
        self.values: dict[fx.Node, Held] = {}

    def call(self, node: fx.Node) -> Held:
        """The value of one call."""
        inputs = [self.values[n] for n in node.all_input_nodes]
        if isinstance(node.meta.get("val"), torch.SymInt | int):
            return Size(self._size(node))
        if call_name(node).startswith("_assert"):
            return Size(0)
        handler = self.handlers.get(call_name(node))
        if node.target is not operator.getitem and not any(isinstance(v, int | list) for v in inputs):
            target = node.target
            assert callable(target)
            return target(*fx.map_arg(node.args, self._plain), **fx.map_arg(dict(node.kwargs), self._plain))
        if handler is None:
            raise UnsupportedError(f"the model uses '{call_name(node)}', which the graph does not know")
        try:
            return handler(self, node)
        except HoldfastError:
            raise
        except (RuntimeError, IndexError, TypeError, ValueError, AssertionError) as error:
            raise UnsupportedError(f"'{call_name(node)}' cannot be read: {error}") from error

    def _size(self, node: fx.Node) -> int:
        """A size for a batch of one."""
        first = self.values[node.all_input_nodes[0]] if node.all_input_nodes else None
        if isinstance(first, int):  # a size of a value that depends on the input
            return ([1] * self.builder.lead + list(self.builder.shape(first)))[int(node.args[1])]  # type: ignore[arg-type]
        target = node.target
        assert callable(target)
        return int(target(*fx.map_arg(node.args, self._plain), **fx.map_arg(dict(node.kwargs), self._plain)))

    def _plain(self, node: fx.Node) -> Any:
        value = self.values[node]
        return value.value if isinstance(value, Size) else value

    def get(self, node: fx.Node, position: int, name: str, default: Any = None) -> Any:
        """An argument of a call, by position or by name, as it stands."""
        return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)

    def x(self, node: fx.Node, position: int = 0) -> int:
        """An argument that must depend on the input."""
        value = self.operand(node.args[position])
        if isinstance(value, Tensor):
            raise UnsupportedError(f"'{node.target}' of a constant and a value that depends on the input")
        return value

    def operand(self, argument: Any) -> Value:
        """A number, a constant or a value that depends on the input."""
        if not isinstance(argument, fx.Node):
            return torch.tensor(argument, dtype=torch.float64)
        value = self.values[argument]
        if isinstance(value, Size | list):
            raise UnsupportedError("arithmetic on the batch size or on a list")
        return value

    def constant(self, argument: Any) -> Tensor | None:
        """A weight, or None."""
        value = None if argument is None else self.operand(argument)
        if isinstance(value, int):
            raise UnsupportedError("an operation whose weights depend on the input")
        return value

    def feature_dim(self, node: fx.Node, dim: int) -> int:
        """A dimension of the node's first input without the batch."""
        return self.dim_of(node, self.x(node), dim)

    def dim_of(self, node: fx.Node, x: int, dim: int) -> int:
        """A dimension of a value without the batch."""
        rank = len(self.builder.shape(x)) + self.builder.lead
        if dim % rank < self.builder.lead:
            raise UnsupportedError(f"'{call_name(node)}' along the batch")
        return dim % rank - self.builder.lead

    def feature_dims(self, node: fx.Node, dims: Any) -> list[int]:
        """Several of them; None is all, which the batch would join."""
        if dims is None or dims == []:
            dims = range(len(self.builder.shape(self.x(node))) + self.builder.lead)
        return [self.feature_dim(node, d) for d in ([dims] if isinstance(dims, int) else dims)]


def tuple_of(value: Any, k: int) -> tuple[int, ...]:
    """An argument that is one number for all k dimensions or a number for each."""
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return values * k if len(values) == 1 else values


Handler = Callable[[Reader, fx.Node], Value | list[Value]]
