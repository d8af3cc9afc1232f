"""What the graph makes of ONNX operations of images and shapes: convolutions, pools, moving and picking entries."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from holdfast.core.errors import ModelError, UnsupportedError
from holdfast.graph import compose
from holdfast.graph.build import BatchError, Builder, Value
from holdfast.graph.onnx_call import BOOL, FLOATS, WHOLE, Call, Handler, Served
from holdfast.graph.shapes import broadcast

__all__ = ["SHAPES"]


def _windows(c: Call, kernel: Sequence[int]) -> tuple[list[int], list[int], list[tuple[int, int]], bool]:
    """Strides, dilations, (before, after) for each spatial dimension, and whether the padding was computed."""
    k = len(kernel)
    if len(c.full) != k + 2 or not 1 <= k <= 3:
        raise UnsupportedError(
            f"'{c.op}' with a kernel of {k} dimensions on a value of shape {c.full}; served are 1 to 3"
        )
    stride, dilation = c.get("strides") or [1] * k, c.get("dilations") or [1] * k
    sides = c.get("pads") or []
    auto = c.need("auto_pad", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")
    if auto != "NOTSET" and any(sides):
        raise UnsupportedError(f"'{c.op}' with auto_pad={auto} and pads; served is one of them")
    sides = sides or [0] * (2 * k)
    if len(stride) != k or len(dilation) != k or len(sides) != 2 * k or min(*stride, *dilation, *kernel) < 1:
        raise ModelError(f"'{c.op}' with strides {stride}, dilations {dilation} and pads {sides} for {k} dimensions")
    if min(sides) < 0:
        raise UnsupportedError(f"'{c.op}' with negative padding {sides}; served is padding of at least 0")
    if auto in ("NOTSET", "VALID"):
        return stride, dilation, list(zip(sides[:k], sides[k:], strict=True)), False
    if c.op == "MaxPool" and set(dilation) != {1}:
        raise UnsupportedError(f"'MaxPool' with auto_pad={auto} and dilations; served is one of them")
    pads: list[tuple[int, int]] = []
    for size, w, s, d in zip(c.full[2:], kernel, stride, dilation, strict=True):
        total = max((-(-size // s) - 1) * s + d * (w - 1) + 1 - size, 0)
        pads.append((total // 2, total - total // 2) if auto == "SAME_UPPER" else (total - total // 2, total // 2))
    return stride, dilation, pads, True


def _kernel(c: Call, weight: Tensor) -> list[int]:
    """The spatial shape of a kernel, which the file may say twice."""
    kernel = list(weight.shape[2:])
    said = c.get("kernel_shape")
    if said is not None and list(said) != kernel:
        raise ModelError(f"'{c.op}' with kernel_shape {said} and a weight of shape {tuple(weight.shape)}")
    return kernel


def _conv(c: Call) -> Value:
    weight = c.weight(1)
    stride, dilation, pads, _ = _windows(c, _kernel(c, weight))
    groups = c.get("group")
    if groups < 1 or len(weight) % groups:
        raise ModelError(f"'{c.op}' with {len(weight)} outputs in {groups} groups")
    return c.b.conv(c.x, weight, c.constant(2), stride, pads, dilation, groups)


def _conv_transpose(c: Call) -> Value:
    weight = c.weight(1)
    kernel = _kernel(c, weight)
    c.need("auto_pad", "NOTSET")
    if c.get("output_shape"):
        raise UnsupportedError("'ConvTranspose' with output_shape; served are pads and output_padding")
    stride, dilation, pads, _ = _windows(c, kernel)
    extra = c.get("output_padding") or [0] * len(kernel)
    if any(e < 0 or e >= max(s, d) for e, s, d in zip(extra, stride, dilation, strict=True)):
        raise UnsupportedError(
            f"'ConvTranspose' with output_padding {extra}; served is less than the stride or dilation"
        )
    return c.b.conv_transpose(c.x, weight, c.constant(2), stride, pads, extra, dilation, c.get("group"))


def _reshape(c: Call) -> Value:
    target, zero = c.argument("shape", 1), c.get("allowzero", 0)
    if target is None or min(target, default=0) < -1 or list(target).count(-1) > 1:
        raise ModelError(f"'Reshape' to {target}")
    if zero and 0 in target:
        raise UnsupportedError("'Reshape' to a shape with a size of 0 (allowzero=1); served are sizes of at least 1")
    return c.reshaped([c.full[i] if s == 0 else s for i, s in enumerate(target)])


def _flatten(c: Call) -> Value:
    axis, rank = c.get("axis"), len(c.full)
    if not -rank <= axis <= rank:
        raise ModelError(f"'Flatten' at axis {axis} of a value of {rank} dimensions")
    axis = axis + rank if axis < 0 else axis
    return c.reshaped([math.prod(c.full[:axis]), math.prod(c.full[axis:])])


def _transpose(c: Call) -> Value:
    order = c.get("perm") or list(range(len(c.full)))[::-1]
    if sorted(order) != list(range(len(c.full))):
        raise ModelError(f"'Transpose' by {order} of a value of {len(c.full)} dimensions")
    if c.b.lead and order[0] != 0:
        raise BatchError("'Transpose' that moves the batch; served is a model whose samples do not mix")
    return c.b.permute(c.x, [d - c.b.lead for d in order[c.b.lead :]])


def _squeeze(c: Call) -> Value:
    axes = c.argument("axes", 1)
    if axes is None and c.b.lead:
        raise BatchError("'Squeeze' without axes: it may drop the batch; served are named axes")
    dims = [d for d, s in enumerate(c.shape) if s == 1] if axes is None else c.dims(axes)
    return c.b.reshape(c.x, [s for d, s in enumerate(c.shape) if d not in dims])


def _unsqueeze(c: Call) -> Value:
    axes = c.argument("axes", 1)
    shape = list(c.shape)
    dims = sorted(c.dim(a, len(c.full) + len(axes)) for a in axes)
    if len(set(dims)) != len(dims):
        raise ModelError(f"'Unsqueeze' names an axis twice: {axes}")
    for d in dims:
        shape.insert(d, 1)
    return c.b.reshape(c.x, shape)


def _expand(c: Call) -> Value:
    target = broadcast(c.full, c.argument("shape", 1))
    if c.b.lead and (len(target) > len(c.full) or target[0] != c.batch):
        raise BatchError(f"'Expand' to {list(target)}: it mixes the batch with the features")
    return c.b.expand(c.x, target[c.b.lead :])


def _tile(c: Call) -> Value:
    times = c.argument("repeats", 1)
    if len(times) != len(c.full):
        raise ModelError(f"'Tile' by {times} of a value of {len(c.full)} dimensions")
    if c.b.lead and times[0] != 1:
        raise BatchError("'Tile' along the batch; served is a model whose samples do not mix")
    return compose.tile(c.b, c.x, times[c.b.lead :])


def _more_by_ceil(
    c: Call, kernel: Sequence[int], pool: tuple[list[int], list[int], list[tuple[int, int]], bool]
) -> bool:
    """Whether ceil_mode gives a pool more windows. One that would start in the padding behind is never one of them."""
    stride, dilation, pads, computed = pool
    if not c.get("ceil_mode", 0) or computed:
        return False
    for size, w, s, d, (before, after) in zip(c.full[2:], kernel, stride, dilation, pads, strict=True):
        room = size + before + after - d * (w - 1) - 1
        if room % s and (room // s + 1) * s < size + before:
            return True
    return False


def _max_pool(c: Call) -> Value:
    kernel = c.get("kernel_shape")
    pool = _windows(c, kernel)
    stride, dilation, pads, _ = pool
    c.get("storage_order")  # of the second output, which is refused
    if any(before != after for before, after in pads):
        raise UnsupportedError("'MaxPool' whose padding differs on the two sides; served is the same on both")
    if any(2 * before > w for (before, _), w in zip(pads, kernel, strict=True)):
        raise UnsupportedError("'MaxPool' with more padding than half of its kernel; served is half at most")
    more = _more_by_ceil(c, kernel, pool)
    return c.b.max_pool(c.x, kernel, stride, [before for before, _ in pads], dilation, more)


def _average_pool(c: Call) -> Value:
    kernel = c.get("kernel_shape")
    pool = _windows(c, kernel)
    stride, dilation, pads, _ = pool
    if set(dilation) != {1}:
        raise UnsupportedError(f"'AveragePool' with dilations {dilation}; served are dilations of 1")
    if _more_by_ceil(c, kernel, pool):
        raise UnsupportedError("'AveragePool' whose ceil_mode adds windows; served is a ceil_mode that changes nothing")
    if any(before >= w or after >= w for (before, after), w in zip(pads, kernel, strict=True)):
        raise UnsupportedError("'AveragePool' with windows that hold padding only; served is less than a kernel of it")
    return c.b.average_pool(c.x, kernel, stride, pads, bool(c.get("count_include_pad", 0)))


def _pad(c: Call) -> Value:
    sides = c.argument("pads", 1)
    old = "value" in c.schema.attributes
    value, axes = (None, None) if old else (c.constant(2), c.argument("axes", 3))
    c.need("mode", "constant")
    filled = float(c.get("value")) if old else 0.0 if value is None else float(value)
    rank = len(c.full)
    pairs = [(0, 0)] * rank
    half = len(sides) // 2
    places = [a % rank for a in axes] if axes else list(range(rank))
    if len(set(places)) != len(places):
        raise ModelError(f"'Pad' names an axis twice: {axes}")
    for axis, before, after in zip(places, sides[:half], sides[half:], strict=True):
        pairs[axis] = (int(before), int(after))
    if c.b.lead and pairs[0] != (0, 0):
        raise BatchError("'Pad' along the batch; served is a model whose samples do not mix")
    pairs = pairs[c.b.lead :]
    x = c.b.pad(c.x, pairs)
    if not filled:
        return x
    inside = torch.ones(c.shape, dtype=torch.float64)
    return c.b.affine(x, shift=filled * (1.0 - F.pad(inside, [side for pair in reversed(pairs) for side in pair])))


def _concat(c: Call) -> Value:
    parts = c.all()
    rank = len(c.b.shape(next(p for p in parts if isinstance(p, int)))) + c.b.lead
    axis = c.get("axis", 1)
    return c.b.concat(parts, c.dim(axis, rank))


def _split(c: Call) -> list[Value]:
    dim = c.dim(c.get("axis", 0))
    size, sizes, count = c.shape[dim], c.argument("split", 1), len(c.outputs)
    asked = c.get("num_outputs", count)
    if sizes is None:
        each = -(-size // asked)
        sizes = [min(each, size - start) for start in range(0, size, each)]
        if c.version < 18 and len(set(sizes)) > 1:
            raise ModelError(f"'Split' of {size} entries into {count} equal parts")
    if len(sizes) != count or asked != count or sum(sizes) != size or min(sizes) < 1:
        raise ModelError(f"'Split' of {size} entries into {list(sizes)} for {count} outputs; served are parts that fit")
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [c.b.select(c.x, dim, torch.arange(n) + start) for start, n in zip(starts, sizes, strict=True)]


def _slice(c: Call) -> Value:
    starts, ends, axes, steps = (c.argument(name, i) for i, name in enumerate(("starts", "ends", "axes", "steps"), 1))
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    if len({a % len(c.full) for a in axes}) != len(axes) or 0 in steps:
        raise ModelError(f"'Slice' along axes {axes} with steps {steps}")
    x = c.x
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if c.b.lead and axis % len(c.full) == 0 and slice(start, end, step).indices(c.batch) == (0, c.batch, 1):
            continue
        dim = c.dim(axis)
        size = c.b.shape(x)[dim]
        if step < 0 and start < -size:
            raise UnsupportedError("'Slice' backwards from before the first entry; served are starts inside")
        x = c.b.select(x, dim, torch.tensor(range(*slice(start, end, step).indices(size)), dtype=torch.int64))
    return x


def _gather(c: Call) -> Value:
    table, index, axis = c.required(0), c.required(1), c.get("axis")
    if isinstance(index, int):
        if isinstance(table, int) or table.ndim != 2 or axis not in (0, -2):
            raise UnsupportedError(
                "'Gather' by an index that depends on the model's input; served is one from the rows of a constant matrix"
            )
        c.kind = c.kinds[0]
        return c.b.add_node("embedding", [index], {"weight": table})
    dim = c.dim(axis)
    if bool(((index < -c.shape[dim]) | (index >= c.shape[dim])).any()):
        raise ModelError(f"'Gather' of entries beyond the {c.shape[dim]} that there are")
    x = c.b.select(c.x, dim, index.reshape(-1) % c.shape[dim])
    return c.b.reshape(x, [*c.shape[:dim], *index.shape, *c.shape[dim + 1 :]])


def _global(f: Callable[[Builder, int, Sequence[int], bool], int]) -> Handler:
    return lambda c: f(c.b, c.x, range(2 - c.b.lead, len(c.shape)), True)


def _resize(c: Call) -> Value:
    old = c.op == "Upsample" or c.version < 11
    scales = c.argument("scales", 1 if old else 2)
    sizes = None if old else c.argument("sizes", 3)
    scales = scales or None  # an empty one is left out
    if (scales is None) == (not sizes):
        raise UnsupportedError(f"'{c.op}' with both scales and sizes, or neither; served is one of them")
    axes = c.get("axes") or list(range(len(c.full)))
    mode = c.need("mode", "nearest", "linear")
    how, rounding = "asymmetric", "floor"
    if not old:
        how = c.need("coordinate_transformation_mode", *("half_pixel", *(k for k in _COORDINATES if k != "half_pixel")))
        rounding = c.need("nearest_mode", "round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
        c.constant(1)  # the region and what fills around it, which only tf_crop_and_resize reads
        _ = c.get("extrapolation_value"), c.get("cubic_coeff_a"), c.get("exclude_outside")
        c.need("antialias", 0)
        c.need("keep_aspect_ratio_policy", "stretch")
    x = c.x
    given: list[float] = sizes or scales or []
    if len(axes) != len(given):
        raise ModelError(f"'{c.op}' with {len(given)} scales or sizes for {len(axes)} dimensions")
    for i, axis in enumerate(axes):
        size = c.full[axis]
        # runtimes compute in float32, and floor(10 * 0.7) is 7 there
        scale = _f32(given[i]) / size if sizes else _f32(given[i])
        out = int(given[i]) if sizes else math.floor(float(scale * size))
        if out == size and float(scale) == 1:
            continue
        if old and mode == "nearest" and float(scale) < 1:
            raise UnsupportedError(
                f"'{c.op}' of opset {c.version} that shrinks by mode=nearest, of which that version does not say whether it "
                "rounds down or up; served is Resize from opset 11 on: convert the file with onnx.version_converter"
            )
        x = compose.resample(c.b, x, c.dim(axis), _interpolation(size, out, scale, mode, how, rounding))
    return x


def _f32(value: float) -> Tensor:
    return torch.tensor(float(value), dtype=torch.float32)


_COORDINATES: dict[str, Callable[[Tensor, int, int, Tensor], Tensor]] = {
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


def _interpolation(size: int, out: int, scale: Tensor, mode: str, how: str, rounding: str) -> Tensor:
    """The matrix (out, size) of a resize along one dimension; coordinates in float32, as runtimes compute them."""
    rows = torch.arange(out)
    at = _COORDINATES[how](rows.float(), size, out, scale)
    weight = torch.zeros(out, size, dtype=torch.float64)
    if mode == "nearest":
        weight[rows, _ROUNDINGS[rounding](at).long().clamp(0, size - 1)] = 1.0
        return weight
    at = at.double().clamp(0, size - 1)
    low = at.floor().long()
    weight[rows, low] += 1 - (at - low)
    weight[rows, (low + 1).clamp(max=size - 1)] += at - low
    return weight


def _blocks(c: Call) -> Value:
    """DepthToSpace and SpaceToDepth."""
    size, x = c.get("blocksize"), c.sample()
    n, h, w = c.b.shape(x)
    if c.op == "SpaceToDepth":
        c.need("mode", "DCR")
        x = c.b.permute(c.b.reshape(x, (n, h // size, size, w // size, size)), (2, 4, 0, 1, 3))
        return c.b.again(c.b.reshape(x, (n * size**2, h // size, w // size)), c.x)
    n //= size**2
    if c.need("mode", "DCR", "CRD") == "DCR":
        x = c.b.permute(c.b.reshape(x, (size, size, n, h, w)), (2, 3, 0, 4, 1))
    else:
        x = c.b.permute(c.b.reshape(x, (n, size, size, h, w)), (0, 3, 1, 4, 2))
    return c.b.again(c.b.reshape(x, (n, h * size, w * size)), c.x)


_ANY = FLOATS | WHOLE | {BOOL}

SHAPES: dict[str, Served] = {
    "Conv": Served(_conv, 22),
    "ConvTranspose": Served(_conv_transpose, 22),
    "Flatten": Served(_flatten, 25, kinds=_ANY),
    "Reshape": Served(_reshape, 25, 5, _ANY),
    "Transpose": Served(_transpose, 25, kinds=_ANY),
    "Squeeze": Served(_squeeze, 25, kinds=_ANY),
    "Unsqueeze": Served(_unsqueeze, 25, kinds=_ANY),
    "Expand": Served(_expand, 13, kinds=_ANY),
    "Tile": Served(_tile, 13, 6, _ANY),
    "DepthToSpace": Served(_blocks, 28),
    "SpaceToDepth": Served(_blocks, 28),
    "MaxPool": Served(_max_pool, 22),
    "AveragePool": Served(_average_pool, 22, 7),
    "GlobalAveragePool": Served(_global(Builder.mean), 22),
    "GlobalMaxPool": Served(_global(compose.amax), 22),
    "Resize": Served(_resize, 19),
    "Upsample": Served(_resize, 9, 7),
    "Pad": Served(_pad, 25, 2),
    "Concat": Served(_concat, 13, 4, _ANY),
    "Split": Served(_split, 18, 2, _ANY),
    "Slice": Served(_slice, 13, kinds=_ANY),
    "Gather": Served(_gather, 13, kinds=_ANY),
}
