"""Operations of constants, computed once while reading: what the file says, not what a runtime would round.

Whole numbers are computed exactly, entries that only move are moved. Floats are computed in float64 by the graph's own
operations, under the same guards as everything else, with a bound on the error of each entry. A constant that is not
known to a few units of float64's roundoff, as after cancellation, is refused: bounds pay for no more than that.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from holdfast.core.arrays import listed, tensor_of
from holdfast.core.errors import ModelError, UnsupportedError
from holdfast.graph.build import Builder
from holdfast.graph.model import Node
from holdfast.graph.onnx_call import BOOL, FLOATS, TYPES, WHOLE, OnnxCall, OnnxOp, type_name
from holdfast.graph.onnx_images import IMAGES
from holdfast.graph.onnx_shapes import SHAPES
from holdfast.graph.onnx_values import VALUES
from holdfast.graph.operations import OPERATIONS, Rounding, compute

__all__ = ["CONSTANTS", "Folded", "folded"]

Folded = list[tuple[Tensor, Tensor | None]]
"""Values with the error of each entry; None where they are exact."""

_U = 2.0**-53
_UNITS = 16.0  # of relative error, which bounds pay for in every constant
_NEAR = 1e-5  # a float nearer to a jump may fall on either side of it in float32
_MOVES = frozenset((*SHAPES, "Identity")) - {"Pad", "Concat"}


def folded(c: OnnxCall, errors: Sequence[Tensor | None]) -> Folded:
    """The outputs of an operation of constants.

    Args:
        c: the operation; all of its inputs are constants.
        errors: of its inputs.

    Raises:
        UnsupportedError: an operation, or a setting of it, that is not served, or a value that is not known well enough.
    """
    if c.op in CONSTANTS:
        return [CONSTANTS[c.op](c, errors)]
    if c.op in _REDUCTIONS and c.kinds[0] in WHOLE:
        return [(_reduced_whole(c), None)]
    served = VALUES.get(c.op) or SHAPES.get(c.op) or IMAGES.get(c.op)
    if served is None:
        raise UnsupportedError(f"the model uses '{c.op}' on constants, which is not served; fold them before exporting")
    first = c.inputs[0]
    assert isinstance(first, Tensor)
    if c.op in _MOVES:
        return _moved(c, served, first, errors[0])
    if c.kinds[0] not in FLOATS:
        raise UnsupportedError(f"'{c.op}' of constants of type {type_name(c.kinds[0])}; served are floats")
    if any(e is not None for e in errors[1:]):
        raise UnsupportedError(
            f"'{c.op}' of several constants that were computed; fold them before exporting the model"
        )
    inner, nodes, outputs = _built(c, served, first.shape, torch.float64)
    values: list[Tensor] = [first.double()[None]]
    wrong: list[Tensor] = [torch.zeros_like(values[0]) if errors[0] is None else errors[0][None]]
    for node in nodes[1:]:
        given = [values[j] for j in node.inputs]
        node = replace(node, tensors={k: t.double() if t.is_floating_point() else t for k, t in node.tensors.items()})
        values.append(_mean(given[0], node) if node.op == "mean" else _value(node, given))
        wrong.append(_error(node, given, [wrong[j] for j in node.inputs], values[-1]))
    c.kind = inner.kind
    return [(values[i][0], wrong[i][0] if bool(wrong[i].any()) else None) for i in outputs]


def known(value: Tensor, error: Tensor | None) -> bool:
    """Whether a constant is known as well as bounds need it."""
    return error is None or bool((error <= _UNITS * _U * value.double().abs()).all())


def _built(
    c: OnnxCall, served: OnnxOp, shape: Sequence[int], dtype: torch.dtype
) -> tuple[OnnxCall, Sequence[Node], list[int]]:
    """The nodes of an operation whose first input is a constant of a shape."""
    builder = Builder(shape, dtype, batch_dims=0)
    inner = replace(c, b=builder, inputs=[0, *c.inputs[1:]], batch=1)
    found = served.handler(inner)
    found = found if isinstance(found, list) else [found]
    inner.finished(len(found))
    c.asked = inner.asked
    return inner, builder.nodes, [int(i) for i in found]  # type: ignore[arg-type]


def _moved(c: OnnxCall, served: OnnxOp, first: Tensor, error: Tensor | None) -> Folded:
    """An operation that only moves entries, by where each of them goes."""
    inner, nodes, outputs = _built(c, served, first.shape, torch.float64)
    values: list[Tensor] = [torch.arange(first.numel()).view(1, *first.shape)]
    for node in nodes[1:]:
        values.append(compute(node.op, [values[j] for j in node.inputs], node.tensors, node.attributes))
    c.kind = inner.kind
    flat = first.reshape(-1)
    return [(flat[values[i][0]], None if error is None else error.reshape(-1)[values[i][0]]) for i in outputs]


def _value(node: Node, given: Sequence[Tensor]) -> Tensor:
    return compute(node.op, given, node.tensors, node.attributes)


def _mean(x: Tensor, node: Node) -> Tensor:
    """A mean of many entries, in the widest type that there is."""
    dims = tuple(d + 1 for d in node.attributes["dims"])
    return tensor_of(np.asarray(x.numpy().astype(np.longdouble).mean(dims, keepdims=True), np.float64))


def _error(node: Node, given: Sequence[Tensor], wrong: Sequence[Tensor], value: Tensor) -> Tensor:
    """How far a node's value may be from what it is in real numbers."""
    op, a, t = node.op, node.attributes, {k: v.abs() for k, v in node.tensors.items() if k != "size"}
    bare = {k: v for k, v in t.items() if k not in ("bias", "shift")}
    operation = OPERATIONS[op]
    if operation.rounding is Rounding.EXACT:
        moves = operation.linear or op == "max_pool"
        return compute(op, wrong, node.tensors, a) if moves else wrong[0]
    if op == "mean":
        dims: Sequence[int] = a["dims"]
        count = torch.Size([given[0].shape[d + 1] for d in dims]).numel()
        own = (count + 4) * float(np.finfo(np.longdouble).eps) / 2 + _U
        return compute(op, wrong, {}, a) + own * compute(op, [given[0].abs()], {}, a)
    if operation.linear and len(wrong) == 2:
        return wrong[0] + wrong[1] + _U * value.abs()
    if operation.rounding is Rounding.SUM_OF_PRODUCTS and len(wrong) == 2:
        x, y = (g.abs() for g in given)
        terms = given[0].shape[-1] if op == "matmul" else 0
        parts = [(wrong[0], y), (x, wrong[1]), (wrong[0], wrong[1])]
        return sum((compute(op, p, {}, a) for p in parts), (terms + 1) * _U * compute(op, [x, y], {}, a))  # type: ignore[return-value]
    if operation.rounding is Rounding.SUM_OF_PRODUCTS:
        terms = t["weight"][:1].numel() if "weight" in t else 1
        return compute(op, wrong, bare, a) + (terms + 2) * _U * compute(op, [given[0].abs()], t, a)
    ends = [compute(op, [given[0] + sign * wrong[0]], node.tensors, a) for sign in (-1.0, 1.0)]
    spread = torch.maximum((ends[0] - value).abs(), (ends[1] - value).abs())
    if op == "softmax":  # an error of e in the scores is one of 2 e in the logarithm
        spread = value * 2 * wrong[0].amax(a["dim"] + 1, keepdim=True)
        return spread + 8 * _U * value
    if not operation.monotone and bool(wrong[0].any()):
        raise UnsupportedError(f"'{op}' of a constant that was computed; fold it before exporting the model")
    return 2 * spread + 4 * _U * value.abs()


