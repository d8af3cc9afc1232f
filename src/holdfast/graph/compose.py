"""What several operations of the vocabulary make together: norms, reductions, upsampling and the like.

Dimensions never count the batch; each function takes the builder first and returns the position of the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from holdfast.core.errors import UnsupportedError
from holdfast.graph.build import Builder, Value
from holdfast.graph.products import matmul

__all__ = [
    "along", "amax", "attention", "batch_norm", "center", "clip", "cumulated", "elu", "group_norm", "hardsigmoid",
    "hardswish", "layer_norm", "log_softmax", "logsumexp", "maximum", "minimum", "norm", "prelu", "product", "resample",
    "softplus", "tile", "total", "variance", "where",
]  # fmt: skip

# constants beyond it stay out of sums with values, which they would round away
FAR = 16.0
# the mean goes off in one matrix up to this many entries; it keeps what intervals lose in x - mean(x)
CENTER_LIMIT = 1024


def along(b: Builder, x: int, dim: int, weight: Tensor, bias: Tensor | None = None) -> int:
    """A matrix (out, in) along one dimension."""
    rank = len(b.shape(x))
    order = [d for d in range(rank) if d != dim] + [dim]
    back = [order.index(d) for d in range(rank)]
    return b.permute(b.linear(b.permute(x, order), weight, bias), back)


def maximum(b: Builder, x: Value, y: Value) -> Value:
    """``max(x, y)``: ``y + relu(x - y)``, or beside a far constant ``x + relu(y - x)``, which keeps x's digits."""
    return _extreme(b, x, y, 1.0)


def minimum(b: Builder, x: Value, y: Value) -> Value:
    """``min(x, y)``: ``y - relu(y - x)``, or beside a far constant ``x - relu(x - y)``, which keeps x's digits."""
    return _extreme(b, x, y, -1.0)


def _extreme(b: Builder, x: Value, y: Value, sign: float) -> Value:
    """The larger of two values (sign 1) or the smaller (sign -1)."""
    if isinstance(x, Tensor):
        if isinstance(y, Tensor):
            return torch.maximum(x, y) if sign > 0 else torch.minimum(x, y)
        x, y = y, x
    if isinstance(y, int):
        return b.add(y, b.relu(int(b.add(x, y, -1.0) if sign > 0 else b.add(y, x, -1.0))), sign)
    return beside(b, x, y, sign)


def beside(b: Builder, x: int, y: Tensor, sign: float) -> int:
    """The larger (sign 1) or smaller (sign -1) of a value and a constant."""
    y = y.double()
    never = y == -sign * math.inf  # an end that nothing reaches
    if bool(never.all()):
        return b.broadcast(x, y)[0]
    y = torch.where(never, -sign * torch.finfo(torch.float64).max / 4, y)
    far = (y.abs() > FAR).double()
    turn = sign * (1.0 - 2.0 * far)
    unit = b.relu(b.affine(x, turn, -turn * y))
    other = b.affine(x, far, (1.0 - far) * y) if bool(far.any()) else y
    return int(b.add(unit, other) if sign > 0 else b.add(other, unit, -1.0))


def _pairwise(b: Builder, x: int, dims: Sequence[int], keep: bool, combine: Callable[[int, int], Value]) -> int:
    """A reduction in a tree of pairs."""
    shape = b.shape(x)
    for dim in dims:
        while (size := b.shape(x)[dim]) > 1:
            half = size // 2
            first, second = (b.select(x, dim, torch.arange(half) + start) for start in (0, half))
            paired = int(combine(first, second))
            rest = [b.select(x, dim, torch.tensor([size - 1]))] if size % 2 else []
            x = b.concat([paired, *rest], dim) if rest else paired
    return x if keep else b.reshape(x, [s for d, s in enumerate(shape) if d not in dims])


def amax(b: Builder, x: int, dims: Sequence[int], keep: bool) -> int:
    """The largest entry over dimensions."""
    return _pairwise(b, x, dims, keep, lambda p, q: maximum(b, p, q))


def amin(b: Builder, x: int, dims: Sequence[int], keep: bool) -> int:
    """The smallest entry over dimensions."""
    return _pairwise(b, x, dims, keep, lambda p, q: minimum(b, p, q))


def product(b: Builder, x: int, dims: Sequence[int], keep: bool) -> int:
    """The product over dimensions."""
    return _pairwise(b, x, dims, keep, b.multiply)


