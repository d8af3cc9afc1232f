"""What the graph makes of ATen calls that compute: units, products, norms and reductions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx

from holdfast.core.errors import UnsupportedError
from holdfast.graph import compose
from holdfast.graph.aten_reader import Handler, Reader, call_name
from holdfast.graph.build import Builder, Value

__all__ = ["VALUES"]


def _linear(r: Reader, node: fx.Node) -> Value:
    weight = r.constant(node.args[1])
    assert weight is not None
    return r.builder.linear(r.x(node), weight, r.constant(r.get(node, 2, "bias")))


def _matmul(r: Reader, node: fx.Node) -> Value:
    return r.builder.matmul(r.operand(node.args[0]), r.operand(node.args[1]))


def _addmm(r: Reader, node: fx.Node) -> Value:
    weight = r.constant(node.args[2])
    assert weight is not None
    if node.kwargs.get("alpha", 1) != 1 or node.kwargs.get("beta", 1) != 1:
        raise UnsupportedError("'addmm' with factors")
    return r.builder.linear(r.x(node, 1), weight.T, r.constant(node.args[0]))


def _batch_norm(r: Reader, node: fx.Node) -> Value:
    weight, bias, mean, variance = (r.constant(a) for a in node.args[1:5])
    if mean is None or variance is None:
        raise UnsupportedError("a batch norm without running statistics")
    eps = r.get(node, 6 if "no_training" in str(node.target) else 7, "eps")
    return r.builder.batch_norm(r.x(node), weight, bias, mean, variance, float(eps))


def _add(r: Reader, node: fx.Node, sign: float = 1.0) -> Value:
    sign *= float(node.kwargs.get("alpha", 1))  # type: ignore[arg-type]
    return r.builder.add(r.operand(node.args[0]), r.operand(node.args[1]), sign)


def _rsub(r: Reader, node: fx.Node) -> Value:
    return r.builder.add(r.operand(node.args[1]), r.x(node), -float(r.get(node, 2, "alpha", 1)))


def _clip(r: Reader, node: fx.Node) -> Value:
    x, low, high = r.x(node), r.get(node, 1, "min"), r.get(node, 2, "max")
    if isinstance(low, fx.Node) or isinstance(high, fx.Node):
        y = x if low is None else compose.maximum(r.builder, x, r.operand(low))
        return y if high is None else compose.minimum(r.builder, y, r.operand(high))
    return r.builder.clip(x, low, high)


def _hardtanh(r: Reader, node: fx.Node) -> Value:
    return r.builder.clip(r.x(node), r.get(node, 1, "min_val", -1.0), r.get(node, 2, "max_val", 1.0))


def _reduced(f: Callable[[Builder, int, Sequence[int], bool], int], at: int = 1) -> Callable[[Reader, fx.Node], Value]:
    """A reduction whose dimensions and keepdim are the arguments ``at`` and the next."""

    def read(r: Reader, node: fx.Node) -> Value:
        keep = bool(r.get(node, at + 1, "keepdim", False))
        return f(r.builder, r.x(node), r.feature_dims(node, r.get(node, at, "dim")), keep)

    return read


def _largest(r: Reader, node: fx.Node) -> Value | list[Value]:
    f = compose.amin if call_name(node).startswith("min") else compose.amax
    if isinstance(node.args[1] if len(node.args) > 1 else None, int):  # along a dimension, with the indices
        return [_reduced(f)(r, node)]
    if len(node.args) > 1:
        return _pair(compose.minimum if f is compose.amin else compose.maximum)(r, node)
    return _reduced(f)(r, node)


def _pair(f: Callable[[Builder, Value, Value], Value]) -> Handler:
    return lambda r, node: f(r.builder, r.operand(node.args[0]), r.operand(node.args[1]))


def _variance(r: Reader, node: fx.Node) -> Value:
    if ".dim" in str(node.target):
        correction, keep = float(bool(r.get(node, 2, "unbiased", True))), r.get(node, 3, "keepdim", False)
    else:
        correction, keep = node.kwargs.get("correction"), r.get(node, 3, "keepdim", False)
        correction = 1.0 if correction is None else float(correction)  # type: ignore[arg-type]
    dims = r.feature_dims(node, r.get(node, 1, "dim"))
    found = compose.variance(r.builder, r.x(node), dims, bool(keep), correction)
    return r.builder.unary("sqrt", found) if call_name(node).startswith("std") else found


def _norm(r: Reader, node: fx.Node) -> Value:
    order = r.get(node, 1, "ord", 2)
    dims = r.feature_dims(node, r.get(node, 2, "dim"))
    return compose.norm(r.builder, r.x(node), float(order), dims, bool(r.get(node, 3, "keepdim", False)))


def _softmax(r: Reader, node: fx.Node) -> Value:
    dim = r.feature_dim(node, node.args[1])  # type: ignore[arg-type]
    return (
        compose.log_softmax(r.builder, r.x(node), dim)
        if "log" in call_name(node)
        else r.builder.softmax(r.x(node), dim)
    )


def _unary(op: str) -> Handler:
    return lambda r, node: r.builder.unary(op, r.x(node))


def _scaled(op: str, factor: float = 1.0, shift: float = 0.0) -> Handler:
    """``factor * op(x) + shift``."""

    def read(r: Reader, node: fx.Node) -> Value:
        return r.builder.affine(r.builder.unary(op, r.x(node)), factor if factor != 1 else None, shift or None)

    return read


def _power(r: Reader, node: fx.Node) -> Value:
    base, exponent = node.args[:2]
    if not isinstance(exponent, fx.Node):
        return r.builder.power(r.x(node), float(exponent))  # type: ignore[arg-type]
    x, y = r.operand(base), r.operand(exponent)
    logarithm = x.double().log() if isinstance(x, Tensor) else r.builder.unary("log", x)
    return r.builder.unary("exp", int(r.builder.multiply(logarithm, y)))


def _elu(r: Reader, node: fx.Node) -> Value:
    name = call_name(node).rstrip("_")
    if name == "selu":
        elu = r.builder.unary("elu", r.x(node), alpha=1.6732632423543772848170429916717)
        return r.builder.affine(elu, scale=1.0507009873554804934193349852946)
    alpha = float(r.get(node, 1, "alpha", 1.0))
    if name == "celu":
        return r.builder.affine(r.builder.unary("elu", r.builder.affine(r.x(node), 1 / alpha), alpha=1.0), alpha)
    if float(r.get(node, 2, "scale", 1.0)) != 1 or float(r.get(node, 3, "input_scale", 1.0)) != 1:
        raise UnsupportedError("'elu' with scales")
    return r.builder.unary("elu", r.x(node), alpha=alpha)


def _gelu(r: Reader, node: fx.Node) -> Value:
    return r.builder.unary("gelu", r.x(node), approximate=r.get(node, 1, "approximate", "none"))


def _softplus(r: Reader, node: fx.Node) -> Value:
    return compose.softplus(r.builder, r.x(node), float(r.get(node, 1, "beta", 1.0)))


def _log_sigmoid(r: Reader, node: fx.Node) -> Value:
    return r.builder.affine(r.builder.unary("softplus", r.builder.affine(r.x(node), -1.0)), -1.0)


def _softsign(r: Reader, node: fx.Node) -> Value:
    return r.builder.divide(r.x(node), r.builder.affine(r.builder.unary("abs", r.x(node)), shift=1.0))


def _softshrink(r: Reader, node: fx.Node) -> Value:
    x, by = r.x(node), float(r.get(node, 1, "lambd", 0.5))
    return r.builder.add(
        r.builder.relu(r.builder.affine(x, shift=-by)), r.builder.relu(r.builder.affine(x, -1.0, -by)), -1.0
    )


def _glu(r: Reader, node: fx.Node) -> Value:
    dim = r.feature_dim(node, r.get(node, 1, "dim", -1))
    half = torch.arange(r.builder.shape(r.x(node))[dim] // 2)
    value, gate = (r.builder.select(r.x(node), dim, half + start) for start in (0, len(half)))
    return r.builder.multiply(value, r.builder.unary("sigmoid", gate))


def _mish(r: Reader, node: fx.Node) -> Value:
    return r.builder.multiply(r.x(node), r.builder.unary("tanh", r.builder.unary("softplus", r.x(node))))


def _prelu(r: Reader, node: fx.Node) -> Value:
    slope = r.constant(node.args[1])
    assert slope is not None
    if slope.numel() > 1:
        slope = slope.view(-1, *(1,) * (len(r.builder.shape(r.x(node))) - 2 + r.builder.lead))
    return compose.prelu(r.builder, r.x(node), slope)


def _where(r: Reader, node: fx.Node) -> Value:
    condition = r.constant(node.args[0])
    assert condition is not None
    return compose.where(r.builder, condition, r.operand(node.args[1]), r.operand(node.args[2]))


def _masked_fill(r: Reader, node: fx.Node) -> Value:
    mask = r.constant(node.args[1])
    assert mask is not None
    return compose.where(r.builder, mask, r.operand(node.args[2]), r.x(node))


def _layer_norm(r: Reader, node: fx.Node) -> Value:
    rank, k = len(r.builder.shape(r.x(node))), len(node.args[1])  # type: ignore[arg-type]
    weight, bias = r.constant(r.get(node, 2, "weight")), r.constant(r.get(node, 3, "bias"))
    root = call_name(node) == "rms_norm"
    eps = r.get(node, 3 if root else 4, "eps", None if root else 1e-5)
    eps = torch.finfo(r.builder.dtype).eps if eps is None else float(eps)
    dims = range(rank - k, rank)
    return compose.layer_norm(r.builder, r.x(node), dims, weight, None if root else bias, eps, centred=not root)


def _group_norm(r: Reader, node: fx.Node) -> Value:
    instance = call_name(node) == "instance_norm"
    weight, bias = (r.constant(r.get(node, i + (not instance), n)) for i, n in ((1, "weight"), (2, "bias")))
    x = r.builder.samples(r.x(node), len(r.builder.shape(r.x(node))) - 1 + r.builder.lead)
    if instance and not r.get(node, 5, "use_input_stats", True):
        mean, variance = r.constant(node.args[3]), r.constant(node.args[4])
        assert mean is not None
        assert variance is not None
        return r.builder.batch_norm(r.x(node), weight, bias, mean, variance, float(r.get(node, 7, "eps")))
    groups = r.builder.shape(x)[0] if instance else int(node.args[1])  # type: ignore[arg-type]
    eps = float(r.get(node, 7 if instance else 4, "eps", 1e-5))
    return r.builder.again(compose.group_norm(r.builder, x, groups, weight, bias, eps), r.x(node))


def _attention(r: Reader, node: fx.Node) -> Value:
    q, k, v = (r.operand(a) for a in node.args[:3])
    mask, causal, scale = r.constant(r.get(node, 3, "attn_mask")), r.get(node, 5, "is_causal"), node.kwargs.get("scale")
    if causal or node.kwargs.get("enable_gqa") or (mask is not None and not mask.is_floating_point()):
        raise UnsupportedError("attention that is causal, grouped or has a boolean mask")
    width = node.args[0].meta["val"].shape[-1]  # type: ignore[union-attr]
    scale = 1 / math.sqrt(width) if scale is None else float(scale)  # type: ignore[arg-type]
    return compose.attention(r.builder, q, k, v, scale, mask)


VALUES: dict[str, Handler] = {
    "linear": _linear,
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot"), _matmul),
    "addmm": _addmm,
    "batch_norm": _batch_norm,
    **dict.fromkeys(("add", "add_"), _add),
    **dict.fromkeys(("sub", "sub_"), lambda r, node: _add(r, node, -1.0)),
    "rsub": _rsub,
    **dict.fromkeys(("mul", "mul_"), lambda r, node: r.builder.multiply(*map(r.operand, node.args))),
    **dict.fromkeys(("div", "div_"), lambda r, node: r.builder.divide(*map(r.operand, node.args))),
    "neg": lambda r, node: r.builder.affine(r.x(node), scale=-1.0),
    **dict.fromkeys(("relu", "relu_"), lambda r, node: r.builder.relu(r.x(node))),
    **dict.fromkeys(
        ("leaky_relu", "leaky_relu_"),
        lambda r, node: r.builder.leaky_relu(r.x(node), float(r.get(node, 1, "negative_slope", 0.01))),
    ),
    **{
        name + suffix: _unary(name)
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
        for suffix in ("", "_")
    },
    "log2": _scaled("log", 1 / math.log(2)),
    "log10": _scaled("log", 1 / math.log(10)),
    "expm1": _scaled("exp", 1.0, -1.0),
    "log1p": lambda r, node: r.builder.unary("log", r.builder.affine(r.x(node), shift=1.0)),
    "exp2": lambda r, node: r.builder.unary("exp", r.builder.affine(r.x(node), scale=math.log(2))),
    **dict.fromkeys(("rsqrt", "rsqrt_"), lambda r, node: r.builder.power(r.x(node), -0.5)),
    **dict.fromkeys(("square", "square_"), lambda r, node: r.builder.power(r.x(node), 2.0)),
    **dict.fromkeys(("pow", "pow_"), _power),
    **dict.fromkeys(("gelu", "gelu_"), _gelu),
    **dict.fromkeys(("elu", "elu_", "celu", "celu_", "selu", "selu_"), _elu),
    "softplus": _softplus,
    "log_sigmoid": _log_sigmoid,
    "softsign": _softsign,
    "softshrink": _softshrink,
    "tanhshrink": lambda r, node: r.builder.add(r.x(node), r.builder.unary("tanh", r.x(node)), -1.0),
    "glu": _glu,
    **dict.fromkeys(("mish", "mish_"), _mish),
    **dict.fromkeys(("hardswish", "hardswish_"), lambda r, node: compose.hardswish(r.builder, r.x(node))),
    **dict.fromkeys(("hardsigmoid", "hardsigmoid_"), lambda r, node: compose.hardsigmoid(r.builder, r.x(node))),
    "prelu": _prelu,
    **dict.fromkeys(("maximum", "fmax"), _pair(compose.maximum)),
    **dict.fromkeys(("minimum", "fmin"), _pair(compose.minimum)),
    **dict.fromkeys(("max", "min"), _largest),
    **dict.fromkeys(("clamp_min", "clamp_min_"), _pair(compose.maximum)),
    **dict.fromkeys(("clamp_max", "clamp_max_"), _pair(compose.minimum)),
    "where": _where,
    **dict.fromkeys(("masked_fill", "masked_fill_"), _masked_fill),
    **dict.fromkeys(("layer_norm", "rms_norm"), _layer_norm),
    **dict.fromkeys(("group_norm", "instance_norm"), _group_norm),
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(("hardtanh", "hardtanh_"), _hardtanh),
    **dict.fromkeys(("relu6", "relu6_"), lambda r, node: r.builder.clip(r.x(node), 0.0, 6.0)),
    **dict.fromkeys(("clamp", "clamp_", "clip"), _clip),
    "mean": _reduced(Builder.mean),
    "sum": _reduced(compose.total),
    "amax": _reduced(compose.amax),
    "amin": _reduced(compose.amin),
    "prod": _reduced(compose.product),
    "logsumexp": _reduced(compose.logsumexp),
    **dict.fromkeys(("var", "std"), _variance),
    "linalg_vector_norm": _norm,
    "cumsum": lambda r, node: compose.cumulated(r.builder, r.x(node), r.feature_dim(node, r.get(node, 1, "dim"))),
    **dict.fromkeys(("softmax", "_softmax", "log_softmax", "_log_softmax"), _softmax),
}