def _arithmetic(c: OnnxCall, errors: Sequence[Tensor | None]) -> tuple[Tensor, Tensor | None]:
    """Add, Sub, Mul and Div of two constants."""
    x, y = c.weight(0), c.weight(1)
    if c.version < 7:
        raise UnsupportedError(f"'{c.op}' of opset {c.version}; served is opset 7 and newer")
    if c.kinds[0] not in FLOATS:
        return _whole(c, [x, y]), None
    x, y = x.double(), y.double()
    ex, ey = (torch.zeros((), dtype=torch.float64) if e is None else e for e in errors)
    exact = errors[0] is None and errors[1] is None
    if c.op in ("Add", "Sub"):
        y = -y if c.op == "Sub" else y
        value = x + y
        back = value - x
        lost = (x - (value - back)) + (y - back)  # what the sum rounded away, exactly (Knuth)
        error = ex + ey + _U * value.abs() * (lost != 0)
    elif c.op == "Mul":
        value = x * y
        halves = exact and bool((x == x.float()).all()) and bool((y == y.float()).all())
        error = x.abs() * ey + y.abs() * ex + ex * ey + (0.0 if halves else _U) * value.abs()
    else:
        value = x / y
        error = (ex + value.abs() * ey) / (y.abs() - ey) + _U * value.abs()
        if not bool(((y.abs() > ey) & value.isfinite()).all()):
            raise UnsupportedError("'Div' of constants by zero; served are other divisors")
    error = error.expand_as(value)
    return value, error if bool(error.any()) else None