def logsumexp(b: Builder, x: int, dims: Sequence[int], keep: bool) -> int:
    """``log(sum(exp(x)))`` as a tree of ``q + softplus(p - q)``, which neither overflows nor cancels."""
    return _pairwise(b, x, dims, keep, lambda p, q: b.add(q, b.unary("softplus", int(b.add(p, q, -1.0)))))


def log_softmax(b: Builder, x: int, dim: int) -> int:
    """``x - logsumexp(x)``."""
    return int(b.add(x, logsumexp(b, x, [dim], True), -1.0))


def total(b: Builder, x: int, dims: Sequence[int], keep: bool) -> int:
    """The sum over dimensions."""
    count = torch.Size([b.shape(x)[d] for d in dims]).numel()
    mean = b.mean(x, dims, keep)
    return mean if count == 1 else b.affine(mean, scale=float(count))


def norm(b: Builder, x: int, order: float, dims: Sequence[int], keep: bool) -> int:
    """The l1, l2 or linf norm over dimensions."""
    if order == 2:
        return b.unary("sqrt", total(b, b.power(x, 2.0), dims, keep))
    if order == 1:
        return total(b, b.unary("abs", x), dims, keep)
    if order == math.inf:
        return amax(b, b.unary("abs", x), dims, keep)
    raise UnsupportedError(
        f"an l{order:g} norm; the l1, l2 and linf norms are served: write it as powers and sums, or take one"
    )


def center(b: Builder, x: int, dims: Sequence[int]) -> int:
    """``x - mean(x)``."""
    size = b.shape(x)[dims[0]]
    if len(dims) == 1 and size <= CENTER_LIMIT:
        return along(b, x, dims[0], torch.eye(size, dtype=torch.float64) - 1.0 / size)
    return int(b.add(x, b.mean(x, dims, True), -1.0))


def variance(b: Builder, x: int, dims: Sequence[int], keep: bool, correction: float = 0.0) -> int:
    """The variance over dimensions."""
    count = torch.Size([b.shape(x)[d] for d in dims]).numel()
    found = b.mean(b.power(center(b, x, dims), 2.0), dims, keep)
    return b.affine(found, scale=count / (count - correction)) if correction else found


def _normalised(b: Builder, centred: int, dims: Sequence[int], eps: float) -> int:
    spread = b.affine(b.mean(b.power(centred, 2.0), dims, True), shift=eps)
    return int(b.multiply(centred, b.power(spread, -0.5)))


def batch_norm(
    b: Builder, x: int, weight: Tensor | None, bias: Tensor | None, statistics: tuple[Tensor, Tensor], eps: float
) -> int:
    """Batch norm with fixed mean and variance, in float64: two affine nodes, which `simplify` merges."""
    mean, variance = (t.double() for t in statistics)
    scale = 1.0 / torch.sqrt(variance + eps)
    if weight is not None:
        scale = weight.double() * scale
    per_channel = (-1,) + (1,) * (len(b.shape(x)) - 2 + b.batch_dims)
    x = b.affine(x, shift=-mean.view(per_channel))
    x = b.affine(x, scale.view(per_channel), None if bias is None else bias.double().view(per_channel))
    # what the scale was made of: in a narrow type a small variance may vanish
    parts = {"mean": mean.view(per_channel), "variance": variance.view(per_channel), "eps": eps}
    b.nodes[x] = replace(b.nodes[x], attributes=parts)
    return x


def layer_norm(
    b: Builder,
    x: int,
    dims: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    centred: bool = True,
) -> int:
    """``(x - mean) / sqrt(variance + eps) * weight + bias``; without the mean it is the root-mean-square norm."""
    y = _normalised(b, center(b, x, dims) if centred else x, dims, eps)
    return y if weight is None and bias is None else b.affine(y, weight, bias)


