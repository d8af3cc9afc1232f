"""What the graph makes of ONNX operations of images and shapes: convolutions, pools, moving and picking entries."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from holdfast.core.errors import ModelError, UnsupportedError
from holdfast.graph import compose
from holdfast.graph.build import Builder, Value
from holdfast.graph.onnx_call import Call, Handler
from holdfast.graph.ops import broadcast

__all__ = ["SHAPES", "unsqueezed"]


def _pads(c: Call, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> list[tuple[int, int]]:
    """(before, after) for each spatial dimension."""
    auto, k = c.get("auto_pad", "NOTSET"), len(kernel)
    if auto in ("NOTSET", ""):
        sides = c.get("pads", [0] * (2 * k))
        return list(zip(sides[:k], sides[k:], strict=True))
    if auto == "VALID":
        return [(0, 0)] * k
    pads: list[tuple[int, int]] = []
    for size, w, s, d in zip(c.full[2:], kernel, stride, dilation, strict=True):
        total = max((-(-size // s) - 1) * s + d * (w - 1) + 1 - size, 0)
        pads.append((total // 2, total - total // 2) if auto == "SAME_UPPER" else (total - total // 2, total // 2))
    return pads


def _conv(c: Call) -> Value:
    weight = c.weight(1)
    k = weight.ndim - 2
    stride, dilation = c.get("strides", [1] * k), c.get("dilations", [1] * k)
    pads = _pads(c, weight.shape[2:], stride, dilation)
    return c.b.conv(c.x, weight, c.constant(2), stride, pads, dilation, c.get("group", 1))


def _two(c: Call) -> tuple[Value, Value]:
    x, y = c.inputs[:2]
    if x is None or y is None:
        raise ModelError(f"'{c.op}' lacks an input")
    return x, y


def _reshape(c: Call) -> Value:
    target = c.argument("shape", 1)
    return c.reshaped([c.full[i] if s == 0 and not c.get("allowzero", 0) else s for i, s in enumerate(target)])


def _flatten(c: Call) -> Value:
    axis = c.get("axis", 1)
    axis = axis + len(c.full) if axis < 0 else axis
    return c.reshaped([math.prod(c.full[:axis]), math.prod(c.full[axis:])])


def _transpose(c: Call) -> Value:
    order = c.get("perm") or list(range(len(c.full)))[::-1]
    if c.b.lead and order[0] != 0:
        raise UnsupportedError("'Transpose' that moves the batch")
    return c.b.permute(c.x, [d - c.b.lead for d in order[c.b.lead :]])


def _squeeze(c: Call) -> Value:
    axes = c.argument("axes", 1)
    if axes is None and c.b.lead:
        raise UnsupportedError("'Squeeze' without axes: it may drop the batch")
    dims = [d for d, s in enumerate(c.shape) if s == 1] if axes is None else c.dims(axes)
    return c.b.reshape(c.x, [s for d, s in enumerate(c.shape) if d not in dims])


def _unsqueeze(c: Call) -> Value:
    axes = c.argument("axes", 1)
    shape = list(c.shape)
    for d in sorted(c.dim(a, len(c.full) + len(axes)) for a in axes):
        shape.insert(d, 1)
    return c.b.reshape(c.x, shape)


def _expand(c: Call) -> Value:
    target = broadcast(c.full, c.argument("shape", 1))
    if c.b.lead and (len(target) > len(c.full) or target[0] != c.batch):
        raise UnsupportedError(f"'Expand' to {list(target)}: it mixes the batch with the features")
    return c.b.expand(c.x, target[c.b.lead :])


def _tile(c: Call) -> Value:
    times = c.argument("repeats", 1)
    if c.b.lead and times[0] != 1:
        raise UnsupportedError("'Tile' along the batch")
    return compose.tile(c.b, c.x, times[c.b.lead :])


def _max_pool(c: Call) -> Value:
    kernel = c.get("kernel_shape")
    stride, dilation = c.get("strides", [1] * len(kernel)), c.get("dilations", [1] * len(kernel))
    pads = _pads(c, kernel, stride, dilation)
    if any(before != after for before, after in pads):
        raise UnsupportedError("'MaxPool' whose padding differs on the two sides")
    return c.b.max_pool(c.x, kernel, stride, [before for before, _ in pads], dilation, bool(c.get("ceil_mode", 0)))


def _average_pool(c: Call) -> Value:
    kernel = c.get("kernel_shape")
    stride = c.get("strides", [1] * len(kernel))
    if c.get("ceil_mode", 0) or set(c.get("dilations", [1])) != {1}:
        raise UnsupportedError("'AveragePool' with ceil_mode or dilations")
    pads = _pads(c, kernel, stride, [1] * len(kernel))
    return c.b.average_pool(c.x, kernel, stride, pads, bool(c.get("count_include_pad", 0)))


def _pad(c: Call) -> Value:
    sides, value, axes = c.argument("pads", 1), c.constant(2), c.argument("axes", 3)
    filled = c.get("value", 0.0) if value is None else float(value)
    if c.get("mode", "constant") != "constant" or filled:
        raise UnsupportedError("'Pad' with anything but zeros")
    rank = len(c.full)
    pairs = [(0, 0)] * rank
    half = len(sides) // 2
    for axis, before, after in zip(axes or range(rank), sides[:half], sides[half:], strict=True):
        pairs[axis] = (int(before), int(after))
    if c.b.lead and pairs[0] != (0, 0):
        raise UnsupportedError("'Pad' along the batch")
    return c.b.pad(c.x, pairs[c.b.lead :])


def _concat(c: Call) -> Value:
    parts = [v for v in c.inputs if v is not None]
    rank = len(c.b.shape(next(p for p in parts if isinstance(p, int)))) + c.b.lead
    return c.b.concat(parts, c.dim(c.get("axis"), rank))


def _split(c: Call) -> list[Value]:
    dim = c.dim(c.get("axis", 0))
    size, sizes = c.shape[dim], c.argument("split", 1)
    if sizes is None:
        each = -(-size // c.get("num_outputs", c.outputs))
        sizes = [min(each, size - start) for start in range(0, size, each)]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [c.b.select(c.x, dim, torch.arange(n) + start) for start, n in zip(starts, sizes, strict=True)]


def _slice(c: Call) -> Value:
    starts, ends, axes, steps = (c.argument(name, i) for i, name in enumerate(("starts", "ends", "axes", "steps"), 1))
    x = c.x
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis, step = (axes[i] if axes else i), (steps[i] if steps else 1)
        if c.b.lead and axis % len(c.full) == 0 and slice(start, end, step).indices(c.batch) == (0, c.batch, 1):
            continue
        dim = c.dim(axis)
        size = c.b.shape(x)[dim]
        x = c.b.select(x, dim, torch.tensor(range(*slice(start, end, step).indices(size)), dtype=torch.int64))
    return x


def _gather(c: Call) -> Value:
    table, index = _two(c)
    if isinstance(index, int):
        if isinstance(table, int) or table.ndim != 2 or c.get("axis", 0) != 0 or not c.whole:
            raise UnsupportedError("'Gather' by an index that depends on the input from anything but a constant matrix")
        return c.b.add_node("embedding", [index], {"weight": table})
    dim = c.dim(c.get("axis", 0))
    x = c.b.select(c.x, dim, index.reshape(-1) % c.shape[dim])
    return c.b.reshape(x, [*c.shape[:dim], *index.shape, *c.shape[dim + 1 :]])


def _global(f: Callable[[Builder, int, Sequence[int], bool], int]) -> Handler:
    return lambda c: f(c.b, c.x, range(2 - c.b.lead, len(c.shape)), True)


def _conv_transpose(c: Call) -> Value:
    weight = c.weight(1)
    k = weight.ndim - 2
    stride, dilation = c.get("strides", [1] * k), c.get("dilations", [1] * k)
    extra = c.get("output_padding", [0] * k)
    if c.get("auto_pad", "NOTSET") not in ("NOTSET", "") or c.get("output_shape") is not None:
        raise UnsupportedError("'ConvTranspose' with auto_pad or output_shape")
    sides = c.get("pads", [0] * (2 * k))
    pads = list(zip(sides[:k], sides[k:], strict=True))
    return c.b.conv_transpose(c.x, weight, c.constant(2), stride, pads, extra, dilation, c.get("group", 1))


def _resize(c: Call) -> Value:
    old = c.op == "Upsample" or c.opset < 11
    scales = c.argument("scales", 1 if old else 2)
    sizes = None if old else c.argument("sizes", 3)
    axes = c.get("axes") or list(range(len(c.full)))
    mode, how = c.get("mode", "nearest"), c.get("coordinate_transformation_mode", "half_pixel")
    how, rounding = ("asymmetric", "floor") if old else (how, c.get("nearest_mode", "round_prefer_floor"))
    if mode not in ("nearest", "linear") or c.get("antialias", 0) or how not in _COORDINATES:
        raise UnsupportedError(f"'{c.op}' with mode {mode}, {how} coordinates or antialias")
    if c.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise UnsupportedError(f"'{c.op}' that keeps the aspect ratio")
    x = c.x
    for i, axis in enumerate(axes):
        size = c.full[axis]
        out = int(sizes[i]) if sizes else math.floor(size * scales[i])
        scale = out / size if sizes else float(scales[i])
        if out == size and scale == 1:
            continue
        x = compose.resample(c.b, x, c.dim(axis), _interpolation(size, out, scale, mode, how, rounding))
    return x


_COORDINATES: dict[str, Callable[[Tensor, int, int, float], Tensor]] = {
    "half_pixel": lambda i, size, out, scale: (i + 0.5) / scale - 0.5,
    "pytorch_half_pixel": lambda i, size, out, scale: (i + 0.5) / scale - 0.5 if out > 1 else i * 0,
    "asymmetric": lambda i, size, out, scale: i / scale,
    "align_corners": lambda i, size, out, scale: i * (size - 1) / max(out - 1, 1),
}


_ROUNDINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "round_prefer_floor": lambda t: torch.ceil(t - 0.5),
    "round_prefer_ceil": lambda t: torch.floor(t + 0.5),
    "floor": torch.floor,
    "ceil": torch.ceil,
}


def _interpolation(size: int, out: int, scale: float, mode: str, how: str, rounding: str) -> Tensor:
    """The matrix (out, size) of a resize along one dimension."""
    rows = torch.arange(out)
    at = _COORDINATES[how](rows.double(), size, out, scale)
    weight = torch.zeros(out, size, dtype=torch.float64)
    if mode == "nearest":
        weight[rows, _ROUNDINGS[rounding](at).long().clamp(0, size - 1)] = 1.0
        return weight
    at = at.clamp(0, size - 1)
    low = at.floor().long()
    weight[rows, low] += 1 - (at - low)
    weight[rows, (low + 1).clamp(max=size - 1)] += at - low
    return weight


def _blocks(c: Call) -> Value:
    """DepthToSpace and SpaceToDepth."""
    size, x = c.get("blocksize"), c.sample()
    n, h, w = c.b.shape(x)
    if c.op == "SpaceToDepth":
        x = c.b.permute(c.b.reshape(x, (n, h // size, size, w // size, size)), (2, 4, 0, 1, 3))
        return c.b.again(c.b.reshape(x, (n * size**2, h // size, w // size)), c.x)
    n //= size**2
    if c.get("mode", "DCR") == "DCR":
        x = c.b.permute(c.b.reshape(x, (size, size, n, h, w)), (2, 3, 0, 4, 1))
    else:
        x = c.b.permute(c.b.reshape(x, (n, size, size, h, w)), (0, 3, 1, 4, 2))
    return c.b.again(c.b.reshape(x, (n, h * size, w * size)), c.x)


def unsqueezed(x: Tensor, axes: Sequence[int]) -> Tensor:
    """A constant with new dimensions at ``axes``."""
    for axis in sorted(a % (x.ndim + len(axes)) for a in axes):
        x = x.unsqueeze(axis)
    return x


SHAPES: dict[str, Handler] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Expand": _expand,
    "Tile": _tile,
    "DepthToSpace": _blocks,
    "SpaceToDepth": _blocks,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global(Builder.mean),
    "GlobalMaxPool": _global(compose.amax),
    "Resize": _resize,
    "Upsample": _resize,
    "Pad": _pad,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
}
