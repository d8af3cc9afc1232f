"""What the graph makes of ONNX operations that compute: units, products, norms and reductions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from math import inf, isnan
from typing import Any, cast

import torch
from torch import Tensor

from holdfast.core.arrays import distinct, listed
from holdfast.core.errors import ModelError, UnsupportedError
from holdfast.graph import compose, products
from holdfast.graph.build import BatchError, Builder, Value
from holdfast.graph.onnx_call import FLOATS, TYPES, WHOLE, Handler, OnnxCall, OnnxOp, type_name

__all__ = ["VALUES"]


def _gemm(c: OnnxCall) -> Value:
    x, y, shift = c.required(0), c.required(1), c.value(2)
    alpha, beta, turn, turn_y = (c.get(name) for name in ("alpha", "beta", "transA", "transB"))
    if isinstance(x, int) and isinstance(y, Tensor) and not turn and not isinstance(shift, int):
        weight = _times(y if turn_y else y.T, alpha)
        if shift is None or shift.ndim < 2 or len(shift) == 1:
            if shift is not None and shift.ndim and shift.shape[-1] not in (1, len(weight)):
                raise ModelError(f"'Gemm' with a bias of {shift.shape[-1]} entries for {len(weight)} outputs")
            return c.b.linear(x, weight, None if shift is None else _times(shift, beta).flatten().expand(len(weight)))
    if c.b.batch_dims:
        raise BatchError("'Gemm' that mixes the batch with the features; served is a constant second factor")
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        raise UnsupportedError(
            "'Gemm' of two constants and a bias that depends on the model's input; multiply them before exporting"
        )
    x, y = (_turned(c, v) if flag else v for v, flag in ((x, turn), (y, turn_y)))
    z = _scaled(c, products.matmul(c.b, x, y), alpha)
    return z if shift is None else c.b.add(z, _scaled(c, shift, beta))


def _times(value: Tensor, factor: float) -> Tensor:
    """A constant times a number of the file, without rounding it to float32."""
    return value if factor == 1 else value.double() * factor


def _scaled(c: OnnxCall, value: Value, factor: float) -> Value:
    """Any value times a number of the file."""
    if isinstance(value, Tensor):
        return _times(value, factor)
    return value if factor == 1 else c.b.affine(value, scale=factor)


def _turned(c: OnnxCall, value: Value) -> Value:
    return value.T if isinstance(value, Tensor) else c.b.permute(value, [1, 0])


def _two(c: OnnxCall) -> tuple[Value, Value]:
    """Both operands. Before opset 7 a smaller one had to be announced and was aligned elsewhere: not served."""
    return c.required(0), c.required(1)


def _matmul(c: OnnxCall) -> Value:
    return products.matmul(c.b, *_two(c))


def _batch_norm(c: OnnxCall) -> Value:
    scale, bias, mean, variance = (c.weight(i) for i in range(1, 5))
    c.get("momentum")  # of running statistics, which inference leaves alone
    if c.get("training_mode", 0):
        raise UnsupportedError(
            "'BatchNormalization' with training_mode=1, which normalises by the batch's own statistics; served is "
            "training_mode=0: export the model in eval mode"
        )
    c.need("spatial", 1)
    return compose.batch_norm(c.b, c.x, scale, bias, (mean, variance), c.get("epsilon"))


def _reduce(c: OnnxCall) -> tuple[int, list[int], bool]:
    keep = bool(c.get("keepdims"))
    axes, noop = c.argument("axes", 1) or None, c.get("noop_with_empty_axes", 0)
    if axes is None and noop:
        raise UnsupportedError(f"'{c.op}' with noop_with_empty_axes=1 and no axes; served are named axes")
    return c.x, c.dims(axes), keep


def _reduced(f: Callable[[Builder, int, Sequence[int], bool], int]) -> Handler:
    return lambda c: f(c.b, *_reduce(c))


def _many(f: Callable[[Builder, Value, Value], Value]) -> Callable[[OnnxCall], Value]:
    def read(c: OnnxCall) -> Value:
        values = c.all()
        if c.version < 8 and len({_shape(c, v) for v in values}) > 1:
            raise UnsupportedError(
                f"'{c.op}' of opset {c.version} of several shapes; served is one shape before opset 8"
            )
        return reduce(lambda x, y: f(c.b, x, y), values)

    return read


def _shape(c: OnnxCall, value: Value) -> tuple[int, ...]:
    return c.b.shape(value) if isinstance(value, int) else tuple(value.shape[c.b.batch_dims :])


def _average(c: OnnxCall) -> Value:
    return c.b.multiply(_many(Builder.add)(c), torch.tensor(1.0 / len(c.inputs), dtype=torch.float64))


def _pow(c: OnnxCall) -> Value:
    x, y = _two(c)
    if isinstance(y, Tensor) and isinstance(x, int):
        if distinct(y).numel() != 1:
            raise UnsupportedError("'Pow' with several exponents; served is one for all entries")
        exponent = float(y.flatten()[0])
        if y.ndim:  # it may be larger than the value
            x, _ = c.b.broadcast(x, y)
        if exponent == 0:
            return c.b.affine(x, scale=0.0, shift=1.0)
        return c.b.power(x, exponent)
    if not isinstance(x, Tensor):
        raise UnsupportedError(
            "'Pow' of two values that depend on the model's input; served is one constant of the two"
        )
    if not bool((x > 0).all()):
        raise UnsupportedError("'Pow' of a constant that is not positive; served are positive bases")
    return c.b.unary("exp", int(c.b.multiply(x.double().log(), y)))


def _where(c: OnnxCall) -> Value:
    c.kind = c.kinds[1]
    return compose.where(c.b, c.weight(0), c.required(1), c.required(2))


def _cast(c: OnnxCall) -> Value:
    _ = c.get("saturate"), c.get("round_mode")  # of the 8-bit floats, which are not served
    was, to = c.kinds[0], c.get("to")
    narrow = torch.finfo(c.b.dtype).eps
    if was in WHOLE and to in WHOLE:
        old, new = torch.iinfo(TYPES[was]), torch.iinfo(TYPES[to])
        fits = new.min <= old.min and old.max <= new.max
    else:
        fits = (was in WHOLE | FLOATS) and to in FLOATS and torch.finfo(TYPES[to]).eps <= narrow
    if not fits:
        raise UnsupportedError(
            f"'Cast' from {type_name(was)} to {type_name(to)} of a value that depends on the model's input, which would "
            "round it; served are casts to types that hold every value"
        )
    c.kind = to
    return c.x


def _dropout(c: OnnxCall) -> Value:
    _ = c.get("ratio"), c.constant(1), c.get("seed")  # of training
    mode = c.constant(2)
    if mode is not None and bool(mode):
        raise UnsupportedError(
            "'Dropout' with training_mode true, which draws at random; export the model in eval mode"
        )
    return c.x


def _in_float(c: OnnxCall) -> None:
    """Refuses a norm that runs in fewer digits than the model."""
    c.need("stash_type", 1)
    if c.kinds[0] == 11:
        raise UnsupportedError(
            f"'{c.op}' of double values with stash_type=1, which runs in float; served are float models"
        )


def _layer_norm(c: OnnxCall) -> Value:
    _in_float(c)
    dims = range(c.dim(c.get("axis")), len(c.shape))
    weight, bias = c.weight(1), c.constant(2)
    if any(t is not None and t.ndim > len(dims) for t in (weight, bias)):
        raise UnsupportedError(
            "'LayerNormalization' whose scale has more dimensions than are normalised; served are as many"
        )
    return compose.layer_norm(c.b, c.x, dims, weight, bias, c.get("epsilon"))


def _instance_norm(c: OnnxCall) -> Value:
    weight = c.weight(1)
    y = compose.group_norm(c.b, c.sample(), len(weight), weight, c.weight(2), c.get("epsilon"))
    return c.b.restore_batch(y, c.x)


def _group_norm(c: OnnxCall) -> Value:
    _in_float(c)
    groups = c.get("num_groups")
    return c.b.restore_batch(
        compose.group_norm(c.b, c.sample(), groups, c.weight(1), c.weight(2), c.get("epsilon")), c.x
    )


def _cumulated(c: OnnxCall) -> Value:
    axis = c.weight(1)
    if axis.numel() != 1:
        raise ModelError(f"'CumSum' along {listed(axis)}")
    return compose.cumulated(c.b, c.x, c.dim(int(axis)), bool(c.get("exclusive")), bool(c.get("reverse")))


def _selu(c: OnnxCall) -> Value:
    return c.b.affine(compose.elu(c.b, c.x, c.get("alpha")), scale=c.get("gamma"))


def _celu(c: OnnxCall) -> Value:
    alpha = c.get("alpha")
    if alpha <= 0:
        raise UnsupportedError(f"'Celu' with alpha={alpha:g}; served is alpha above 0")
    return c.b.affine(compose.elu(c.b, c.b.affine(c.x, scale=1 / alpha), 1.0), scale=alpha)


def _softsign(c: OnnxCall) -> Value:
    return c.b.divide(c.x, c.b.affine(c.b.unary("abs", c.x), shift=1.0))


def _mish(c: OnnxCall) -> Value:
    return c.b.multiply(c.x, c.b.unary("tanh", c.b.unary("softplus", c.x)))


def _clip(c: OnnxCall) -> Value:
    low, high = _end(c, "min", 1, -1.0), _end(c, "max", 2, 1.0)
    return compose.clip(c.b, c.x, low, high)


def _end(c: OnnxCall, name: str, i: int, side: float) -> float | None:
    """An end of a Clip; None where nothing that the model's type holds lies beyond it."""
    given = c.argument(name, i)
    values = cast("list[Any]", given) if isinstance(given, list) else [given]
    value = values[0] if len(values) == 1 else values
    if value is None:
        return None
    if isinstance(value, list) or isnan(value) or value == -side * inf:
        raise UnsupportedError(f"'Clip' with {name}={value}; served is one number")
    return None if side * value >= torch.finfo(c.b.dtype).max else float(value)