def group_norm(b: Builder, x: int, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> int:
    """Group norm of (channels, \\*space); with as many groups as channels it is the instance norm."""
    shape = b.shape(x)
    y = b.reshape(x, (groups, torch.Size(shape).numel() // groups))
    y = b.reshape(_normalised(b, center(b, y, [1]), [1], eps), shape)
    per_channel = (-1,) + (1,) * (len(shape) - 1)
    if weight is None and bias is None:
        return y
    return b.affine(y, *(None if t is None else t.view(per_channel) for t in (weight, bias)))


def softplus(b: Builder, x: int, beta: float = 1.0, threshold: float = math.inf) -> int:
    """``log(1 + exp(beta * x)) / beta``, or x where ``beta * x`` is beyond the threshold, to which it jumps there."""
    if threshold == -math.inf:
        return x
    attributes = {} if threshold == math.inf else {"threshold": threshold}
    if beta == 1:
        return b.unary("softplus", x, **attributes)
    return b.affine(b.unary("softplus", b.affine(x, scale=beta), **attributes), scale=1.0 / beta)


def clip(b: Builder, x: int, low: float | None, high: float | None) -> int:
    """``min(max(x, low), high)``."""
    for end, sign in ((low, 1.0), (high, -1.0)):
        if end is not None:
            x = beside(b, x, torch.tensor(float(end), dtype=torch.float64), sign)
    return x


def hardsigmoid(b: Builder, x: int, alpha: float = 1 / 6, beta: float = 0.5) -> int:
    """``clip(alpha * x + beta, 0, 1)``."""
    return clip(b, b.affine(x, alpha, beta), 0.0, 1.0)


def hardswish(b: Builder, x: int) -> int:
    """``x * hardsigmoid(x)``."""
    return int(b.multiply(x, hardsigmoid(b, x)))


def prelu(b: Builder, x: int, slope: Tensor) -> int:
    """``x``, or ``slope * x`` below zero, with a slope for each entry."""
    if slope.numel() == 1 and not slope.requires_grad:
        return b.leaky_relu(x, float(slope))
    # 1 - slope in float64: what float32 rounds away would bend the positive side
    return int(b.add(b.affine(x, scale=slope), b.affine(b.relu(x), scale=1.0 - slope.double())))


def elu(b: Builder, x: int, alpha: float) -> int:
    """``x``, or ``alpha * (exp(x) - 1)`` below zero."""
    if alpha >= 0:
        return b.unary("elu", x, alpha=float(alpha))
    # with a negative alpha it falls below zero and is no longer monotone: a sum of units that are
    return int(b.add(b.affine(b.unary("elu", x, alpha=1.0), scale=alpha), b.affine(b.relu(x), scale=1.0 - alpha)))


def where(b: Builder, condition: Tensor, x: Value, y: Value) -> Value:
    """``x`` where a constant condition holds and ``y`` elsewhere."""
    chosen = condition.to(b.dtype)
    return b.add(b.multiply(x, chosen), b.multiply(y, 1.0 - chosen))


def tile(b: Builder, x: int, times: Sequence[int]) -> int:
    """The value repeated along each dimension."""
    for dim, count in enumerate(times):
        if count != 1:
            x = b.select(x, dim, torch.arange(b.shape(x)[dim]).repeat(count))
    return x


def cumulated(b: Builder, x: int, dim: int, exclusive: bool = False, reverse: bool = False) -> int:
    """Cumulated sums along a dimension: of all entries up to each, without itself, or from the end on."""
    ones = torch.ones(b.shape(x)[dim], b.shape(x)[dim], dtype=torch.float64)
    weight = torch.tril(ones, -1 if exclusive else 0)
    return along(b, x, dim, weight.flip(0, 1) if reverse else weight)


def resample(b: Builder, x: int, dim: int, weight: Tensor) -> int:
    """A matrix (out, in) along a dimension; one whose rows pick single entries becomes a `select`."""
    ones, index = weight.max(1)
    if torch.equal(weight.abs().sum(1), ones) and bool((ones == 1).all()):
        return b.select(x, dim, index)
    return along(b, x, dim, weight)


def interpolation(
    size: int,
    out: int,
    mode: str,
    scale: float | None = None,
    align: bool | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """The matrix (out, in) of PyTorch's own interpolation along one dimension, as it places the entries in a type."""
    eye = torch.eye(size, dtype=dtype)[None, :, :, None]
    flat = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    options = {"size": (out, 1)} if scale is None else {"scale_factor": (scale, 1.0)}
    found = F.interpolate(eye, mode=flat, align_corners=align, **options)  # type: ignore[arg-type]
    return found[0, :, :, 0].T.double()


def attention(b: Builder, q: Value, k: Value, v: Value, scale: float, mask: Tensor | None = None) -> int:
    """``softmax(q @ k.T * scale + mask) @ v``."""
    if not isinstance(q, int) or not isinstance(k, int):
        raise UnsupportedError("attention whose queries or keys are constant")
    rank = len(b.shape(k))
    keys = b.permute(k, [*range(rank - 2), rank - 1, rank - 2])
    scores = b.affine(matmul(b, q, keys), scale=scale)
    if mask is not None:
        scores = b.affine(scores, shift=mask)
    return matmul(b, b.softmax(scores, len(b.shape(scores)) - 1), v)