def _integers(values: Sequence[Tensor]) -> list[Any]:
    """Constants as Python's own whole numbers, which never overflow."""
    return [np.array(v.numpy(), dtype=object) for v in values]


def _quotient(x: Any, y: Any) -> Any:
    """Towards zero, as ONNX divides whole numbers."""
    if (y == 0).any():
        raise UnsupportedError("'Div' of whole numbers by zero; served are other divisors")
    return cast("Any", np.where((x < 0) != (y < 0), -(abs(x) // abs(y)), abs(x) // abs(y)))


def _remainder(c: OnnxCall, x: Any, y: Any) -> Any:
    if (y == 0).any():
        raise UnsupportedError("'Mod' by zero; served are other divisors")
    return x - _quotient(x, y) * y if c.get("fmod") else x % y


_Whole = Callable[[OnnxCall, Sequence[Any]], Any]


def _of_two(f: Callable[[Any, Any], Any]) -> _Whole:
    def work(c: OnnxCall, values: Sequence[Any]) -> Any:
        x, y = values
        return f(x, y)

    return work


def _of_one(f: Callable[[Any], Any]) -> _Whole:
    def work(c: OnnxCall, values: Sequence[Any]) -> Any:
        (x,) = values
        return f(x)

    return work


def _modulo(c: OnnxCall, values: Sequence[Any]) -> Any:
    x, y = values
    return _remainder(c, x, y)


_WHOLE_NUMBERS: dict[str, _Whole] = {
    "Add": _of_two(operator.add),
    "Sub": _of_two(operator.sub),
    "Mul": _of_two(operator.mul),
    "Div": _of_two(_quotient),
    "Mod": _modulo,
    "Neg": _of_one(operator.neg),
    "Abs": _of_one(operator.abs),
    "Max": lambda c, v: _pairs(np.maximum, v),
    "Min": lambda c, v: _pairs(np.minimum, v),
}


def _pairs(f: Callable[[Any, Any], Any], values: Sequence[Any]) -> Any:
    out = values[0]
    for v in values[1:]:
        out = f(out, v)
    return out


def _whole(c: OnnxCall, values: Sequence[Tensor]) -> Tensor:
    """An operation of whole numbers, exactly."""
    if c.kinds[0] not in WHOLE or c.op not in _WHOLE_NUMBERS:
        raise UnsupportedError(
            f"'{c.op}' of constants of type {type_name(c.kinds[0])}; served are floats and whole numbers"
        )
    return _fitting(c, _WHOLE_NUMBERS[c.op](c, _integers(values)), c.kinds[0])


def _fitting(c: OnnxCall, found: Any, kind: int) -> Tensor:
    found = np.asarray(found, dtype=object)
    limits = torch.iinfo(TYPES[kind])
    if any(not limits.min <= v <= limits.max for v in found.reshape(-1)):
        raise UnsupportedError(
            f"'{c.op}' of constants that overflows {type_name(kind)}; served are numbers that it holds"
        )
    return torch.tensor(found.tolist(), dtype=TYPES[kind]).reshape(found.shape)


def _either(op: str) -> Callable[[OnnxCall, Sequence[Tensor | None]], tuple[Tensor, Tensor | None]]:
    """An operation of any number of constants: of whole numbers, or of floats without error."""

    def read(c: OnnxCall, errors: Sequence[Tensor | None]) -> tuple[Tensor, Tensor | None]:
        values = [c.weight(i) for i in range(len(c.inputs))]
        if c.kinds[0] in WHOLE:
            return _whole(c, values), None
        if c.kinds[0] not in FLOATS or (len(values) > 1 and any(e is not None for e in errors)):
            raise UnsupportedError(
                f"'{op}' of constants of type {type_name(c.kinds[0])}; served are numbers of the file"
            )
        floats = [v.double() for v in values]
        if op in ("Neg", "Abs"):
            return (-floats[0] if op == "Neg" else floats[0].abs()), errors[0]
        return _pairs(torch.maximum if op == "Max" else torch.minimum, floats), None

    return read


def _compared(f: Callable[[Tensor, Tensor], Tensor]) -> Any:
    def read(c: OnnxCall, errors: Sequence[Tensor | None]) -> tuple[Tensor, None]:
        x, y = c.weight(0), c.weight(1)
        if c.kinds[0] in FLOATS:
            x, y = x.double(), y.double()
            near = ((x - y).abs() <= _NEAR * (x.abs() + y.abs())) & (x != y)
            if bool(near.any()) or any(e is not None for e in errors):
                raise UnsupportedError(f"'{c.op}' of constants that are equal up to rounding; fold it before exporting")
        c.kind = BOOL
        return f(x, y), None

    return read


def _logical(f: Callable[..., Tensor]) -> Any:
    def read(c: OnnxCall, errors: Sequence[Tensor | None]) -> tuple[Tensor, None]:
        return f(*(c.weight(i) for i in range(len(c.inputs)))), None

    return read


def _rounded(f: Callable[[Tensor], Tensor]) -> Any:
    def read(c: OnnxCall, errors: Sequence[Tensor | None]) -> tuple[Tensor, None]:
        return f(_off_jumps(c, c.weight(0).double(), errors[0], 0.5 if c.op == "Round" else 0.0)), None

    return read


def _off_jumps(c: OnnxCall, x: Tensor, error: Tensor | None, at: float = 0.0) -> Tensor:
    """Floats that no rounding carries over a whole number (or a half), where a step function jumps."""
    from_jump = ((x - at) - (x - at).round()).abs()
    if not bool(x.isfinite().all()):
        raise UnsupportedError(f"'{c.op}' of a constant that is infinite or no number; served are finite ones")
    if bool(((from_jump <= _NEAR * x.abs().clamp(min=1)) & ((from_jump != 0) | (error is not None))).any()):
        raise UnsupportedError(
            f"'{c.op}' of a constant that is within rounding of where it jumps; fold it before exporting"
        )
    return x


def _cast(c: OnnxCall, errors: Sequence[Tensor | None]) -> tuple[Tensor, Tensor | None]:
    x, was, to = c.weight(0), c.kinds[0], c.get("to")
    _ = c.get("saturate"), c.get("round_mode")  # of the 8-bit floats, which are not served
    if to not in TYPES:
        raise UnsupportedError(
            f"'Cast' of a constant to {type_name(to)}; served are {', '.join(map(type_name, TYPES))}"
        )
    c.kind = to
    if to in FLOATS:  # float16 holds fewer numbers than float32; others are kept as they are
        if was in FLOATS and torch.finfo(TYPES[to]).eps > torch.finfo(TYPES[was]).eps:
            return x.to(TYPES[to]), None if errors[0] is None else _refuse_error(c)
        return (x.double(), errors[0]) if was in FLOATS else (_held(c, x, TYPES[to]), None)
    if to == BOOL:
        return x != 0, None
    if was in FLOATS:
        return _fitting(c, _integers([_off_jumps(c, x.double(), errors[0]).trunc().long()])[0], to), None
    return _fitting(c, _integers([x.long()])[0], to), None


def _held(c: OnnxCall, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Whole numbers as floats of a type, which must hold them."""
    found = x.to(dtype).double()
    if not bool((found.long() == x.long()).all()):
        raise UnsupportedError(f"'{c.op}' of whole numbers that a float cannot hold; served are those that it can")
    return found


def _refuse_error(c: OnnxCall) -> Tensor:
    raise UnsupportedError(f"'{c.op}' to fewer digits of a constant that was computed; fold it before exporting")


def _where(c: OnnxCall, errors: Sequence[Tensor | None]) -> tuple[Tensor, Tensor | None]:
    chosen, x, y = c.weight(0), c.weight(1), c.weight(2)
    c.kind = c.kinds[1]
    if c.kind in FLOATS:
        x, y = x.double(), y.double()
    value = torch.where(chosen, x, y)
    if errors[1] is None and errors[2] is None:
        return value, None
    ex, ey = (torch.zeros_like(v, dtype=torch.float64) if e is None else e for v, e in ((x, errors[1]), (y, errors[2])))
    return value, torch.where(chosen, ex, ey)


def _concat(c: OnnxCall, errors: Sequence[Tensor | None]) -> tuple[Tensor, Tensor | None]:
    parts = [c.weight(i) for i in range(len(c.inputs))]
    axis = c.get("axis", 1)
    if len({p.dtype for p in parts}) > 1:
        parts = [p.double() for p in parts]
    if all(e is None for e in errors):
        return torch.cat(parts, axis), None
    zeros = [torch.zeros_like(p, dtype=torch.float64) if e is None else e for p, e in zip(parts, errors, strict=True)]
    return torch.cat(parts, axis), torch.cat(zeros, axis)


def _range(c: OnnxCall, errors: Sequence[Tensor | None]) -> tuple[Tensor, None]:
    if c.kinds[0] not in WHOLE:
        raise UnsupportedError("'Range' of floats; served are whole numbers")
    start, limit, step = (int(c.weight(i)) for i in range(3))
    if not step:
        raise ModelError("'Range' with a step of 0")
    return torch.arange(start, limit, step, dtype=TYPES[c.kinds[0]]) if (limit - start) * step > 0 else torch.empty(
        0, dtype=TYPES[c.kinds[0]]
    ), None


def _filled(c: OnnxCall, errors: Sequence[Tensor | None]) -> tuple[Tensor, None]:
    value = c.get("value", torch.zeros(1))
    c.kind = next((k for k, dtype in TYPES.items() if dtype == value.dtype), 1)
    return value.reshape(()).expand(listed(c.weight(0))).clone(), None


def _shape(c: OnnxCall, errors: Sequence[Tensor | None]) -> tuple[Tensor, None]:
    shape = c.weight(0).shape
    c.kind = 7
    if c.op == "Size":
        return torch.tensor(shape.numel()), None
    return torch.tensor(list(shape)[c.get("start", 0) : c.get("end")], dtype=torch.int64), None


def _triangle(c: OnnxCall, errors: Sequence[Tensor | None]) -> tuple[Tensor, Tensor | None]:
    k = c.constant(1)
    cut = torch.triu if c.get("upper") else torch.tril
    diagonal = 0 if k is None else int(k)
    x = c.weight(0)
    return cut(x, diagonal), None if errors[0] is None else cut(errors[0], diagonal)


def _reduced_whole(c: OnnxCall) -> Tensor:
    """A reduction of whole numbers, exactly."""
    axes, keep = c.argument("axes", 1) or None, bool(c.get("keepdims"))
    if axes is None and c.get("noop_with_empty_axes", 0):
        raise UnsupportedError(f"'{c.op}' with noop_with_empty_axes=1 and no axes; served are named axes")
    (x,) = _integers([c.weight(0)])
    return _fitting(c, _REDUCTIONS[c.op](x, axis=None if axes is None else tuple(axes), keepdims=keep), c.kinds[0])


_REDUCTIONS: dict[str, Callable[..., Any]] = {
    "ReduceSum": np.sum,
    "ReduceProd": np.prod,
    "ReduceMax": np.max,
    "ReduceMin": np.min,
}

CONSTANTS: dict[str, Callable[[OnnxCall, Sequence[Tensor | None]], tuple[Tensor, Tensor | None]]] = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), _arithmetic),
    **{op: _either(op) for op in ("Neg", "Abs", "Max", "Min")},
    "Mod": lambda c, errors: (_whole(c, [c.weight(0), c.weight(1)]), None),
    "Equal": _compared(torch.eq),
    "Less": _compared(torch.lt),
    "LessOrEqual": _compared(torch.le),
    "Greater": _compared(torch.gt),
    "GreaterOrEqual": _compared(torch.ge),
    "Not": _logical(torch.logical_not),
    "And": _logical(torch.logical_and),
    "Or": _logical(torch.logical_or),
    "Xor": _logical(torch.logical_xor),
    "Floor": _rounded(torch.floor),
    "Ceil": _rounded(torch.ceil),
    "Round": _rounded(torch.round),
    "Cast": _cast,
    "Where": _where,
    "Concat": _concat,
    "Range": _range,
    "ConstantOfShape": _filled,
    "Shape": _shape,
    "Size": _shape,
    "Trilu": _triangle,
}