def _softmax(c: OnnxCall) -> Value:
    def work(x: int, dim: int) -> int:
        return c.b.softmax(x, dim) if c.op == "Softmax" else compose.log_softmax(c.b, x, dim)

    dim = c.dim(c.get("axis"))
    if c.version >= 13:
        return work(c.x, dim)
    # all dimensions from the axis on
    return c.b.reshape(work(c.b.reshape(c.x, (*c.shape[:dim], -1)), dim), c.shape)


def _gelu(c: OnnxCall) -> Value:
    return c.b.unary("gelu", c.x, approximate=c.need("approximate", "none", "tanh"))


def _unary(op: str) -> Handler:
    return lambda c: c.b.unary(op, c.x)


VALUES: dict[str, OnnxOp] = {
    "Gemm": OnnxOp(_gemm, 13, 7),
    "MatMul": OnnxOp(_matmul, 13),
    "BatchNormalization": OnnxOp(_batch_norm, 15, 7),
    "LayerNormalization": OnnxOp(_layer_norm, 17),
    "InstanceNormalization": OnnxOp(_instance_norm, 22, 6),
    "GroupNormalization": OnnxOp(_group_norm, 21, 21),
    "Relu": OnnxOp(_unary("relu"), 14, 6),
    "LeakyRelu": OnnxOp(lambda c: c.b.leaky_relu(c.x, c.get("alpha")), 16, 6),
    "PRelu": OnnxOp(lambda c: compose.prelu(c.b, c.x, c.weight(1)), 16, 7),
    "Sigmoid": OnnxOp(_unary("sigmoid"), 13, 6),
    "Tanh": OnnxOp(_unary("tanh"), 13, 6),
    "Erf": OnnxOp(_unary("erf"), 13),
    "Exp": OnnxOp(_unary("exp"), 13, 6),
    "Log": OnnxOp(_unary("log"), 13, 6),
    "Sin": OnnxOp(_unary("sin"), 22),
    "Cos": OnnxOp(_unary("cos"), 22),
    "Sqrt": OnnxOp(_unary("sqrt"), 13, 6),
    "Reciprocal": OnnxOp(_unary("reciprocal"), 13, 6),
    "Abs": OnnxOp(_unary("abs"), 13, 6),
    "Sign": OnnxOp(_unary("sign"), 13),
    "Softplus": OnnxOp(_unary("softplus"), 22),
    "Swish": OnnxOp(lambda c: c.b.multiply(c.x, c.b.unary("sigmoid", c.b.affine(c.x, scale=c.get("alpha")))), 24),
    "Gelu": OnnxOp(_gelu, 20),
    "Elu": OnnxOp(lambda c: compose.elu(c.b, c.x, c.get("alpha")), 22, 6),
    "Selu": OnnxOp(_selu, 22, 6),
    "Celu": OnnxOp(_celu, 28),
    "Softsign": OnnxOp(_softsign, 22),
    "Mish": OnnxOp(_mish, 22),
    "HardSigmoid": OnnxOp(lambda c: compose.hardsigmoid(c.b, c.x, c.get("alpha"), c.get("beta")), 22, 6),
    "HardSwish": OnnxOp(lambda c: compose.hardswish(c.b, c.x), 22),
    "Pow": OnnxOp(_pow, 15, 7),
    "Add": OnnxOp(lambda c: c.b.add(*_two(c)), 14, 7),
    "Sub": OnnxOp(lambda c: c.b.add(*_two(c), sign=-1.0), 14, 7),
    "Mul": OnnxOp(lambda c: c.b.multiply(*_two(c)), 14, 7),
    "Div": OnnxOp(lambda c: c.b.divide(*_two(c)), 14, 7),
    "Neg": OnnxOp(lambda c: c.b.affine(c.x, scale=-1.0), 13, 6),
    "Max": OnnxOp(_many(compose.maximum), 13, 6),
    "Min": OnnxOp(_many(compose.minimum), 13, 6),
    "Sum": OnnxOp(_many(Builder.add), 13, 6),
    "Mean": OnnxOp(_average, 13, 6),
    "Where": OnnxOp(_where, 16),
    "CumSum": OnnxOp(_cumulated, 14),
    "ReduceMean": OnnxOp(_reduced(Builder.mean), 18),
    "ReduceSum": OnnxOp(_reduced(compose.total), 13),
    "ReduceMax": OnnxOp(_reduced(compose.amax), 20),
    "ReduceMin": OnnxOp(_reduced(compose.amin), 20),
    "ReduceProd": OnnxOp(_reduced(compose.product), 18),
    "ReduceL1": OnnxOp(_reduced(lambda b, x, dims, keep: compose.norm(b, x, 1, dims, keep)), 18),
    "ReduceL2": OnnxOp(_reduced(lambda b, x, dims, keep: compose.norm(b, x, 2, dims, keep)), 18),
    "ReduceSumSquare": OnnxOp(_reduced(lambda b, x, dims, keep: compose.total(b, b.power(x, 2.0), dims, keep)), 18),
    "ReduceLogSumExp": OnnxOp(_reduced(compose.logsumexp), 28),
    "Clip": OnnxOp(_clip, 13, 6),
    "Softmax": OnnxOp(_softmax, 13),
    "LogSoftmax": OnnxOp(_softmax, 13),
    "Cast": OnnxOp(_cast, 28, 6, FLOATS | WHOLE),
    "Dropout": OnnxOp(_dropout, 22, 7),
    "Identity": OnnxOp(lambda c: c.required(0), 25, kinds=FLOATS | WHOLE | {9}),
}
