"""What the graph makes of ONNX operations that move, pick and pad entries."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from holdfast.core.errors import ModelError, UnsupportedError
from holdfast.graph import compose
from holdfast.graph.build import BatchError, Value
from holdfast.graph.onnx_call import BOOL, FLOATS, WHOLE, OnnxCall, OnnxOp
from holdfast.graph.shapes import broadcast

__all__ = ["SHAPES"]


def _reshape(c: OnnxCall) -> Value:
    target, zero = c.argument("shape", 1), c.get("allowzero", 0)
    if target is None or min(target, default=0) < -1 or list(target).count(-1) > 1:
        raise ModelError(f"'Reshape' to {target}")
    if zero and 0 in target:
        raise UnsupportedError("'Reshape' to a shape with a size of 0 (allowzero=1); served are sizes of at least 1")
    return c.reshaped([c.full[i] if s == 0 else s for i, s in enumerate(target)])


def _flatten(c: OnnxCall) -> Value:
    axis, rank = c.get("axis"), len(c.full)
    if not -rank <= axis <= rank:
        raise ModelError(f"'Flatten' at axis {axis} of a value of {rank} dimensions")
    axis = axis + rank if axis < 0 else axis
    return c.reshaped([math.prod(c.full[:axis]), math.prod(c.full[axis:])])


def _transpose(c: OnnxCall) -> Value:
    order = c.get("perm") or list(range(len(c.full)))[::-1]
    if sorted(order) != list(range(len(c.full))):
        raise ModelError(f"'Transpose' by {order} of a value of {len(c.full)} dimensions")
    if c.b.batch_dims and order[0] != 0:
        raise BatchError("'Transpose' that moves the batch; served is a model whose samples do not mix")
    return c.b.permute(c.x, [d - c.b.batch_dims for d in order[c.b.batch_dims :]])


def _squeeze(c: OnnxCall) -> Value:
    axes = c.argument("axes", 1)
    if axes is None and c.b.batch_dims:
        raise BatchError("'Squeeze' without axes: it may drop the batch; served are named axes")
    dims = [d for d, s in enumerate(c.shape) if s == 1] if axes is None else c.dims(axes)
    return c.b.reshape(c.x, [s for d, s in enumerate(c.shape) if d not in dims])


def _unsqueeze(c: OnnxCall) -> Value:
    axes = c.argument("axes", 1)
    shape = list(c.shape)
    dims = sorted(c.dim(a, len(c.full) + len(axes)) for a in axes)
    if len(set(dims)) != len(dims):
        raise ModelError(f"'Unsqueeze' names an axis twice: {axes}")
    for d in dims:
        shape.insert(d, 1)
    return c.b.reshape(c.x, shape)


def _expand(c: OnnxCall) -> Value:
    target = broadcast(c.full, c.argument("shape", 1))
    if c.b.batch_dims and (len(target) > len(c.full) or target[0] != c.batch):
        raise BatchError(f"'Expand' to {list(target)}: it mixes the batch with the features")
    return c.b.expand(c.x, target[c.b.batch_dims :])


def _tile(c: OnnxCall) -> Value:
    times = c.argument("repeats", 1)
    if len(times) != len(c.full):
        raise ModelError(f"'Tile' by {times} of a value of {len(c.full)} dimensions")
    if c.b.batch_dims and times[0] != 1:
        raise BatchError("'Tile' along the batch; served is a model whose samples do not mix")
    return compose.tile(c.b, c.x, times[c.b.batch_dims :])


def _pad(c: OnnxCall) -> Value:
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
    if c.b.batch_dims and pairs[0] != (0, 0):
        raise BatchError("'Pad' along the batch; served is a model whose samples do not mix")
    pairs = pairs[c.b.batch_dims :]
    x = c.b.pad(c.x, pairs)
    if not filled:
        return x
    inside = torch.ones(c.shape, dtype=torch.float64)
    return c.b.affine(x, shift=filled * (1.0 - F.pad(inside, [side for pair in reversed(pairs) for side in pair])))


def _concat(c: OnnxCall) -> Value:
    parts = c.all()
    rank = len(c.b.shape(next(p for p in parts if isinstance(p, int)))) + c.b.batch_dims
    axis = c.get("axis", 1)
    return c.b.concat(parts, c.dim(axis, rank))


def _split(c: OnnxCall) -> list[Value]:
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


def _slice(c: OnnxCall) -> Value:
    starts, ends, axes, steps = (c.argument(name, i) for i, name in enumerate(("starts", "ends", "axes", "steps"), 1))
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    if len({a % len(c.full) for a in axes}) != len(axes) or 0 in steps:
        raise ModelError(f"'Slice' along axes {axes} with steps {steps}")
    x = c.x
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if c.b.batch_dims and axis % len(c.full) == 0 and slice(start, end, step).indices(c.batch) == (0, c.batch, 1):
            continue
        dim = c.dim(axis)
        size = c.b.shape(x)[dim]
        if step < 0 and start < -size:
            raise UnsupportedError("'Slice' backwards from before the first entry; served are starts inside")
        x = c.b.select(x, dim, torch.tensor(range(*slice(start, end, step).indices(size)), dtype=torch.int64))
    return x


def _gather(c: OnnxCall) -> Value:
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


def _blocks(c: OnnxCall) -> Value:
    """DepthToSpace and SpaceToDepth."""
    size, x = c.get("blocksize"), c.sample()
    n, h, w = c.b.shape(x)
    if c.op == "SpaceToDepth":
        c.need("mode", "DCR")
        x = c.b.permute(c.b.reshape(x, (n, h // size, size, w // size, size)), (2, 4, 0, 1, 3))
        return c.b.restore_batch(c.b.reshape(x, (n * size**2, h // size, w // size)), c.x)
    n //= size**2
    if c.need("mode", "DCR", "CRD") == "DCR":
        x = c.b.permute(c.b.reshape(x, (size, size, n, h, w)), (2, 3, 0, 4, 1))
    else:
        x = c.b.permute(c.b.reshape(x, (n, size, size, h, w)), (0, 3, 1, 4, 2))
    return c.b.restore_batch(c.b.reshape(x, (n, h * size, w * size)), c.x)


_ANY = FLOATS | WHOLE | {BOOL}

SHAPES: dict[str, OnnxOp] = {
    "Flatten": OnnxOp(_flatten, 25, kinds=_ANY),
    "Reshape": OnnxOp(_reshape, 25, 5, _ANY),
    "Transpose": OnnxOp(_transpose, 25, kinds=_ANY),
    "Squeeze": OnnxOp(_squeeze, 25, kinds=_ANY),
    "Unsqueeze": OnnxOp(_unsqueeze, 25, kinds=_ANY),
    "Expand": OnnxOp(_expand, 13, kinds=_ANY),
    "Tile": OnnxOp(_tile, 13, 6, _ANY),
    "DepthToSpace": OnnxOp(_blocks, 28),
    "SpaceToDepth": OnnxOp(_blocks, 28),
    "Pad": OnnxOp(_pad, 25, 2),
    "Concat": OnnxOp(_concat, 13, 4, _ANY),
    "Split": OnnxOp(_split, 18, 2, _ANY),
    "Slice": OnnxOp(_slice, 13, kinds=_ANY),
    "Gather": OnnxOp(_gather, 13, kinds=_ANY),
}
