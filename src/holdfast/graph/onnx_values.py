"""What the graph makes of ONNX operations that compute: units, products, norms and reductions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

import torch
from torch import Tensor

from holdfast.core.errors import ModelError, UnsupportedError
from holdfast.graph import compose
from holdfast.graph.build import Builder, Value
from holdfast.graph.onnx_call import Call, Handler

__all__ = ["VALUES"]


def _gemm(c: Call) -> Value:
    x, y = _two(c)
    if isinstance(x, int) and isinstance(y, Tensor) and not c.get("transA", 0):
        bias = c.constant(2)
        weight = (y if c.get("transB", 0) else y.T) * c.get("alpha", 1.0)
        if bias is None or bias.ndim < 2 or len(bias) == 1:
            bias = None if bias is None else (bias * c.get("beta", 1.0)).flatten().expand(len(weight))
            return c.b.linear(x, weight, bias)
    if c.b.lead:
        raise UnsupportedError("'Gemm' that mixes the batch with the features")
    x, y = (_turned(c, v) if c.get(name, 0) else v for v, name in ((x, "transA"), (y, "transB")))
    z = c.b.multiply(c.b.matmul(x, y), torch.tensor(c.get("alpha", 1.0)))
    shift = c.inputs[2] if len(c.inputs) > 2 else None
    return z if shift is None else c.b.add(z, c.b.multiply(shift, torch.tensor(c.get("beta", 1.0))))


def _turned(c: Call, value: Value) -> Value:
    return value.T if isinstance(value, Tensor) else c.b.permute(value, [1, 0])


def _matmul(c: Call) -> Value:
    return c.b.matmul(*_two(c))


def _batch_norm(c: Call) -> Value:
    scale, bias, mean, variance = (c.weight(i) for i in range(1, 5))
    return c.b.batch_norm(c.x, scale, bias, mean, variance, c.get("epsilon", 1e-5))


def _two(c: Call) -> tuple[Value, Value]:
    x, y = c.inputs[:2]
    if x is None or y is None:
        raise ModelError(f"'{c.op}' lacks an input")
    return x, y


def _reduce(c: Call) -> tuple[int, list[int], bool]:
    axes = c.argument("axes", 1) or None
    if axes is None and c.get("noop_with_empty_axes", 0):
        return c.x, [], True
    return c.x, c.dims(axes), bool(c.get("keepdims", 1))


def _reduced(f: Callable[[Builder, int, Sequence[int], bool], int]) -> Handler:
    return lambda c: f(c.b, *_reduce(c))


def _many(f: Callable[[Builder, Value, Value], Value]) -> Callable[[Call], Value]:
    return lambda c: reduce(lambda x, y: f(c.b, x, y), [v for v in c.inputs if v is not None])


def _average(c: Call) -> Value:
    return c.b.multiply(_many(Builder.add)(c), torch.tensor(1.0 / len(c.inputs), dtype=torch.float64))


def _pow(c: Call) -> Value:
    x, y = _two(c)
    if isinstance(y, Tensor) and isinstance(x, int):
        if y.unique().numel() != 1:
            raise UnsupportedError("'Pow' with several exponents")
        if y.ndim > len(c.full):
            raise UnsupportedError("'Pow' that adds dimensions")
        return c.b.power(x, float(y.flatten()[0]))
    logarithm = x.double().log() if isinstance(x, Tensor) else c.b.unary("log", x)
    return c.b.unary("exp", int(c.b.multiply(logarithm, y)))


def _where(c: Call) -> Value:
    condition = c.weight(0)
    x, y = c.inputs[1:3]
    if x is None or y is None:
        raise ModelError("'Where' lacks an input")
    return compose.where(c.b, condition, x, y)


def _cast(c: Call) -> Value:
    # the file's types as numbers: 1 float, 11 double, 6 int32, 7 int64
    if c.get("to") not in ((1, 11, 6, 7) if c.whole else (1, 11)):
        raise UnsupportedError("'Cast' of a value that depends on the input to a type with fewer values")
    return c.x


def _layer_norm(c: Call) -> Value:
    dims = range(c.dim(c.get("axis", -1)), len(c.shape))
    return compose.layer_norm(c.b, c.x, dims, c.weight(1), c.constant(2), c.get("epsilon", 1e-5))


def _instance_norm(c: Call) -> Value:
    weight = c.weight(1)
    y = compose.group_norm(c.b, c.sample(), len(weight), weight, c.weight(2), c.get("epsilon", 1e-5))
    return c.b.again(y, c.x)


def _group_norm(c: Call) -> Value:
    if c.opset < 21:
        raise UnsupportedError("'GroupNormalization' before opset 21")
    groups, eps = c.get("num_groups"), c.get("epsilon", 1e-5)
    return c.b.again(compose.group_norm(c.b, c.sample(), groups, c.weight(1), c.weight(2), eps), c.x)


def _cumulated(c: Call) -> Value:
    if c.get("exclusive", 0) or c.get("reverse", 0):
        raise UnsupportedError("'CumSum' that is exclusive or reversed")
    return compose.cumulated(c.b, c.x, c.dim(int(c.weight(1))))


def _elu(c: Call) -> Value:
    return c.b.unary("elu", c.x, alpha=c.get("alpha", 1.0))


def _selu(c: Call) -> Value:
    alpha, gamma = c.get("alpha", 1.67326319217681884765625), c.get("gamma", 1.05070102214813232421875)
    return c.b.affine(c.b.unary("elu", c.x, alpha=alpha), scale=gamma)


def _celu(c: Call) -> Value:
    alpha = c.get("alpha", 1.0)
    return c.b.affine(c.b.unary("elu", c.b.affine(c.x, scale=1 / alpha), alpha=1.0), scale=alpha)


def _softsign(c: Call) -> Value:
    return c.b.divide(c.x, c.b.affine(c.b.unary("abs", c.x), shift=1.0))


def _mish(c: Call) -> Value:
    return c.b.multiply(c.x, c.b.unary("tanh", c.b.unary("softplus", c.x)))


def _clip(c: Call) -> Value:
    return c.b.clip(c.x, c.argument("min", 1), c.argument("max", 2))


def _softmax(c: Call) -> Value:
    work = c.b.softmax if c.op == "Softmax" else lambda x, dim: compose.log_softmax(c.b, x, dim)
    if c.opset >= 13:
        return work(c.x, c.dim(c.get("axis", -1)))
    dim = c.dim(c.get("axis", 1))  # all dimensions from the axis on
    return c.b.reshape(work(c.b.reshape(c.x, (*c.shape[:dim], -1)), dim), c.shape)


def _unary(op: str) -> Handler:
    return lambda c: c.b.unary(op, c.x)


VALUES: dict[str, Handler] = {
    "Gemm": _gemm,
    "MatMul": _matmul,
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "Relu": _unary("relu"),
    "LeakyRelu": lambda c: c.b.leaky_relu(c.x, c.get("alpha", 0.01)),
    "PRelu": lambda c: compose.prelu(c.b, c.x, c.weight(1)),
    "Sigmoid": _unary("sigmoid"),
    "Tanh": _unary("tanh"),
    "Erf": _unary("erf"),
    "Exp": _unary("exp"),
    "Log": _unary("log"),
    "Sin": _unary("sin"),
    "Cos": _unary("cos"),
    "Sqrt": _unary("sqrt"),
    "Reciprocal": _unary("reciprocal"),
    "Abs": _unary("abs"),
    "Sign": _unary("sign"),
    "Softplus": _unary("softplus"),
    "Swish": lambda c: c.b.multiply(c.x, c.b.unary("sigmoid", c.b.affine(c.x, scale=c.get("alpha", 1.0)))),
    "Gelu": lambda c: c.b.unary("gelu", c.x, approximate=c.get("approximate", "none")),
    "Elu": _elu,
    "Selu": _selu,
    "Celu": _celu,
    "Softsign": _softsign,
    "Mish": _mish,
    "HardSigmoid": lambda c: compose.hardsigmoid(c.b, c.x, c.get("alpha", 0.2), c.get("beta", 0.5)),
    "HardSwish": lambda c: compose.hardswish(c.b, c.x),
    "Pow": _pow,
    "Add": lambda c: c.b.add(*_two(c)),
    "Sub": lambda c: c.b.add(*_two(c), sign=-1.0),
    "Mul": lambda c: c.b.multiply(*_two(c)),
    "Div": lambda c: c.b.divide(*_two(c)),
    "Neg": lambda c: c.b.affine(c.x, scale=-1.0),
    "Max": _many(compose.maximum),
    "Min": _many(compose.minimum),
    "Sum": _many(Builder.add),
    "Mean": _average,
    "Where": _where,
    "CumSum": _cumulated,
    "ReduceMean": _reduced(Builder.mean),
    "ReduceSum": _reduced(compose.total),
    "ReduceMax": _reduced(compose.amax),
    "ReduceMin": _reduced(compose.amin),
    "ReduceProd": _reduced(compose.product),
    "ReduceL1": _reduced(lambda b, x, dims, keep: compose.norm(b, x, 1, dims, keep)),
    "ReduceL2": _reduced(lambda b, x, dims, keep: compose.norm(b, x, 2, dims, keep)),
    "ReduceSumSquare": _reduced(lambda b, x, dims, keep: compose.total(b, b.power(x, 2.0), dims, keep)),
    "ReduceLogSumExp": _reduced(compose.logsumexp),
    "Clip": _clip,
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "Cast": _cast,
    "Dropout": lambda c: c.x,
    "Identity": lambda c: c.x,
}
