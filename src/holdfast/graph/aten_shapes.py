"""What the graph makes of ATen calls of shapes: moving, picking and writing entries. Those of images: `aten_images`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from holdfast.core.arrays import distinct, listed
from holdfast.core.errors import UnsupportedError
from holdfast.graph import compose
from holdfast.graph.aten_call import AtenCall, Handler, where_of
from holdfast.graph.build import Value

__all__ = ["SHAPES"]


def _reshape(c: AtenCall) -> Value:
    before, after, batch_dims = c.full_shape(c.first), c.result_shape, c.b.batch_dims
    c.skip(*c.names[1:])  # the shape of the result says it
    mixed = batch_dims and (not after or str(before[0]) != str(after[0]))
    if mixed or not all(isinstance(s, int) for s in after[batch_dims:]):
        raise UnsupportedError(f"'{c.name}'{where_of(c.node)} that mixes the batch with the features")
    return c.b.reshape(c.x, after[batch_dims:])


def _permute(c: AtenCall) -> Value:
    batch_dims, rank = c.b.batch_dims, c.rank
    dims = [d % rank for d in (c.get("dims") if c.has("dims") else range(rank)[::-1])]
    if batch_dims and dims[0] != 0:
        raise UnsupportedError(f"'{c.name}'{where_of(c.node)} that moves the batch")
    return c.b.permute(c.x, [d - batch_dims for d in dims[batch_dims:]])


def _transpose(c: AtenCall) -> Value:
    names = c.names[1:]
    i, j = (c.dim(c.get(n)) for n in names) if names else (c.dim(0), c.dim(1))
    dims = list(range(len(c.shape)))
    dims[i], dims[j] = dims[j], dims[i]
    return c.b.permute(c.x, dims)


def _range(c: AtenCall) -> tuple[int, Tensor] | None:
    """The dimension and the places of a slice; None where it is the whole batch."""
    dim, start, stop, step = (c.get(name) for name in ("dim", "start", "end", "step"))
    if dim % c.rank < c.b.batch_dims and start in (0, None) and step == 1 and (stop is None or stop >= 2**62):
        return None
    dim = c.dim(dim)
    return dim, torch.arange(c.shape[dim])[slice(start, stop, step)]


def _slice(c: AtenCall) -> Value:
    places = _range(c)
    return c.x if places is None else c.b.select(c.x, *places)


def _select(c: AtenCall) -> Value:
    dim = c.dim(c.get("dim"))
    x = c.b.select(c.x, dim, torch.tensor([c.get("index") % c.shape[dim]]))
    return c.b.reshape(x, [s for d, s in enumerate(c.b.shape(x)) if d != dim])


def _index_select(c: AtenCall) -> Value:
    return c.b.select(c.x, c.dim(c.get("dim")), c.weight("index").reshape(-1))


def _written(c: AtenCall, base: Value, value: Value, dim: int, index: Tensor) -> Value:
    """``base`` with ``value`` at the places ``index`` of a feature dimension; each a node or a constant.

    Args:
        c: the call.
        base: a node or a constant, with the shape of the result.
        value: what is written, with the shape of ``base`` but ``len(index)`` entries along ``dim``.
        dim: a feature dimension.
        index: (k,) different places.
    """
    shape = tuple(c.result_shape[c.b.batch_dims :])
    size, index = shape[dim], index.cpu()
    if distinct(index).numel() != len(index):
        raise UnsupportedError(f"'{c.name}'{where_of(c.node)} that writes an entry twice")
    if not len(index):
        return base
    if len(index) == size and isinstance(value, int) and torch.equal(index, torch.arange(size)):
        return value
    kept = torch.tensor(sorted(set(range(size)) - set(listed(index))), dtype=torch.int64)
    rest = c.b.select(base, dim, kept) if isinstance(base, int) and len(kept) else base
    if isinstance(base, Tensor):
        rest = base.expand(*base.shape[: base.ndim - len(shape)], *shape).index_select(
            dim - len(shape), kept.to(base.device)
        )
    joined = c.b.concat([value, rest] if len(kept) else [value], dim) if not _constant(value, rest, kept) else None
    if joined is None:
        raise UnsupportedError(f"'{c.name}'{where_of(c.node)} that leaves nothing of the input")
    return c.b.select(joined, dim, torch.cat([index, kept]).argsort())


def _constant(value: Value, rest: Value, kept: Tensor) -> bool:
    return isinstance(value, Tensor) and (isinstance(rest, Tensor) or not len(kept))


def _select_scatter(c: AtenCall) -> Value:
    dim = c.dim(c.get("dim"), len(c.result_shape))
    index = torch.tensor([c.get("index") % int(c.result_shape[c.b.batch_dims + dim])])
    value = c.operand("src")
    if isinstance(value, int):
        shape = c.b.shape(value)
        value = c.b.reshape(value, (*shape[:dim], 1, *shape[dim:]))
    else:
        value = value.unsqueeze(dim + c.b.batch_dims)
    return _written(c, c.operand("self"), value, dim, index)


def _slice_scatter(c: AtenCall) -> Value:
    rank = len(c.result_shape)
    dim, start, stop, step = (c.get(name) for name in ("dim", "start", "end", "step"))
    value = c.operand("src")
    if dim % rank < c.b.batch_dims and start in (0, None) and step == 1 and (stop is None or stop >= 2**62):
        c.skip("self")
        return value if isinstance(value, int) else _filling(c, value)
    dim = c.dim(dim, rank)
    index = torch.arange(int(c.result_shape[c.b.batch_dims + dim]))[slice(start, stop, step)]
    return _written(c, c.operand("self"), value, dim, index)


def _filling(c: AtenCall, value: Tensor) -> Value:
    """A constant as what a value that depends on the input is overwritten with."""
    shape = [s if isinstance(s, int) else 1 for s in c.result_shape]
    return value.to(c.node.meta["val"].dtype).expand(shape)


def _copy(c: AtenCall) -> Value:
    """What is written over a value, in its shape; the value itself does not count."""
    c.skip("self", "non_blocking")
    value = c.operand("src" if c.has("src") else "value")
    return c.b.expand(value, c.result_shape[c.b.batch_dims :]) if isinstance(value, int) else _filling(c, value)


def _index_fill(c: AtenCall) -> Value:
    dim = c.dim(c.get("dim"))
    index = distinct(c.weight("index").reshape(-1) % c.shape[dim])
    shape = list(c.shape)
    shape[dim] = len(index)
    value = c.operand("value")
    if isinstance(value, int):
        raise UnsupportedError(f"'{c.name}' with a value that depends on the input{where_of(c.node)}")
    return _written(c, c.x, value.to(c.b.dtype).expand(shape), dim, index)


def _cat(c: AtenCall) -> Value:
    parts = c.operands("tensors")
    return c.b.concat(parts, c.dim(c.get("dim"), len(c.result_shape)))


def _stack(c: AtenCall) -> Value:
    parts = c.operands("tensors")
    dim = c.dim(c.get("dim"), len(c.result_shape))
    wide = [
        c.b.reshape(p, (*c.b.shape(p)[:dim], 1, *c.b.shape(p)[dim:]))
        if isinstance(p, int)
        else p.unsqueeze(dim + c.b.batch_dims)
        for p in parts
    ]
    return c.b.concat(wide, dim)


def _split(c: AtenCall) -> list[Value]:
    dim = c.dim(c.get("dim"))
    size, sizes = c.shape[dim], c.get(c.names[1])
    if c.name == "chunk":
        sizes = max(-(-size // int(sizes)), 1)
    if isinstance(sizes, int):
        sizes = [min(sizes, size - start) for start in range(0, size, sizes)]
    places = torch.arange(size).split_with_sizes(list(sizes))
    return [c.b.select(c.x, dim, index) for index in places]


def _unbind(c: AtenCall) -> list[Value]:
    dim = c.dim(c.get("dim"))
    kept = [s for d, s in enumerate(c.shape) if d != dim]
    return [c.b.reshape(c.b.select(c.x, dim, torch.tensor([i])), kept) for i in range(c.shape[dim])]


def _embedding(c: AtenCall) -> Value:
    c.skip("padding_idx", "scale_grad_by_freq", "sparse")  # of gradients alone
    return c.b.add_node("embedding", [c.at("indices")], {"weight": c.weight("weight")})


def _expand(c: AtenCall) -> Value:
    before, after, batch_dims = c.full_shape(c.first), c.result_shape, c.b.batch_dims
    c.skip(*c.names[1:])  # the shape of the result says it
    if batch_dims and (len(after) != len(before) or str(after[0]) != str(before[0])):
        raise UnsupportedError(f"'{c.name}'{where_of(c.node)} that mixes the batch with the features")
    return c.b.expand(c.x, after[batch_dims:])


def _repeat(c: AtenCall) -> Value:
    times: Sequence[int] = c.get(c.names[1])
    x, batch_dims, rank = c.x, c.b.batch_dims, c.rank
    times = [1] * (rank - len(times)) + list(times)
    if batch_dims and (len(times) > rank or times[0] != 1):
        raise UnsupportedError(f"'{c.name}' along the batch{where_of(c.node)}")
    x = c.b.reshape(x, (1,) * (len(times) - rank) + c.shape)
    return compose.tile(c.b, x, times[batch_dims:])


def _flip(c: AtenCall) -> Value:
    x = c.x
    for dim in c.dims(c.get("dims")) if c.get("dims") else []:
        x = c.b.select(x, dim, torch.arange(c.b.shape(x)[dim]).flip(0))
    return x


def _roll(c: AtenCall) -> Value:
    x, shifts, dims = c.x, c.get("shifts"), c.get("dims")
    if not dims:
        raise UnsupportedError(f"'roll' without dimensions{where_of(c.node)}; name the dimension along which to roll")
    pairs = zip(_ints(shifts), _ints(dims), strict=True)
    for shift, axis in pairs:
        dim = c.dim(axis)
        x = c.b.select(x, dim, torch.arange(c.b.shape(x)[dim]).roll(shift))
    return x


def _ints(value: Any) -> tuple[int, ...]:
    """An int[1] argument as a tuple."""
    return (value,) if isinstance(value, int) else tuple(value)


def _repeat_interleave(c: AtenCall) -> Value:
    if c.get("dim") is None:
        raise UnsupportedError(f"'repeat_interleave' without a dimension{where_of(c.node)}; name the dimension")
    dim = c.dim(c.get("dim"))
    c.skip("output_size")  # the sum of the repeats, or PyTorch refuses it
    times = c.operand("repeats")
    if isinstance(times, int):
        raise UnsupportedError("'repeat_interleave' by numbers that depend on the input")
    return c.b.select(c.x, dim, torch.arange(c.shape[dim]).repeat_interleave(times.long().cpu()))


def _index(c: AtenCall) -> Value:
    places: Sequence[Any] = c.raw("indices")
    used = [i for i, p in enumerate(places) if p is not None]
    index = c.reader.operand(places[used[0]]) if len(used) == 1 else None
    if not isinstance(index, Tensor) or index.is_floating_point():
        raise UnsupportedError(f"indexing by several lists, or by values that depend on the input{where_of(c.node)}")
    dim, shape = c.dim(used[0]), c.shape
    if index.dtype in (torch.bool, torch.uint8):  # a mask; one of several dimensions joins them
        covered = shape[dim : dim + index.ndim]
        if not index.ndim or tuple(index.shape) != covered:
            raise UnsupportedError(f"indexing by a mask of shape {tuple(index.shape)}{where_of(c.node)}")
        x = c.b.reshape(c.x, (*shape[:dim], index.numel(), *shape[dim + index.ndim :]))
        return c.b.select(x, dim, index.reshape(-1).nonzero()[:, 0])
    x = c.b.select(c.x, dim, (index % shape[dim]).reshape(-1))
    return c.b.reshape(x, [*shape[:dim], *index.shape, *shape[dim + 1 :]])


def _filled(c: AtenCall) -> Value:
    """A constant in the shape of a value."""
    c.skip(c.first, "size")  # the shape of the result says it
    like: Tensor = c.node.meta["val"]
    value = 0.0 if "zeros" in c.name else 1.0 if "ones" in c.name else c.get("fill_value")
    shape = [s if isinstance(s, int) else 1 for s in c.result_shape]
    return torch.full(shape, value, dtype=like.dtype, device=c.b.device)


def _convert(c: AtenCall) -> Value:
    c.skip("copy", "other", "non_blocking")  # the reader holds that the type stays
    return c.x


def _dropout(c: AtenCall) -> Value:
    c.skip("p", "train")  # the reader refuses one that is on
    return c.x


VIEWS = ("view", "_unsafe_view", "reshape", "flatten", "squeeze", "unsqueeze", "unflatten", "view_as")

SHAPES: dict[str, Handler] = {
    **dict.fromkeys(VIEWS, _reshape),
    **dict.fromkeys(("permute", "numpy_T"), _permute),
    **dict.fromkeys(("transpose", "swapaxes", "t"), _transpose),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), _expand),
    **dict.fromkeys(("repeat", "tile"), _repeat),
    "flip": _flip,
    "roll": _roll,
    "repeat_interleave": _repeat_interleave,
    "index": _index,
    **dict.fromkeys(("new_full", "new_zeros", "new_ones", "full_like", "zeros_like", "ones_like"), _filled),
    "stack": _stack,
    **dict.fromkeys(("split", "split_with_sizes", "chunk"), _split),
    "unbind": _unbind,
    "slice": _slice,
    "select": _select,
    "index_select": _index_select,
    "select_scatter": _select_scatter,
    "slice_scatter": _slice_scatter,
    **dict.fromkeys(("copy", "fill"), _copy),
    "index_fill": _index_fill,
    **dict.fromkeys(("cat", "concat"), _cat),
    "embedding": _embedding,
    **dict.fromkeys(("to", "_to_copy"), _convert),
    **dict.fromkeys(("contiguous", "clone", "detach", "alias", "lift_fresh_copy"), lambda c: c.x),
    **dict.fromkeys(("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"), _dropout),
    "native_dropout": lambda c: [_dropout(c)],
}
