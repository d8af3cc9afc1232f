"""What the graph makes of ATen calls of images and shapes: convolutions, pools, moving and picking entries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from holdfast.core.errors import UnsupportedError
from holdfast.graph import compose
from holdfast.graph.aten_reader import Handler, Reader, call_name, tuple_of
from holdfast.graph.build import Value

__all__ = ["SHAPES"]


def _conv(r: Reader, node: fx.Node) -> Value:
    weight, bias = r.constant(node.args[1]), r.constant(r.get(node, 2, "bias"))
    assert weight is not None
    k = weight.ndim - 2
    stride, dilation = tuple_of(r.get(node, 3, "stride", 1), k), tuple_of(r.get(node, 5, "dilation", 1), k)
    padding = r.get(node, 4, "padding", 0)
    if padding == "same":
        totals = [d * (size - 1) for d, size in zip(dilation, weight.shape[2:], strict=True)]
        pads = [(total // 2, total - total // 2) for total in totals]
    else:
        pads = [(p, p) for p in tuple_of(0 if padding == "valid" else padding, k)]
    return r.builder.conv(r.x(node), weight, bias, stride, pads, dilation, r.get(node, 6, "groups", 1))


def _reshape(r: Reader, node: fx.Node) -> Value:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    before, after, lead = source.meta["val"].shape, node.meta["val"].shape, r.builder.lead
    mixed = lead and (not after or str(before[0]) != str(after[0]))
    if mixed or not all(isinstance(s, int) for s in after[lead:]):
        raise UnsupportedError(f"'{call_name(node)}' that mixes the batch with the features")
    return r.builder.reshape(r.x(node), after[lead:])


def _permute(r: Reader, node: fx.Node) -> Value:
    lead = r.builder.lead
    rank = len(r.builder.shape(r.x(node))) + lead
    dims = [d % rank for d in r.get(node, 1, "dims", range(rank)[::-1])]
    if lead and dims[0] != 0:
        raise UnsupportedError(f"'{call_name(node)}' that moves the batch")
    return r.builder.permute(r.x(node), [d - lead for d in dims[lead:]])


def _transpose(r: Reader, node: fx.Node) -> Value:
    i, j = (r.feature_dim(node, d) for d in (node.args[1:3] or (0, 1)))  # type: ignore[arg-type]
    dims = list(range(len(r.builder.shape(r.x(node)))))
    dims[i], dims[j] = dims[j], dims[i]
    return r.builder.permute(r.x(node), dims)


def _slice(r: Reader, node: fx.Node) -> Value:
    dim, start, stop, step = (r.get(node, i, "", d) for i, d in ((1, 0), (2, None), (3, None), (4, 1)))
    rank = len(r.builder.shape(r.x(node))) + r.builder.lead
    if dim % rank < r.builder.lead and start in (0, None) and step == 1 and (stop is None or stop >= 2**62):
        return r.x(node)
    dim = r.feature_dim(node, dim)
    return r.builder.select(r.x(node), dim, torch.arange(r.builder.shape(r.x(node))[dim])[slice(start, stop, step)])


def _select(r: Reader, node: fx.Node) -> Value:
    dim = r.feature_dim(node, node.args[1])  # type: ignore[arg-type]
    size = r.builder.shape(r.x(node))[dim]
    x = r.builder.select(r.x(node), dim, torch.tensor([node.args[2] % size]))  # type: ignore[operator]
    return r.builder.reshape(x, [s for d, s in enumerate(r.builder.shape(x)) if d != dim])


def _index_select(r: Reader, node: fx.Node) -> Value:
    index = r.constant(node.args[2])
    assert index is not None
    return r.builder.select(r.x(node), r.feature_dim(node, node.args[1]), index)  # type: ignore[arg-type]


def _pad(r: Reader, node: fx.Node) -> Value:
    sides: Sequence[int] = node.args[1]  # type: ignore[assignment]
    mode, constant = (
        ("constant", r.get(node, 2, "value", 0))
        if "constant" in str(node.target)
        else (r.get(node, 2, "mode", "constant"), r.get(node, 3, "value", 0))
    )
    rank = len(r.builder.shape(r.x(node)))
    if mode != "constant" or constant or len(sides) > 2 * rank:
        raise UnsupportedError("padding with anything but zeros")
    pairs = list(zip(sides[::2], sides[1::2], strict=True))[::-1]
    return r.builder.pad(r.x(node), [(0, 0)] * (rank - len(pairs)) + pairs)


def _cat(r: Reader, node: fx.Node) -> Value:
    parts = [r.operand(a) for a in node.args[0]]  # type: ignore[union-attr]
    first = next(p for p in parts if isinstance(p, int))
    return r.builder.concat(parts, r.dim_of(node, first, r.get(node, 1, "dim", 0)))


def _stack(r: Reader, node: fx.Node) -> Value:
    parts = [r.operand(a) for a in node.args[0]]  # type: ignore[union-attr]
    first = next(p for p in parts if isinstance(p, int))
    shape, lead, axis = r.builder.shape(first), r.builder.lead, r.get(node, 1, "dim", 0)
    axis = axis % (len(shape) + lead + 1)
    if axis < lead:
        raise UnsupportedError("'stack' along the batch")
    dim = axis - lead
    wide = [
        r.builder.reshape(p, (*shape[:dim], 1, *shape[dim:])) if isinstance(p, int) else p.unsqueeze(axis)
        for p in parts
    ]
    return r.builder.concat(wide, dim)


def _split(r: Reader, node: fx.Node) -> list[Value]:
    dim = r.feature_dim(node, r.get(node, 2, "dim", 0))
    size, sizes = r.builder.shape(r.x(node))[dim], node.args[1]
    if call_name(node) == "chunk":
        sizes = -(-size // int(sizes))  # type: ignore[arg-type]
    if isinstance(sizes, int):
        sizes = [min(sizes, size - start) for start in range(0, size, sizes)]
    places = torch.arange(size).split(list(sizes))  # type: ignore[arg-type]
    return [r.builder.select(r.x(node), dim, index) for index in places]


def _unbind(r: Reader, node: fx.Node) -> list[Value]:
    dim = r.feature_dim(node, r.get(node, 1, "dim", 0))
    shape = r.builder.shape(r.x(node))
    kept = [s for d, s in enumerate(shape) if d != dim]
    return [r.builder.reshape(r.builder.select(r.x(node), dim, torch.tensor([i])), kept) for i in range(shape[dim])]


def _getitem(r: Reader, node: fx.Node) -> Value:
    values = r.values[node.args[0]]  # type: ignore[index]
    place = int(node.args[1])  # type: ignore[arg-type]
    if not isinstance(values, list) or place >= len(values):
        raise UnsupportedError("an operation whose second result, such as positions, is used")
    return values[place]


def _max_pool(r: Reader, node: fx.Node) -> Value:
    k = int(str(node.target).split("max_pool")[1][0])
    kernel = tuple_of(node.args[1], k)
    stride, padding = tuple_of(r.get(node, 2, "stride") or kernel, k), tuple_of(r.get(node, 3, "padding", 0), k)
    dilation, ceil = tuple_of(r.get(node, 4, "dilation", 1), k), r.get(node, 5, "ceil_mode", False)
    return r.builder.max_pool(r.x(node), kernel, stride, padding, dilation, ceil)


def _avg_pool(r: Reader, node: fx.Node) -> Value:
    k = int(str(node.target).split("avg_pool")[1][0])
    kernel = tuple_of(node.args[1], k)
    stride, padding = tuple_of(r.get(node, 2, "stride") or kernel, k), tuple_of(r.get(node, 3, "padding", 0), k)
    if r.get(node, 4, "ceil_mode", False) or r.get(node, 6, "divisor_override") is not None:
        raise UnsupportedError("an average pool with ceil_mode or divisor_override")
    count = r.get(node, 5, "count_include_pad", True)
    return r.builder.average_pool(r.x(node), kernel, stride, [(p, p) for p in padding], count)


def _adaptive_avg_pool(r: Reader, node: fx.Node) -> Value:
    k = int(str(node.target).split("avg_pool")[1][0])
    sizes, target = r.builder.shape(r.x(node))[-k:], tuple_of(node.args[1], k)
    if any(s % t for s, t in zip(sizes, target, strict=True)):
        raise UnsupportedError(f"an adaptive average pool from {sizes} to {target}: not a multiple")
    if set(target) == {1}:
        rank = len(r.builder.shape(r.x(node)))
        return r.builder.mean(r.x(node), range(rank - k, rank), keep=True)
    kernel = [s // t for s, t in zip(sizes, target, strict=True)]
    return r.builder.average_pool(r.x(node), kernel, kernel, [(0, 0)] * k)


def _convert(r: Reader, node: fx.Node) -> Value:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    if node.meta["val"].dtype != source.meta["val"].dtype:
        raise UnsupportedError(f"a conversion to {node.meta['val'].dtype} in the middle of the model")
    return r.x(node)


def _conv_transpose(r: Reader, node: fx.Node) -> Value:
    weight, bias = r.constant(node.args[1]), r.constant(r.get(node, 2, "bias"))
    assert weight is not None
    k = weight.ndim - 2
    stride, padding = tuple_of(r.get(node, 3, "stride", 1), k), tuple_of(r.get(node, 4, "padding", 0), k)
    extra, dilation = tuple_of(r.get(node, 5, "output_padding", 0), k), tuple_of(r.get(node, 7, "dilation", 1), k)
    pads = [(p, p) for p in padding]
    groups = r.get(node, 6, "groups", 1)
    return r.builder.conv_transpose(r.x(node), weight, bias, stride, pads, extra, dilation, groups)


def _upsample(r: Reader, node: fx.Node) -> Value:
    name = call_name(node)
    mode = {
        "upsample_nearest": "nearest",
        "_upsample_nearest_exact": "nearest-exact",
        "upsample_linear": "linear",
        "upsample_bilinear": "linear",
        "upsample_trilinear": "linear",
        "upsample_bicubic": "cubic",
    }[name.split(".")[0][:-2]]
    vector = str(node.target).endswith(".vec")
    align = None if "nearest" in mode else bool(node.args[2])
    given: Any = node.args[3 - (align is None)] if vector else node.args[2 + (align is not None) :]
    scales: Sequence[float | None] = list(given or [])
    spatial = node.meta["val"].shape[2:]
    x, first = r.x(node), 2 - r.builder.lead
    for i, out in enumerate(int(s) for s in spatial):
        size = r.builder.shape(x)[first + i]
        weight = compose.interpolation(size, out, mode, scales[i] if i < len(scales) else None, align)
        x = compose.resample(r.builder, x, first + i, weight)
    return x


def _embedding(r: Reader, node: fx.Node) -> Value:
    weight = r.constant(node.args[0])
    source = node.args[1]
    assert weight is not None
    assert isinstance(source, fx.Node)
    if source.meta["val"].dtype.is_floating_point:
        raise UnsupportedError("an embedding of a value that is not whole")
    return r.builder.add_node("embedding", [r.x(node, 1)], {"weight": weight})


def _expand(r: Reader, node: fx.Node) -> Value:
    shape, lead = node.meta["val"].shape, r.builder.lead
    source = node.args[0]
    assert isinstance(source, fx.Node)
    if lead and (len(shape) != len(source.meta["val"].shape) or str(shape[0]) != str(source.meta["val"].shape[0])):
        raise UnsupportedError(f"'{call_name(node)}' that mixes the batch with the features")
    return r.builder.expand(r.x(node), shape[lead:])


def _repeat(r: Reader, node: fx.Node) -> Value:
    times: Sequence[int] = node.args[1]  # type: ignore[assignment]
    x, lead = r.x(node), r.builder.lead
    rank = len(r.builder.shape(x)) + lead
    times = [1] * (rank - len(times)) + list(times)
    if lead and (len(times) > rank or times[0] != 1):
        raise UnsupportedError(f"'{call_name(node)}' along the batch")
    x = r.builder.reshape(x, (1,) * (len(times) - rank) + r.builder.shape(x))
    return compose.tile(r.builder, x, times[lead:])


def _rearranged(r: Reader, node: fx.Node) -> Value:
    """Calls that only pick and move entries of a dimension."""
    x, name = r.x(node), call_name(node)
    if name == "roll" and not r.get(node, 2, "dims"):
        raise UnsupportedError("'roll' without dimensions")
    dims: Any = {"flip": node.args[1], "roll": r.get(node, 2, "dims"), "repeat_interleave": r.get(node, 2, "dim")}[name]
    if dims is None:
        raise UnsupportedError(f"'{name}' without a dimension")
    for i, axis in enumerate([dims] if isinstance(dims, int) else dims):
        dim = r.feature_dim(node, axis)
        index = torch.arange(r.builder.shape(x)[dim])
        if name == "flip":
            index = index.flip(0)
        elif name == "roll":
            shifts: Any = node.args[1]
            index = index.roll(shifts if isinstance(shifts, int) else shifts[i])
        else:
            index = index.repeat_interleave(int(node.args[1]))  # type: ignore[arg-type]
        x = r.builder.select(x, dim, index)
    return x


def _index(r: Reader, node: fx.Node) -> Value:
    places: Sequence[Any] = node.args[1]  # type: ignore[assignment]
    used = [i for i, p in enumerate(places) if p is not None]
    index = r.constant(places[used[0]])
    if len(used) != 1 or index is None or index.is_floating_point():
        raise UnsupportedError("indexing by several lists")
    dim = r.feature_dim(node, used[0])
    x, shape = r.x(node), r.builder.shape(r.x(node))
    index = index.nonzero()[:, 0] if index.dtype == torch.bool else index % shape[dim]
    return r.builder.reshape(
        r.builder.select(x, dim, index.reshape(-1)), [*shape[:dim], *index.shape, *shape[dim + 1 :]]
    )


def _shuffle(r: Reader, node: fx.Node) -> Value:
    """pixel_shuffle, pixel_unshuffle and channel_shuffle."""
    name, k, given = call_name(node), int(node.args[1]), r.x(node)  # type: ignore[arg-type]
    x = r.builder.samples(given, len(r.builder.shape(given)) - 1 + r.builder.lead)
    n, *space = r.builder.shape(x)
    if name == "channel_shuffle":
        wide = r.builder.permute(r.builder.reshape(x, (k, n // k, *space)), (1, 0, *range(2, len(space) + 2)))
        return r.builder.again(r.builder.reshape(wide, (n, *space)), given)
    h, w = space
    if name == "pixel_shuffle":
        wide = r.builder.permute(r.builder.reshape(x, (n // k**2, k, k, h, w)), (0, 3, 1, 4, 2))
        return r.builder.again(r.builder.reshape(wide, (n // k**2, h * k, w * k)), given)
    wide = r.builder.permute(r.builder.reshape(x, (n, h // k, k, w // k, k)), (0, 2, 4, 1, 3))
    return r.builder.again(r.builder.reshape(wide, (n * k**2, h // k, w // k)), given)


def _filled(r: Reader, node: fx.Node) -> Value:
    """A constant in the shape of a value."""
    shape = [s if isinstance(s, int) else 1 for s in node.meta["val"].shape]
    call = call_name(node)
    value = (
        0.0 if "zeros" in call else 1.0 if "ones" in call else r.get(node, 2 if call == "new_full" else 1, "fill_value")
    )
    if isinstance(value, fx.Node):
        raise UnsupportedError(f"'{call}' with a value that is computed")
    return torch.full(shape, float(value), dtype=torch.float64)


def _adaptive_max_pool(r: Reader, node: fx.Node) -> list[Value]:
    k = int(call_name(node).split("max_pool")[1][0])
    shape = r.builder.shape(r.x(node))
    sizes, target = shape[-k:], tuple_of(node.args[1], k)
    if any(s % t for s, t in zip(sizes, target, strict=True)):
        raise UnsupportedError(f"an adaptive max pool from {sizes} to {target}: not a multiple")
    if set(target) == {1}:
        return [compose.amax(r.builder, r.x(node), range(len(shape) - k, len(shape)), True)]
    kernel = [s // t for s, t in zip(sizes, target, strict=True)]
    return [r.builder.max_pool(r.x(node), kernel, kernel, [0] * k, [1] * k)]


def _same(r: Reader, node: fx.Node) -> Value:
    return r.x(node)


SHAPES: dict[str, Handler] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _conv),
    **dict.fromkeys(
        ("view", "_unsafe_view", "reshape", "flatten", "squeeze", "unsqueeze", "unflatten", "view_as"), _reshape
    ),
    **dict.fromkeys(("permute", "numpy_T"), _permute),
    **dict.fromkeys(("transpose", "swapaxes", "t"), _transpose),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), _expand),
    **dict.fromkeys(("repeat", "tile"), _repeat),
    **dict.fromkeys(("flip", "roll", "repeat_interleave"), _rearranged),
    **dict.fromkeys(("pixel_shuffle", "pixel_unshuffle", "channel_shuffle"), _shuffle),
    "index": _index,
    **dict.fromkeys(("new_full", "new_zeros", "new_ones", "full_like", "zeros_like", "ones_like"), _filled),
    "stack": _stack,
    **dict.fromkeys(("split", "split_with_sizes", "chunk"), _split),
    "unbind": _unbind,
    "getitem": _getitem,
    "slice": _slice,
    "select": _select,
    "index_select": _index_select,
    **dict.fromkeys(("pad", "constant_pad_nd"), _pad),
    **dict.fromkeys(("cat", "concat"), _cat),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d"), _max_pool),
    **dict.fromkeys(("max_pool2d_with_indices", "max_pool3d_with_indices"), lambda r, node: [_max_pool(r, node)]),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), _avg_pool),
    **dict.fromkeys(("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"), _adaptive_avg_pool),
    **dict.fromkeys(("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d"), _adaptive_max_pool),
    **dict.fromkeys(
        (
            "upsample_nearest1d",
            "upsample_nearest2d",
            "upsample_nearest3d",
            "_upsample_nearest_exact1d",
            "_upsample_nearest_exact2d",
            "_upsample_nearest_exact3d",
            "upsample_linear1d",
            "upsample_bilinear2d",
            "upsample_trilinear3d",
            "upsample_bicubic2d",
        ),
        _upsample,
    ),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _conv_transpose),
    "embedding": _embedding,
    **dict.fromkeys(("to", "_to_copy"), _convert),
    **dict.fromkeys(
        (
            "contiguous",
            "clone",
            "detach",
            "alias",
            "lift_fresh_copy",
            "dropout",
            "feature_dropout",
            "alpha_dropout",
            "identity",
        ),
        _same,
    ),
}
