"""What the graph makes of ATen calls that compute: units, products, norms and reductions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from holdfast.core.arrays import distinct
from holdfast.core.errors import UnsupportedError
from holdfast.graph import compose, products
from holdfast.graph.aten_attention import attention
from holdfast.graph.aten_call import AtenCall, Handler, where_of
from holdfast.graph.build import Builder, Value

__all__ = ["VALUES"]


def _linear(c: AtenCall) -> Value:
    return c.b.linear(c.x, c.weight("weight"), c.constant("bias"))


def _matmul(c: AtenCall) -> Value:
    return products.matmul(c.b, *map(c.operand, c.names[:2]))


def _addmm(c: AtenCall) -> Value:
    """``beta * self + alpha * (mat1 @ mat2)``."""
    alpha, beta = c.number("alpha"), c.number("beta")
    shift, x, y = (c.operand(name) for name in ("self", "mat1", "mat2"))
    if (
        alpha == beta == 1
        and isinstance(shift, Tensor)
        and shift.ndim == 1
        and isinstance(x, int)
        and isinstance(y, Tensor)
    ):
        return c.b.linear(x, y.T, shift.expand(y.shape[1]))
    product = c.b.multiply(products.matmul(c.b, x, y), torch.tensor(alpha, dtype=torch.float64))
    return c.b.add(product, c.b.multiply(shift, torch.tensor(beta, dtype=torch.float64)))


def _batch_norm(c: AtenCall) -> Value:
    if c.has("training") and c.get("training"):
        return _batch_statistics(c)
    c.skip("momentum")
    statistics = [c.constant(name) for name in ("running_mean", "running_var")]
    if statistics[0] is None or statistics[1] is None:
        return _batch_statistics(c)
    weight, bias = c.constant("weight"), c.constant("bias")
    return compose.batch_norm(c.b, c.x, weight, bias, (statistics[0], statistics[1]), c.number("eps"))


def _batch_statistics(c: AtenCall) -> Value:
    raise UnsupportedError(
        f"'{c.name}'{where_of(c.node)} normalises by the statistics of the batch in eval mode too, so the answer for one "
        "input depends on the others; give it running statistics"
    )


def _add(c: AtenCall, sign: float = 1.0) -> Value:
    return c.b.add(c.operand("self"), c.operand("other"), sign * c.number("alpha"))


def _rsub(c: AtenCall) -> Value:
    return c.b.add(c.operand("other"), c.x, -c.number("alpha"))


def _divide(c: AtenCall) -> Value:
    if c.has("rounding_mode") and c.get("rounding_mode") is not None:
        raise UnsupportedError(
            f"'{c.name}' with rounding_mode={c.get('rounding_mode')}{where_of(c.node)}: a step function"
        )
    return c.b.divide(c.operand("self"), c.operand("other"))


def _clip(c: AtenCall) -> Value:
    if c.overload == "Tensor":
        low, high = c.raw("min"), c.raw("max")
        y: Value = c.x if low is None else compose.maximum(c.b, c.x, c.operand("min"))
        return y if high is None else compose.minimum(c.b, y, c.operand("max"))
    return compose.clip(c.b, c.x, c.get("min"), c.get("max"))


def _hardtanh(c: AtenCall) -> Value:
    return compose.clip(c.b, c.x, c.number("min_val"), c.number("max_val"))


Reduction = Callable[[Builder, int, Sequence[int], bool], int]


def _reduced(f: Reduction) -> Handler:
    """A reduction over ``dim``, all dimensions where it has none."""

    def read(c: AtenCall) -> Value:
        dims = c.dims(c.get("dim") if c.has("dim") else None)
        return f(c.b, c.x, dims, bool(c.get("keepdim")) if c.has("keepdim") else False)

    return read


def _largest(f: Reduction, pair: Callable[[Builder, Value, Value], Value]) -> Handler:
    """max and min: of two values, or over a dimension with the positions as a second result."""

    def read(c: AtenCall) -> Value | list[Value]:
        if c.has("other"):
            return pair(c.b, c.operand("self"), c.operand("other"))
        found = _reduced(f)(c)
        assert not isinstance(found, list)
        return [found] if c.has("dim") else found

    return read


def _pair(f: Callable[[Builder, Value, Value], Value]) -> Handler:
    return lambda c: f(c.b, *map(c.operand, c.names[:2]))


def _variance(c: AtenCall) -> Value:
    if c.has("unbiased"):
        correction = float(bool(c.get("unbiased")))
    else:
        given = c.get("correction")
        correction = 1.0 if given is None else float(given)
    dims = c.dims(c.get("dim") if c.has("dim") else None)
    count = torch.Size([c.shape[d] for d in dims]).numel()
    if not correction < count:
        raise UnsupportedError(f"'{c.name}' of {count} values with correction {correction:g}: it divides by nothing")
    keep = bool(c.get("keepdim")) if c.has("keepdim") else False
    found = compose.variance(c.b, c.x, dims, keep, correction)
    return c.b.unary("sqrt", found) if c.name == "std" else found


def _norm(c: AtenCall) -> Value:
    return compose.norm(c.b, c.x, float(c.get("ord")), c.dims(c.get("dim")), bool(c.get("keepdim")))


def _softmax(c: AtenCall) -> Value:
    if c.has("half_to_float"):
        c.skip("half_to_float")  # the result's type tells
    dim = c.dim(c.get("dim"))
    return compose.log_softmax(c.b, c.x, dim) if "log" in c.name else c.b.softmax(c.x, dim)


def _cumsum(c: AtenCall) -> Value:
    return compose.cumulated(c.b, c.x, c.dim(c.get("dim")))


def _unary(op: str) -> Handler:
    return lambda c: c.b.unary(op, c.x)


def _scaled(op: str, factor: float = 1.0, shift: float = 0.0) -> Handler:
    """``factor * op(x) + shift``."""

    def read(c: AtenCall) -> Value:
        return c.b.affine(c.b.unary(op, c.x), factor if factor != 1 else None, shift or None)

    return read


def _power(c: AtenCall) -> Value:
    x, y = c.operand("self"), c.operand("exponent")
    if isinstance(x, int) and isinstance(y, Tensor):
        exponents = distinct(y)
        if exponents.numel() != 1:
            raise UnsupportedError(
                f"'pow' with several exponents{where_of(c.node)}; one exponent for all entries is served"
            )
        if not bool(exponents.isfinite().all()):
            raise UnsupportedError("'pow' with an exponent that is infinite or no number")
        exponent = float(exponents)
        x, _ = c.b.broadcast(x, y)
        return c.b.affine(x, scale=0.0, shift=1.0) if exponent == 0 else c.b.power(x, exponent)
    if isinstance(x, Tensor) and isinstance(y, int) and bool((x > 0).all()):
        return c.b.unary("exp", int(c.b.multiply(x.double().log(), y)))
    raise UnsupportedError(
        f"'pow' of two values that depend on the input, or of a base that is not positive{where_of(c.node)}; "
        "a constant exponent, or a positive constant base, is served"
    )


def _elu(c: AtenCall) -> Value:
    return compose.elu(c.b, c.x, c.number("alpha"))


def _selu(c: AtenCall) -> Value:
    elu = c.b.unary("elu", c.x, alpha=1.6732632423543772848170429916717)
    return c.b.affine(elu, scale=1.0507009873554804934193349852946)


def _celu(c: AtenCall) -> Value:
    alpha = c.number("alpha")
    if alpha <= 0:
        raise UnsupportedError(f"'celu' with alpha={alpha:g}{where_of(c.node)}: only positive ones are served")
    return c.b.affine(c.b.unary("elu", c.b.affine(c.x, 1 / alpha), alpha=1.0), alpha)


def _gelu(c: AtenCall) -> Value:
    return c.b.unary("gelu", c.x, approximate=c.get("approximate"))


def _softplus(c: AtenCall) -> Value:
    beta, threshold = c.number("beta"), c.number("threshold")
    if beta == 0 or not math.isfinite(beta) or math.isnan(threshold):
        raise UnsupportedError(
            f"'softplus' with beta={beta:g} and threshold={threshold:g}{where_of(c.node)}; betas other than 0 and every "
            "threshold are served"
        )
    return compose.softplus(c.b, c.x, beta, threshold)


def _log_sigmoid(c: AtenCall) -> Value:
    return c.b.affine(c.b.unary("softplus", c.b.affine(c.x, -1.0)), -1.0)


def _softsign(c: AtenCall) -> Value:
    return c.b.divide(c.x, c.b.affine(c.b.unary("abs", c.x), shift=1.0))


def _softshrink(c: AtenCall) -> Value:
    by = c.number("lambd")
    return c.b.add(c.b.relu(c.b.affine(c.x, shift=-by)), c.b.relu(c.b.affine(c.x, -1.0, -by)), -1.0)


def _glu(c: AtenCall) -> Value:
    dim = c.dim(c.get("dim"))
    half = torch.arange(c.shape[dim] // 2)
    value, gate = (c.b.select(c.x, dim, half + start) for start in (0, len(half)))
    return c.b.multiply(value, c.b.unary("sigmoid", gate))


def _mish(c: AtenCall) -> Value:
    return c.b.multiply(c.x, c.b.unary("tanh", c.b.unary("softplus", c.x)))


def _prelu(c: AtenCall) -> Value:
    slope = c.weight("weight")
    if slope.numel() > 1:
        slope = slope.view(-1, *(1,) * (c.rank - 2))
    return compose.prelu(c.b, c.x, slope)


def _where(c: AtenCall) -> Value:
    return compose.where(c.b, c.weight("condition") != 0, c.operand("self"), c.operand("other"))


def _masked_fill(c: AtenCall) -> Value:
    return compose.where(c.b, c.weight("mask") != 0, c.operand("value"), c.x)


def _layer_norm(c: AtenCall) -> Value:
    rank, k = len(c.shape), len(c.get("normalized_shape"))
    if k > rank:
        raise UnsupportedError(f"'{c.name}' along the batch")
    root = c.name == "rms_norm"
    eps = torch.finfo(c.b.dtype).eps if c.get("eps") is None else c.number("eps")
    weight, bias = c.constant("weight"), None if root else c.constant("bias")
    return compose.layer_norm(c.b, c.x, range(rank - k, rank), weight, bias, eps, centred=not root)


def _group_norm(c: AtenCall) -> Value:
    weight, bias = c.constant("weight"), c.constant("bias")
    x = c.b.drop_batch(c.x, c.rank - 1)
    if c.name == "instance_norm":
        statistics = [c.constant(name) for name in ("running_mean", "running_var")]
        c.skip("momentum")
        if not c.get("use_input_stats"):
            if statistics[0] is None or statistics[1] is None:
                raise UnsupportedError("'instance_norm' without statistics")
            return compose.batch_norm(c.b, c.x, weight, bias, (statistics[0], statistics[1]), c.number("eps"))
        if statistics[0] is not None or statistics[1] is not None:
            raise UnsupportedError(
                f"'instance_norm'{where_of(c.node)} changes its running statistics in eval mode too: the model keeps a "
                "state; switch track_running_stats off"
            )
        groups = c.b.shape(x)[0]
    else:
        groups = int(c.get("num_groups"))
    return c.b.restore_batch(compose.group_norm(c.b, x, groups, weight, bias, c.number("eps")), c.x)


VALUES: dict[str, Handler] = {
    "linear": _linear,
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot"), _matmul),
    "addmm": _addmm,
    "batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": lambda c: [_batch_norm(c)],  # one of three results, the others unused
    **dict.fromkeys(
        ("_native_batch_norm_legit", "_native_batch_norm_legit_functional", "native_batch_norm"), _batch_statistics
    ),
    "add": _add,
    "sub": lambda c: _add(c, -1.0),
    "rsub": _rsub,
    "mul": lambda c: c.b.multiply(c.operand("self"), c.operand("other")),
    "div": _divide,
    "neg": lambda c: c.b.affine(c.x, scale=-1.0),
    "relu": lambda c: c.b.relu(c.x),
    "leaky_relu": lambda c: c.b.leaky_relu(c.x, c.number("negative_slope")),
    **{
        name: _unary(name)
        for name in (
            "sigmoid",
            "tanh",
            "silu",
            "erf",
            "exp",
            "log",
            "sin",
            "cos",
            "sqrt",
            "reciprocal",
            "abs",
            "sign",
        )
    },
    "log2": _scaled("log", 1 / math.log(2)),
    "log10": _scaled("log", 1 / math.log(10)),
    "expm1": _scaled("exp", 1.0, -1.0),
    "log1p": lambda c: c.b.unary("log", c.b.affine(c.x, shift=1.0)),
    "exp2": lambda c: c.b.unary("exp", c.b.affine(c.x, scale=math.log(2))),
    "rsqrt": lambda c: c.b.power(c.x, -0.5),
    "square": lambda c: c.b.power(c.x, 2.0),
    "pow": _power,
    "gelu": _gelu,
    "elu": _elu,
    "selu": _selu,
    "celu": _celu,
    "softplus": _softplus,
    "log_sigmoid": _log_sigmoid,
    "softsign": _softsign,
    "softshrink": _softshrink,
    "tanhshrink": lambda c: c.b.add(c.x, c.b.unary("tanh", c.x), -1.0),
    "glu": _glu,
    "mish": _mish,
    "hardswish": lambda c: compose.hardswish(c.b, c.x),
    "hardsigmoid": lambda c: compose.hardsigmoid(c.b, c.x),
    "prelu": _prelu,
    **dict.fromkeys(("maximum", "fmax"), _pair(compose.maximum)),
    **dict.fromkeys(("minimum", "fmin"), _pair(compose.minimum)),
    "max": _largest(compose.amax, compose.maximum),
    "min": _largest(compose.amin, compose.minimum),
    "clamp_min": _pair(compose.maximum),
    "clamp_max": _pair(compose.minimum),
    "where": _where,
    "masked_fill": _masked_fill,
    **dict.fromkeys(("layer_norm", "rms_norm"), _layer_norm),
    **dict.fromkeys(("group_norm", "instance_norm"), _group_norm),
    "scaled_dot_product_attention": attention,
    "hardtanh": _hardtanh,
    "relu6": lambda c: compose.clip(c.b, c.x, 0.0, 6.0),
    **dict.fromkeys(("clamp", "clip"), _clip),
    "mean": _reduced(Builder.mean),
    "sum": _reduced(compose.total),
    "amax": _reduced(compose.amax),
    "amin": _reduced(compose.amin),
    "prod": _reduced(compose.product),
    "logsumexp": _reduced(compose.logsumexp),
    **dict.fromkeys(("var", "std"), _variance),
    "linalg_vector_norm": _norm,
    "cumsum": _cumsum,
    **dict.fromkeys(("softmax", "_softmax", "log_softmax", "_log_softmax"), _softmax),
}
