"""What the graph makes of ATen calls of images and sequences: convolutions, pools, padding and resampling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from holdfast.core.errors import UnsupportedError
from holdfast.graph import compose
from holdfast.graph.aten_call import AtenCall, Handler, tuple_of, where_of
from holdfast.graph.build import Value
from holdfast.graph.windows import Windows, average_pool, conv, conv_transpose, max_pool

__all__ = ["IMAGES"]


def _conv(c: AtenCall) -> Value:
    weight, bias = c.weight("weight"), c.constant("bias")
    k = weight.ndim - 2
    stride, dilation = tuple_of(c.get("stride"), k), tuple_of(c.get("dilation"), k)
    padding = c.get("padding")
    if padding == "same":
        totals = [d * (size - 1) for d, size in zip(dilation, weight.shape[2:], strict=True)]
        pads = [(total // 2, total - total // 2) for total in totals]
    else:
        pads = [(p, p) for p in tuple_of(0 if padding == "valid" else padding, k)]
    windows = Windows(stride=stride, pads=pads, dilation=dilation)
    return conv(c.b, c.x, weight, bias, windows, c.get("groups"))


def _conv_transpose(c: AtenCall) -> Value:
    weight, bias = c.weight("weight"), c.constant("bias")
    k = weight.ndim - 2
    stride, padding, extra, dilation = (
        tuple_of(c.get(name), k) for name in ("stride", "padding", "output_padding", "dilation")
    )
    windows = Windows(stride=stride, pads=[(p, p) for p in padding], dilation=dilation)
    return conv_transpose(c.b, c.x, weight, bias, windows, extra, c.get("groups"))


def _pad(c: AtenCall) -> Value:
    sides: Sequence[int] = c.get("pad")
    mode = c.get("mode") if c.has("mode") else "constant"
    rank = len(c.shape)
    if mode != "constant" or c.get("value") or len(sides) > 2 * rank:
        raise UnsupportedError(
            f"padding with anything but zeros{where_of(c.node)}; zeros around the features are served"
        )
    pairs = list(zip(sides[::2], sides[1::2], strict=True))[::-1]
    return c.b.pad(c.x, [(0, 0)] * (rank - len(pairs)) + pairs)


def _windows(c: AtenCall, k: int) -> tuple[tuple[int, ...], Windows]:
    """The kernel of a pool, and how its windows lie."""
    kernel = tuple_of(c.get("kernel_size"), k)
    stride, padding = tuple_of(c.get("stride") or kernel, k), tuple_of(c.get("padding"), k)
    dilation = tuple_of(c.get("dilation"), k) if c.has("dilation") else (1,) * k
    return kernel, Windows(stride=stride, pads=[(p, p) for p in padding], dilation=dilation)


def _max_pool(c: AtenCall) -> Value:
    k = int(c.name.split("max_pool")[1][0])
    kernel, windows = _windows(c, k)
    return max_pool(c.b, c.x, kernel, windows, bool(c.get("ceil_mode")))


def _avg_pool(c: AtenCall) -> Value:
    k = int(c.name.split("avg_pool")[1][0])
    kernel, windows = _windows(c, k)
    rests = [
        (s + before + after - n) % step
        for s, (before, after), n, step in zip(c.shape[-k:], windows.pads, kernel, windows.stride, strict=True)
    ]
    if c.get("ceil_mode") and any(rests):
        raise UnsupportedError(
            f"an average pool with ceil_mode=True{where_of(c.node)}, whose last window is cut; served are windows that fit: pad "
            "the value first"
        )
    divisor = c.get("divisor_override") if c.has("divisor_override") else None
    return average_pool(c.b, c.x, kernel, windows, bool(c.get("count_include_pad")), divisor)


def _adaptive(c: AtenCall) -> tuple[int, tuple[int, ...], tuple[int, ...] | None]:
    """Dimensions, the kernel of an adaptive pool, and None for the target where it is one window."""
    k = int(c.name.split("_pool")[1][0])
    sizes, target = c.shape[-k:], tuple_of(c.get("output_size"), k)
    if any(t < 1 or s % t for s, t in zip(sizes, target, strict=True)):
        raise UnsupportedError(
            f"'{c.name}' from {sizes} to {target}{where_of(c.node)}: only whole multiples are served"
        )
    return k, tuple(s // t for s, t in zip(sizes, target, strict=True)), None if set(target) == {1} else target


def _adaptive_avg_pool(c: AtenCall) -> Value:
    k, kernel, target = _adaptive(c)
    rank = len(c.shape)
    if target is None:
        return c.b.mean(c.x, range(rank - k, rank), keep=True)
    return average_pool(c.b, c.x, kernel, Windows.plain(kernel))


def _adaptive_max_pool(c: AtenCall) -> list[Value]:
    k, kernel, target = _adaptive(c)
    rank = len(c.shape)
    if target is None:
        return [compose.amax(c.b, c.x, range(rank - k, rank), True)]
    return [max_pool(c.b, c.x, kernel, Windows.plain(kernel))]


def _upsample(c: AtenCall) -> Value:
    mode = {
        "upsample_nearest": "nearest",
        "_upsample_nearest_exact": "nearest-exact",
        "upsample_linear": "linear",
        "upsample_bilinear": "linear",
        "upsample_trilinear": "linear",
        "upsample_bicubic": "cubic",
    }[c.name[:-2]]
    align = None if "nearest" in mode else bool(c.get("align_corners"))
    spatial = c.result_shape[2:]
    c.skip("output_size")  # the shape of the result says it
    scales: list[float | None] = [None] * len(spatial)
    if c.has("scale_factors"):
        scales = list(c.get("scale_factors") or scales)
    else:
        names = [name for name in c.names if name.startswith("scales")]
        scales = [c.get(name) for name in names]
    x, first = c.x, 2 - c.b.batch_dims
    for i, out in enumerate(int(s) for s in spatial):
        weight = _interpolation(c, c.b.shape(x)[first + i], out, mode, scales[i], align)
        x = compose.resample(c.b, x, first + i, weight)
    return x


def _interpolation(c: AtenCall, size: int, out: int, mode: str, scale: float | None, align: bool | None) -> Tensor:
    """PyTorch's own matrix, which must have the size of the result.

    Its kernels round where an entry lies (in float32 for narrower types too), so the matrix is that of the type.
    """
    dtype = torch.promote_types(c.b.dtype, torch.float32)
    weight = compose.interpolation(size, out, mode, scale, align, dtype)
    if weight.shape != (out, size):
        raise UnsupportedError(
            f"'{c.name}' to {out} by a factor {scale}, which gives {weight.shape[0]}{where_of(c.node)}"
        )
    return weight


def _shuffle(c: AtenCall) -> Value:
    """pixel_shuffle, pixel_unshuffle and channel_shuffle."""
    name, k, b = c.name, int(c.get(c.names[1])), c.b
    x = b.drop_batch(c.x, c.rank - 1)
    n, *space = b.shape(x)
    if name == "channel_shuffle":
        wide = b.permute(b.reshape(x, (k, n // k, *space)), (1, 0, *range(2, len(space) + 2)))
        return b.restore_batch(b.reshape(wide, (n, *space)), c.x)
    h, w = space
    if name == "pixel_shuffle":
        wide = b.permute(b.reshape(x, (n // k**2, k, k, h, w)), (0, 3, 1, 4, 2))
        return b.restore_batch(b.reshape(wide, (n // k**2, h * k, w * k)), c.x)
    wide = b.permute(b.reshape(x, (n, h // k, k, w // k, k)), (0, 2, 4, 1, 3))
    return b.restore_batch(b.reshape(wide, (n * k**2, h // k, w // k)), c.x)


def _named(stem: str, *suffixes: str) -> list[str]:
    return [stem + suffix for suffix in suffixes]


IMAGES: dict[str, Handler] = {
    **dict.fromkeys(_named("conv", "1d", "2d", "3d"), _conv),
    **dict.fromkeys(_named("conv_transpose", "1d", "2d", "3d"), _conv_transpose),
    **dict.fromkeys(_named("max_pool", "1d", "2d", "3d"), _max_pool),
    **dict.fromkeys(("max_pool2d_with_indices", "max_pool3d_with_indices"), lambda c: [_max_pool(c)]),
    **dict.fromkeys(_named("avg_pool", "1d", "2d", "3d"), _avg_pool),
    **dict.fromkeys(_named("adaptive_avg_pool", "1d", "2d", "3d"), _adaptive_avg_pool),
    **dict.fromkeys(_named("adaptive_max_pool", "1d", "2d", "3d"), _adaptive_max_pool),
    **dict.fromkeys(
        [
            *_named("upsample_", "nearest1d", "nearest2d", "nearest3d", "linear1d", "bilinear2d", "trilinear3d"),
            *_named("_upsample_nearest_exact", "1d", "2d", "3d"),
            "upsample_bicubic2d",
        ],
        _upsample,
    ),
    **dict.fromkeys(("pixel_shuffle", "pixel_unshuffle", "channel_shuffle"), _shuffle),
    **dict.fromkeys(("pad", "constant_pad_nd"), _pad),
}
