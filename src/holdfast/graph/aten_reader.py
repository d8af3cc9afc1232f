"""Translates one ATen call after the other; what each becomes stands in `aten_values` and `aten_shapes`.

What is held for every call, whatever its handler does: nothing that was given stays unread, nothing is drawn at
random, nothing is written in place, and every value has the type in which the model runs (whole numbers only where
they are moved about or looked up in an embedding).
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx

from holdfast.core.errors import HoldfastError, UnsupportedError
from holdfast.graph.aten_call import AtenCall, Handler, call_name, where_of
from holdfast.graph.build import Builder, Value
from holdfast.graph.refusals import named, unreadable
from holdfast.graph.torch_calls import overload_of, schema_of

__all__ = ["AtenReader", "Size", "is_random"]


@dataclass(frozen=True)
class Size:
    """A number that the batch size enters; ``value`` is what it is for a batch of one."""

    value: int | float | bool


Held = Value | Size | list[Value]

_NUMBERS = (torch.SymInt, torch.SymFloat, torch.SymBool, int, float, bool)

# calls of constants that compute nothing: what they give is as exact as what they were given
MOVES = frozenset(
    (
        "_to_copy", "alias", "cat", "clone", "contiguous", "detach", "expand", "flatten", "flip", "full", "full_like",
        "index_select", "lift_fresh_copy", "new_full", "new_ones", "new_zeros", "ones", "ones_like", "permute", "repeat",
        "reshape", "scalar_tensor", "select", "slice", "split", "squeeze", "stack", "t", "to", "transpose", "unbind",
        "unsqueeze", "view", "zeros", "zeros_like",
    )
)  # fmt: skip


def is_random(node: fx.Node) -> bool:
    """Whether a call draws random numbers, by PyTorch's own mark; a dropout that is off does not."""
    target = overload_of(node)
    if target is None or torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    given = {a.name: a.default_value for a in schema_of(target).arguments if a.has_default_value()}
    given |= dict(zip((a.name for a in schema_of(target).arguments), node.args, strict=False)) | dict(node.kwargs)
    off = [name for name in ("train", "training") if name in given and given[name] is False]
    return not off and given.get("dropout_p", 1) != 0 and not ("dropout" in call_name(node) and given.get("p") == 0)


