"""What the graph makes of scaled dot-product attention, with its masks."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor

from holdfast.core.errors import UnsupportedError
from holdfast.graph import compose
from holdfast.graph.aten_call import AtenCall, where_of
from holdfast.graph.build import Value

__all__ = ["attention"]

_PATTERNS = 64  # rows of a mask that hide different keys, each of which becomes an attention of its own


def attention(c: AtenCall) -> Value:
    """``softmax(q @ k.T * scale + mask) @ v`` where a constant mask, or causality, may hide keys.

    Queries that see the same keys become one attention of these keys alone, so that nothing is added that would stand
    for minus infinity.
    """
    if c.number("dropout_p"):
        raise UnsupportedError(f"'{c.name}' with dropout_p={c.get('dropout_p')}{where_of(c.node)}: the model is random")
    if c.get("enable_gqa"):
        raise UnsupportedError(f"'{c.name}' with enable_gqa=True{where_of(c.node)}; repeat the keys and values instead")
    q, k, v = (c.operand(name) for name in ("query", "key", "value"))
    width, queries, keys = c.full_shape("query")[-1], c.full_shape("query")[-2], c.full_shape("key")[-2]
    scale = 1 / math.sqrt(width) if c.get("scale") is None else c.number("scale")
    if c.get("is_causal") and not scale > 0:
        raise UnsupportedError(
            f"'{c.name}' that is causal with scale={scale:g}{where_of(c.node)}, for which PyTorch gives no numbers; the graph "
            "serves scales above 0"
        )
    seen, added = _mask(c, int(queries), int(keys))
    if seen is None:
        return compose.attention(c.b, q, k, v, scale, added)
    return _by_pattern(c, (q, k, v), scale, seen, added)


def _mask(c: AtenCall, queries: int, keys: int) -> tuple[Tensor | None, Tensor | None]:
    """Which keys each query sees, (queries, keys), None where all are, and what is added to the scores."""
    mask = c.constant("attn_mask")
    if c.get("is_causal"):
        if mask is not None:
            raise UnsupportedError(f"'{c.name}' that is causal and has a mask{where_of(c.node)}")
        mask = torch.ones(queries, keys, dtype=torch.bool).tril()
    if mask is None:
        return None, None
    added = None if mask.dtype == torch.bool else mask.masked_fill(mask == -torch.inf, 0.0)
    seen = mask if mask.dtype == torch.bool else mask != -torch.inf
    if bool(seen.all()):
        return None, added
    flat = seen.expand(*seen.shape[:-2], queries, keys).reshape(-1, queries, keys)
    if not bool((flat == flat[:1]).all()):
        raise UnsupportedError(
            f"'{c.name}' with a mask that hides other keys in other heads{where_of(c.node)}; the graph serves one mask for all"
        )
    if not bool(flat[0].any(-1).all()):
        raise UnsupportedError(f"'{c.name}' with a mask that hides all keys of a query{where_of(c.node)}")
    return flat[0].cpu(), added


def _by_pattern(
    c: AtenCall, given: tuple[Value, Value, Value], scale: float, seen: Tensor, added: Tensor | None
) -> Value:
    """One attention for all queries that see the same keys, put back into their order."""
    patterns, which = cast("tuple[Tensor, Tensor]", cast("Any", seen).unique(dim=0, return_inverse=True))
    q, k, v = given
    if len(patterns) > _PATTERNS or not isinstance(q, int) or not isinstance(k, int) or not isinstance(v, int):
        raise UnsupportedError(
            f"'{c.name}' with a mask of {len(patterns)} different rows{where_of(c.node)}; the graph serves up to "
            f"{_PATTERNS}, of values that all depend on the input"
        )
    if added is not None:
        added = added.expand(*added.shape[:-2], *seen.shape)
    parts: list[Value] = []
    for i, pattern in enumerate(patterns):
        rows, columns = (which == i).nonzero()[:, 0], pattern.nonzero()[:, 0]
        some = None if added is None else added[..., rows.to(added.device), :][..., columns.to(added.device)]
        places = ((q, rows), (k, columns), (v, columns))
        cut = [c.b.select(x, len(c.b.shape(x)) - 2, at) for x, at in places]
        parts.append(compose.attention(c.b, cut[0], cut[1], cut[2], scale, some))
    axis = len(c.b.shape(q)) - 2
    joined = c.b.concat(parts, axis)
    order = torch.cat([(which == i).nonzero()[:, 0] for i in range(len(patterns))])
    return c.b.select(joined, axis, order.argsort())
