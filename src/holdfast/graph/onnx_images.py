"""What the graph makes of ONNX operations of images and sequences: convolutions, pools and resampling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from holdfast.core.errors import ModelError, UnsupportedError
from holdfast.graph import compose
from holdfast.graph.build import Builder, Value
from holdfast.graph.onnx_call import Handler, OnnxCall, OnnxOp
from holdfast.graph.windows import Windows, average_pool, conv, conv_transpose, max_pool

__all__ = ["IMAGES"]


def _windows(c: OnnxCall, kernel: Sequence[int]) -> tuple[Windows, bool]:
    """How windows lie, and whether the padding was computed."""
    k = len(kernel)
    if len(c.full) != k + 2 or not 1 <= k <= 3:
        raise UnsupportedError(
            f"'{c.op}' with a kernel of {k} dimensions on a value of shape {c.full}; served are 1 to 3"
        )
    stride, dilation = c.get("strides") or [1] * k, c.get("dilations") or [1] * k
    sides: Sequence[int] = c.get("pads") or []
    auto = c.need("auto_pad", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")
    if auto != "NOTSET" and any(sides):
        raise UnsupportedError(f"'{c.op}' with auto_pad={auto} and pads; served is one of them")
    sides = sides or [0] * (2 * k)
    if len(stride) != k or len(dilation) != k or len(sides) != 2 * k or min(*stride, *dilation, *kernel) < 1:
        raise ModelError(f"'{c.op}' with strides {stride}, dilations {dilation} and pads {sides} for {k} dimensions")
    if min(sides) < 0:
        raise UnsupportedError(f"'{c.op}' with negative padding {sides}; served is padding of at least 0")
    if auto in ("NOTSET", "VALID"):
        return Windows(stride=stride, pads=list(zip(sides[:k], sides[k:], strict=True)), dilation=dilation), False
    if c.op == "MaxPool" and set(dilation) != {1}:
        raise UnsupportedError(f"'MaxPool' with auto_pad={auto} and dilations; served is one of them")
    pads: list[tuple[int, int]] = []
    for size, w, s, d in zip(c.full[2:], kernel, stride, dilation, strict=True):
        total = max((-(-size // s) - 1) * s + d * (w - 1) + 1 - size, 0)
        pads.append((total // 2, total - total // 2) if auto == "SAME_UPPER" else (total - total // 2, total // 2))
    return Windows(stride=stride, pads=pads, dilation=dilation), True


def _kernel(c: OnnxCall, weight: Tensor) -> list[int]:
    """The spatial shape of a kernel, which the file may say twice."""
    kernel = list(weight.shape[2:])
    said = c.get("kernel_shape")
    if said is not None and list(said) != kernel:
        raise ModelError(f"'{c.op}' with kernel_shape {said} and a weight of shape {tuple(weight.shape)}")
    return kernel


def _conv(c: OnnxCall) -> Value:
    weight = c.weight(1)
    windows, _ = _windows(c, _kernel(c, weight))
    groups = c.get("group")
    if groups < 1 or len(weight) % groups:
        raise ModelError(f"'{c.op}' with {len(weight)} outputs in {groups} groups")
    return conv(c.b, c.x, weight, c.constant(2), windows, groups)


def _conv_transpose(c: OnnxCall) -> Value:
    weight = c.weight(1)
    kernel = _kernel(c, weight)
    c.need("auto_pad", "NOTSET")
    if c.get("output_shape"):
        raise UnsupportedError("'ConvTranspose' with output_shape; served are pads and output_padding")
    windows, _ = _windows(c, kernel)
    extra = c.get("output_padding") or [0] * len(kernel)
    if any(e < 0 or e >= max(s, d) for e, s, d in zip(extra, windows.stride, windows.dilation, strict=True)):
        raise UnsupportedError(
            f"'ConvTranspose' with output_padding {extra}; served is less than the stride or dilation"
        )
    return conv_transpose(c.b, c.x, weight, c.constant(2), windows, extra, c.get("group"))


def _more_by_ceil(c: OnnxCall, kernel: Sequence[int], windows: Windows, computed: bool) -> bool:
    """Whether ceil_mode gives a pool more windows. One that would start in the padding behind is never one of them."""
    if not c.get("ceil_mode", 0) or computed:
        return False
    lie = zip(c.full[2:], kernel, windows.stride, windows.dilation, windows.pads, strict=True)
    for size, w, s, d, (before, after) in lie:
        room = size + before + after - d * (w - 1) - 1
        if room % s and (room // s + 1) * s < size + before:
            return True
    return False


def _max_pool(c: OnnxCall) -> Value:
    kernel = c.get("kernel_shape")
    windows, computed = _windows(c, kernel)
    pads = windows.pads
    c.get("storage_order")  # of the second output, which is refused
    if any(before != after for before, after in pads):
        raise UnsupportedError("'MaxPool' whose padding differs on the two sides; served is the same on both")
    if any(2 * before > w for (before, _), w in zip(pads, kernel, strict=True)):
        raise UnsupportedError("'MaxPool' with more padding than half of its kernel; served is half at most")
    return max_pool(c.b, c.x, kernel, windows, _more_by_ceil(c, kernel, windows, computed))


def _average_pool(c: OnnxCall) -> Value:
    kernel = c.get("kernel_shape")
    windows, computed = _windows(c, kernel)
    if set(windows.dilation) != {1}:
        raise UnsupportedError(f"'AveragePool' with dilations {windows.dilation}; served are dilations of 1")
    if _more_by_ceil(c, kernel, windows, computed):
        raise UnsupportedError("'AveragePool' whose ceil_mode adds windows; served is a ceil_mode that changes nothing")
    if any(before >= w or after >= w for (before, after), w in zip(windows.pads, kernel, strict=True)):
        raise UnsupportedError("'AveragePool' with windows that hold padding only; served is less than a kernel of it")
    return average_pool(c.b, c.x, kernel, windows, bool(c.get("count_include_pad", 0)))


def _global(f: Callable[[Builder, int, Sequence[int], bool], int]) -> Handler:
    return lambda c: f(c.b, c.x, range(2 - c.b.batch_dims, len(c.shape)), True)


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


def _resize(c: OnnxCall) -> Value:
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


IMAGES: dict[str, OnnxOp] = {
    "Conv": OnnxOp(_conv, 22),
    "ConvTranspose": OnnxOp(_conv_transpose, 22),
    "MaxPool": OnnxOp(_max_pool, 22),
    "AveragePool": OnnxOp(_average_pool, 22, 7),
    "GlobalAveragePool": OnnxOp(_global(Builder.mean), 22),
    "GlobalMaxPool": OnnxOp(_global(compose.amax), 22),
    "Resize": OnnxOp(_resize, 19),
    "Upsample": OnnxOp(_resize, 9, 7),
}