class AtenReader:
    """Translates ATen calls.

    A value is a graph node's position, a constant tensor, a number of the batch size, or a list of values.

    Args:
        builder: what the graph is built with.
        handlers: what each call becomes, by its name.
        whole: names of the calls that serve whole numbers: what moves them, and embeddings.
    """

    def __init__(self, builder: Builder, handlers: Mapping[str, Handler], whole: frozenset[str]) -> None:
        self.builder = builder
        self.handlers = handlers
        self.whole = whole
        self.values: dict[fx.Node, Held] = {}

    def call(self, node: fx.Node) -> Held:
        """The value of one call.

        Raises:
            UnsupportedError: the graph does not serve it; the message names the call and the line of the model.
        """
        inputs = [self.values[n] for n in node.all_input_nodes]
        touched = any(isinstance(v, int | list) for v in inputs)
        if isinstance(node.meta.get("val"), _NUMBERS):
            return self._size(node, touched)
        if call_name(node).startswith("_assert"):
            return Size(0)
        if node.target is operator.getitem:
            return self._entry(node)
        if not touched:
            return self._constant(node)
        handler = self.handlers.get(call_name(node))
        if handler is None or overload_of(node) is None:
            raise UnsupportedError(f"the model uses '{call_name(node)}'{where_of(node)}, which the graph does not know")
        self._same_type(node)
        self.builder.origin = call_name(node).rstrip("_")
        try:
            call = AtenCall(self, node)
            value = handler(call)
            call.close()
        except UnsupportedError as refusal:
            raise named(refusal, call_name(node), where_of(node)) from refusal.__cause__
        except HoldfastError:
            raise
        except (RuntimeError, IndexError, TypeError, ValueError, ArithmeticError, AssertionError) as error:
            raise unreadable(call_name(node), where_of(node), error) from error
        return value

    def refuse(self, node: fx.Node, needed: bool) -> None:
        """Refuses what no call may do, whatever it is.

        Args:
            node: any node of the program.
            needed: whether the output needs its value.

        Raises:
            UnsupportedError: the call is random, or writes in place.
        """
        if needed and is_random(node):
            raise UnsupportedError(
                f"the model is random: it draws numbers with '{call_name(node)}'{where_of(node)} in eval mode too, so no "
                "graph and no proof holds for it; switch the noise off in eval mode, or attack it as a randomised model"
            )
        target = overload_of(node)
        if target is not None and schema_of(target).is_mutable:
            raise UnsupportedError(
                f"'{call_name(node)}'{where_of(node)} writes in place, which the graph cannot follow here; "
                "write the operation without its underscore"
            )

    def _constant(self, node: fx.Node) -> Held:
        """A call that no input enters, as PyTorch itself computes it."""
        target, overload = node.target, overload_of(node)
        foreign = overload is not None and overload.namespace not in ("aten", "prims")
        if foreign and call_name(node) not in self.handlers:
            raise UnsupportedError(f"the model uses '{call_name(node)}'{where_of(node)}, which the graph does not know")
        assert callable(target)
        value: Any = target(*fx.map_arg(node.args, self._plain), **fx.map_arg(dict(node.kwargs), self._plain))
        if call_name(node) not in MOVES and isinstance(value, Tensor) and value.is_floating_point():
            self.builder.computed.append(call_name(node))
        if call_name(node) in (
            "empty",
            "empty_like",
            "new_empty",
            "empty_strided",
            "new_empty_strided",
            "empty_permuted",
        ):
            if not value.is_floating_point():
                raise UnsupportedError(f"'{call_name(node)}'{where_of(node)}: the values of memory that nobody wrote")
            value = torch.full_like(value, torch.nan)  # what nobody wrote must never pass for a number
        return list(cast("tuple[Value, ...]", value)) if isinstance(value, tuple) else value

    def _same_type(self, node: fx.Node) -> None:
        """Holds that a call keeps the type in which the model runs."""
        name = call_name(node)
        results = node.meta["val"]
        results = [results] if isinstance(results, Tensor) else list(results)
        for source in node.all_input_nodes:
            value = self.values[source]
            if not isinstance(value, int | list):
                continue
            kinds = source.meta["val"]
            kind = (kinds if isinstance(kinds, Tensor) else kinds[0]).dtype
            if not kind.is_floating_point and name not in self.whole:
                raise UnsupportedError(
                    f"'{name}'{where_of(node)} of {kind} values that depend on the input; the graph computes with "
                    "real numbers and serves whole ones in embeddings alone"
                )
            if kind.is_floating_point and kind != self.builder.dtype:
                raise UnsupportedError(
                    f"'{name}'{where_of(node)} of {kind} in a model that runs in {self.builder.dtype}"
                )
            if name != "embedding" and results[0].dtype != kind:
                raise UnsupportedError(
                    f"'{name}'{where_of(node)} gives {results[0].dtype} from {kind}: a conversion in the middle of the "
                    "model; the graph serves models that run in one type"
                )

    def _entry(self, node: fx.Node) -> Value:
        """One result of several."""
        source, place = node.args
        assert isinstance(source, fx.Node)
        values = self.values[source]
        if not isinstance(values, list) or not isinstance(place, int) or place >= len(values):
            raise UnsupportedError(
                f"'{call_name(source)}'{where_of(source)}, whose second result, such as positions, is used; the graph "
                "serves the first"
            )
        return values[place]

    def _size(self, node: fx.Node, touched: bool) -> Size:
        """A size for a batch of one."""
        target = node.target
        if touched:  # a size of a value that depends on the input
            first = self.values[node.all_input_nodes[0]]
            if call_name(node) != "sym_size" or not isinstance(first, int):
                raise UnsupportedError(
                    f"the model uses '{call_name(node)}'{where_of(node)}, which the graph does not know"
                )
            return Size(([1] * self.builder.batch_dims + list(self.builder.shape(first)))[int(node.args[1])])  # type: ignore[arg-type]
        assert callable(target)
        return Size(target(*fx.map_arg(node.args, self._plain), **fx.map_arg(dict(node.kwargs), self._plain)))

    def _plain(self, node: fx.Node) -> Any:
        value = self.values[node]
        return value.value if isinstance(value, Size) else value

    def operand(self, argument: Any) -> Value:
        """A number, a constant or a value that depends on the input."""
        if not isinstance(argument, fx.Node):
            if isinstance(argument, complex):
                raise UnsupportedError("a complex number; the graph computes with real ones")
            return torch.tensor(argument, dtype=torch.float64)
        value = self.values[argument]
        if isinstance(value, Size | list):
            raise UnsupportedError("arithmetic on the batch size or on a list")
        return value
