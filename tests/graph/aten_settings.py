"""Settings of ATen calls, from their schemas: every argument in turn at representative and extreme values, and mixtures.

A setting is a call of one overload whose tensors are the module's input (in some shape), something computed from it, or
constants; its plain arguments come from the type of the argument in the schema.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["SIZE", "Setting", "settings"]

SIZE = 24
"""Features of the module's input (n, SIZE)."""


@dataclass(frozen=True)
class Input:
    """The module's input in a shape, turned by a function."""

    shape: tuple[int, ...]
    turned: Callable[[Tensor], Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        size = math.prod(self.shape)
        x = x[:, :size].reshape(x.shape[0], *self.shape) * 1.0
        return x if self.turned is None else self.turned(x)


@dataclass(frozen=True)
class Setting:
    """One call: an operation with an overload and its arguments by name."""

    name: str
    overload: str
    arguments: dict[str, Any]

    def __call__(self, x: Tensor) -> Any:
        """What the call gives for inputs (n, SIZE), its constants in their type."""
        target = getattr(getattr(torch.ops.aten, self.name), self.overload)
        given = {k: _resolved(v, x) for k, v in self.arguments.items()}
        order = [a.name for a in target._schema.arguments if not a.kwarg_only]
        positional = [given.pop(name) for name in itertools.takewhile(lambda name: name in self.arguments, order)]
        return target(*positional, **given)

    def __str__(self) -> str:
        told = {k: f"tensor{tuple(v.shape)}" if isinstance(v, Tensor) else v for k, v in self.arguments.items()}
        return f"{self.name}.{self.overload}({', '.join(f'{k}={v}' for k, v in told.items())})"


def _resolved(value: Any, x: Tensor) -> Any:
    if isinstance(value, Input):
        return value(x)
    if isinstance(value, list):
        return [_resolved(v, x) for v in value]
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.to(x.dtype)
    return value


def _constant(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + 7 * len(shape)))


X = Input


def _flipped(x: Tensor) -> Tensor:
    return x.flip(-1)


_PAIRS = [
    ({"self": X((2, 3))}, "other"),
    ({"self": X((4,))}, "other"),
    ({"self": _constant(1, 2, 3)}, "other"),
]
_OTHERS: list[Any] = [
    X((2, 3), _flipped),
    X((4,), _flipped),
    _constant(3),
    _constant(1, 2, 3),
    _constant(4),
    _constant(1),
    torch.tensor(0.7),
    torch.tensor([2, 3, -1]),
    torch.tensor(2),
    X((1, 3)),
    torch.zeros(1, 2, 3),
]
_SHAPES = [(4,), (2, 3), (2, 3, 2), (6, 2, 2)]
_MASK = torch.tensor([True, False, True])


def _bases(name: str, overload: str, arguments: list[str]) -> list[dict[str, Any]]:
    """Arguments with which an operation works, from which each is then varied."""
    first = arguments[0]
    k = next((int(d) for d in "123" if f"{d}d" in name), 2)
    space = {1: (8,), 2: (4, 3), 3: (3, 2, 2)}[k]
    if name in ("add", "sub", "mul", "div", "rsub", "maximum", "minimum", "fmax", "fmin") or "other" in arguments:
        if overload in ("Scalar", "Scalar_mode"):
            return [{"self": X((2, 3)), "other": 2.5}]
        if name not in ("view_as", "expand_as", "where", "to", "matmul"):
            return [{**base, "other": other} for base, _ in _PAIRS for other in _OTHERS]
    if name == "matmul":
        right = [_constant(3), _constant(3, 4), _constant(2, 3, 4), _constant(1, 2, 3, 4), X((3, 2)), X((2, 3, 2))]
        left = [X((2, 3)), X((3,)), X((2, 2, 3)), _constant(4, 2), _constant(2), _constant(1, 4, 2)]
        return [{"self": a, "other": b} for a in left for b in right] + [{"self": a, "other": X((2, 3))} for a in left]
    table: dict[str, list[dict[str, Any]]] = {
        "linear": [
            {"input": X(s), "weight": _constant(5, s[-1]), "bias": b} for s in _SHAPES for b in (None, _constant(5))
        ]
        + [{"input": X((4,)), "weight": _constant(4)}],
        "mm": [{"self": X((4,)), "mat2": _constant(4, 3)}, {"self": _constant(3, 3), "mat2": X((4,))}],
        "bmm": [
            {"self": X((2, 3)), "mat2": X((3, 2))},
            {"self": X((2, 3)), "mat2": _constant(1, 3, 2).expand(3, 3, 2)},
        ],
        "mv": [{"self": X((4,)), "vec": _constant(4)}],
        "dot": [{"self": _constant(4), "tensor": _constant(4)}],
        "addmm": [
            {"self": s, "mat1": X((4,)), "mat2": _constant(4, 3), "beta": b, "alpha": a}
            for s in (_constant(3), _constant(1, 3), torch.tensor(0.5), X((3,)))
            for a, b in ((1, 1), (0.5, 2), (0, 1))
        ],
        "where": [
            {"condition": c, "self": a, "other": b}
            for c in (_MASK, ~_MASK, _MASK.view(1, 1, 3), torch.tensor([2, 0, 1], dtype=torch.uint8))
            for a, b in ((X((2, 3)), X((2, 3), _flipped)), (X((2, 3)), _constant(3)), (torch.tensor(2.0), X((2, 3))))
        ]
        if overload == "self"
        else [
            {
                "condition": _MASK,
                "self": X((2, 3)) if overload != "ScalarSelf" else 2.0,
                "other": X((2, 3)) if overload == "ScalarSelf" else -1.5,
            }
        ],
        "masked_fill": [
            {"self": X((2, 3)), "mask": m, "value": -1.5 if overload == "Scalar" else torch.tensor(-1.5)}
            for m in (_MASK, ~_MASK, torch.ones(1, 2, 3, dtype=torch.bool))
        ],
        "prelu": [
            {"self": X(s), "weight": w} for s in _SHAPES for w in (_constant(1), _constant(s[0]), torch.tensor([-2.0]))
        ],
        "pow": [{"self": X((2, 3)), "exponent": e} for e in (2, 3, 0, 1, -1, -2, 0.5, -0.5, 1.5, 4.0, -3.0, True)]
        if overload == "Tensor_Scalar"
        else [{"self": b, "exponent": X((2, 3))} for b in (2.0, 0.5, 1.0, 0.0, -2.0)]
        if overload == "Scalar"
        else [
            {"self": a, "exponent": e}
            for a in (X((2, 3)), _constant(1, 3).abs(), _constant(1, 3))
            for e in (
                torch.tensor(2.0),
                torch.tensor([2.0, 2.0, 2.0]),
                torch.tensor([2.0, 3.0, 2.0]),
                torch.tensor(3),
                X((2, 3), _flipped),
                torch.full((1, 2, 3), 0.5),
            )
        ],
        "clamp": [
            {"self": X((2, 3)), "min": a, "max": b}
            for a, b in itertools.product((None, -0.5, 1, math.inf, -math.inf), (None, 0.7, -2, math.inf))
        ]
        if overload == "default"
        else [
            {"self": X((2, 3)), "min": a, "max": b}
            for a in (None, _constant(3), torch.tensor(-1.0), X((2, 3)))
            for b in (None, _constant(3, seed=4), torch.tensor(1.0))
        ],
        "clamp_min": [
            {"self": X((2, 3)), "min": 0.3 if overload == "default" else m} for m in (_constant(3), X((2, 3), _flipped))
        ],
        "clamp_max": [
            {"self": X((2, 3)), "max": 0.3 if overload == "default" else m} for m in (_constant(3), X((2, 3), _flipped))
        ],
        "batch_norm": [
            {
                "input": X(s),
                "weight": w,
                "bias": w,
                "running_mean": _constant(s[0]),
                "running_var": _constant(s[0]).abs(),
                "training": False,
                "momentum": 0.1,
                "eps": 1e-5,
                "cudnn_enabled": False,
            }
            for s in _SHAPES
            for w in (None, _constant(s[0]))
        ],
        "instance_norm": [
            {
                "input": X(s),
                "weight": w,
                "bias": w,
                "running_mean": None,
                "running_var": None,
                "use_input_stats": True,
                "momentum": 0.1,
                "eps": 1e-5,
                "cudnn_enabled": False,
            }
            for s in _SHAPES[1:]
            for w in (None, _constant(s[0]))
        ]
        + [
            {
                "input": X((2, 3)),
                "weight": None,
                "bias": None,
                "running_mean": _constant(2),
                "running_var": _constant(2).abs(),
                "use_input_stats": u,
                "momentum": 0.1,
                "eps": 1e-5,
                "cudnn_enabled": False,
            }
            for u in (True, False)
        ],
        "layer_norm": [
            {"input": X(s), "normalized_shape": list(s[i:]), "weight": w, "bias": w}
            for s in _SHAPES
            for i in range(len(s))
            for w in (None, _constant(*s[i:]))
        ],
        "rms_norm": [
            {"input": X(s), "normalized_shape": list(s[i:]), "weight": w}
            for s in _SHAPES
            for i in range(len(s))
            for w in (None, _constant(*s[i:]))
        ],
        "group_norm": [
            {"input": X((6, 2, 2)), "num_groups": g, "weight": w, "bias": w}
            for g in (1, 2, 3, 6)
            for w in (None, _constant(6))
        ],
        "scaled_dot_product_attention": [
            {"query": X((2, 3, 4)), "key": X((2, 3, 4), _flipped), "value": v, "attn_mask": m}
            for v in (X((2, 3, 4)), X((2, 3, 2)))
            for m in (
                None,
                _constant(3, 3),
                torch.ones(3, 3, dtype=torch.bool),
                torch.ones(3, 3, dtype=torch.bool).tril(),
                _MASK.view(1, 3).expand(3, 3),
                torch.tensor([[True, False, True]] * 2 + [[False] * 3]),
                _constant(1, 2, 3, 3),
                _constant(3, 3).masked_fill(~_MASK, -math.inf),
                torch.rand(1, 2, 3, 3, generator=torch.Generator().manual_seed(1)) > 0.4,
            )
        ],
        "embedding": [{"weight": _constant(9, 3), "indices": X((2, 3))}],
        "index_select": [{"self": X((2, 3)), "dim": 2, "index": i} for i in (torch.tensor([2, 0, 0]), torch.tensor(1))],
        "index": [
            {"self": X((2, 3, 4)), "indices": i}
            for i in (
                [None, None, torch.tensor([2, 0])],
                [None, torch.tensor([-1])],
                [None, None, _MASK],
                [None, None, torch.tensor([[0, 1], [2, -2]])],
                [None, torch.tensor([0, 1]), torch.tensor([2, 1])],
                [torch.tensor([0])],
                [None, torch.rand(2, 3, generator=torch.Generator().manual_seed(0)) > 0.5],
                [None, None, torch.tensor(1)],
                [None, None, torch.tensor([1, 0, 1], dtype=torch.uint8)],
                [None, None, None, torch.tensor([3, 1])],
            )
        ],
        "index_fill": [
            {
                "self": X((2, 3)),
                "dim": 2,
                "index": torch.tensor([0, -1]),
                "value": 0.5 if "Scalar" in overload else torch.tensor(0.5),
            }
        ],
        "select_scatter": [
            {"self": a, "src": b, "dim": 2, "index": 1}
            for a in (X((2, 3)), _constant(3, 2, 3))
            for b in (X((2,)), _constant(3, 2))
        ],
        "slice_scatter": [
            {"self": X((2, 4)), "src": X((2, 2)), "dim": 2, "start": 1, "end": 3},
            {"self": X((4,)), "src": X((4,), _flipped)},
            {"self": X((2, 4)), "src": _constant(3, 2, 2), "dim": 2, "end": 4, "step": 2},
        ],
        "copy": [{"self": X((2, 3)), "src": s} for s in (X((2, 3), _flipped), X((1, 3)), _constant(3), X((2, 3)))],
        "fill": [{"self": X((2, 3)), "value": 2.5 if overload == "Scalar" else torch.tensor(2.5)}],
        "repeat_interleave": [
            {"self": X((2, 3)), "repeats": 2 if overload == "self_int" else torch.tensor([1, 2, 0]), "dim": d}
            for d in (2, None, -1)
        ]
        if overload != "Tensor"
        else [{"repeats": torch.tensor([1, 2])}],
        "cat": [
            {"tensors": t, "dim": d}
            for d in (1, 2, -1, 0)
            for t in (
                [X((2, 3)), X((2, 3), _flipped)],
                [X((2, 3)), _constant(3, 2, 3)],
                [_constant(3, 2, 3), X((2, 3)), _constant(3, 2, 3)],
                [X((2, 3))],
                [X((2, 3)), torch.zeros(0)],
                [X((2, 3)), torch.ones(3, 2, 3, dtype=torch.int64)],
            )
        ],
        "stack": [
            {"tensors": t, "dim": d}
            for d in (0, 1, 2, -1, 3)
            for t in ([X((2, 3)), X((2, 3), _flipped)], [X((2, 3)), _constant(3, 2, 3)])
        ],
        "view_as": [{"self": X((6, 2)), "other": X((3, 4))}],
        "expand_as": [{"self": X((1, 3)), "other": X((2, 3))}],
        "pad": [
            {"self": X((2, 3, 4)), "pad": p}
            for p in ([1, 2], [1, 0, 0, 2], [-1, 1], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 1, 1])
        ],
        "adaptive_avg_pool": [
            {"self": X((2, *space)), "output_size": o} for o in ([1] * k, list(space), [2] * k, [3] * k)
        ],
        "conv_transpose": [
            {"input": X((2, *space)), "weight": _constant(2, 2, *[2] * k), "bias": b, "stride": s}
            for b in (None, _constant(2))
            for s in ([1] * k, [2] * k)
        ],
        "conv": [
            {"input": X((2, *space)), "weight": _constant(4, 2, *[2] * k), "bias": b} for b in (None, _constant(4))
        ]
        + [{"input": X((2, *space)), "weight": _constant(4, 1, *[3 if i == 0 else 2 for i in range(k)]), "groups": 2}],
        "pixel_shuffle": [{"self": X((4, 2, 3)), "upscale_factor": 2}],
        "pixel_unshuffle": [{"self": X((1, 4, 2)), "downscale_factor": 2}],
        "channel_shuffle": [
            {"input" if "input" in arguments else "self": X((6, 2, 2)), "groups": g} for g in (1, 2, 3)
        ],
        "linalg_vector_norm": [
            {"self": X((2, 3)), "ord": o, "dim": d}
            for o in (2, 1, 0, 3, math.inf, -math.inf, 0.5)
            for d in ([2], [1, 2], None, [-1], [])
        ],
    }
    table["concat"], table["clip"], table["_native_batch_norm_legit_no_training"] = table["cat"], table["clamp"], [
        {key: v for key, v in base.items() if key not in ("training", "cudnn_enabled")} for base in table["batch_norm"]
    ]  # fmt: skip
    stem = name[:-2] if name[-2:] in ("1d", "2d", "3d") else name
    if stem == "adaptive_max_pool":
        stem = "adaptive_avg_pool"
    if stem in table:
        return table[stem]
    if "pool" in name:
        return [{"self": X((2, *space)), "kernel_size": kernel} for kernel in ([2] * k, [1] * k)]
    if "upsample" in name:
        sized = (
            {"output_size": [s * 2 for s in space]}
            if overload == "default"
            else {"output_size": None, "scale_factors": [1.5] * k}
        )
        return [
            {first: X((2, *space)), **sized, **({"align_corners": a} if "align_corners" in arguments else {})}
            for a in (True, False)
        ]
    return [{first: X(s)} for s in _SHAPES]


_FLOATS: list[Any] = [0.0, 1.0, -1.0, 0.3, -0.5, 1.7, 2, -3.0, 19.0, 25.0, 1e3, 1e-3, math.inf, -math.inf, math.nan]
_BY_NAME: dict[str, list[Any]] = {
    "dtype": [None, torch.float32, torch.float64, torch.float16, torch.int64, torch.bool],
    "memory_format": [None, torch.contiguous_format, torch.preserve_format, torch.channels_last],
    "layout": [None], "device": [None, torch.device("cpu")], "pin_memory": [None, False],
    "approximate": ["none", "tanh", "other"], "mode": ["constant", "reflect", "replicate", "circular"],
    "rounding_mode": [None, "floor", "trunc"], "generator": [None],
    "dim": [0, 1, 2, -1, -2, 3], "dim0": [0, 1, -1, 2], "dim1": [0, 1, -1, 2], "axis0": [1, -1], "axis1": [1, 2, 0],
    "start": [0, 1, -1, -2, None, 100], "end": [0, 1, 2, -1, None, 100, 2**63 - 1], "step": [1, 2, 3],
    "index": [0, 1, -1, 2], "start_dim": [0, 1, 2, -2], "end_dim": [-1, 1, 2], "split_size": [1, 2, 3, 5],
    "chunks": [1, 2, 3, 7], "repeats": [[1, 2], [2, 1], [1, 1, 2], [1, 2, 1, 2], [1, 0]], "shifts": [[1], [-2], [1, 1], 5],
    "sizes": [[2, 2]], "eps": [0.0, 1e-5, 1e-2, 1.0], "kernel_size": [[2], [3], [2, 3], [3, 2, 2], [4]],
    "stride": [[], [1], [2], [2, 1], [3]], "padding": [[0], [1], [1, 0], "same", "valid"], "dilation": [[1], [2], [3]],
    "output_padding": [[0], [1]], "groups": [1, 2, 4], "output_size": [[6, 6], [7, 5], [5], [3, 4, 2], [1, 1], None],
    "scale_factors": [[2.0, 2.0], [1.3, 2.1], [0.5, 0.7], [2.0], [1.7], None], "divisor_override": [None, 2, 4, -3],
    "correction": [None, 0, 1, 2, 0.5, 3, 7], "scale": [None, 1.0, 0.5, -2.0, 0.0], "p": [0.0, 0.5, 1.0],
    "dropout_p": [0.0, 0.3], "num_groups": [1, 2, 4], "upscale_factor": [1, 2, 3], "downscale_factor": [1, 2],
}  # fmt: skip
_SIZES: list[Any] = [
    [3, 2, 3],
    [3, 6],
    [3, -1],
    [6, 3],
    [-1],
    [3, 1, -1],
    [3, 3, 2, 1],
    [1, 3, -1],
    [3, 2, 3, 1],
    [-1, 2, 3],
]


def _values(argument: Any, base: dict[str, Any]) -> list[Any]:
    """Representative and extreme values of an argument."""
    kind, name = str(argument.type), argument.name
    if name in ("dim", "dims", "axis") and "List" in kind:
        found: list[Any] = [[1], [-1], [2], [0], [1, 2], [-1, 1], [0, 1], [1, 1]]
        return [*found, None, []] if name == "dim" else [*found, []]
    if name == "dims" and "permute" in base.get("_name", ""):
        return [[0, 2, 1], [0, 1], [0, 2, 1, 3], [0, -1, 1], [1, 0, 2], [0, 3, 1, 2]]
    if name in ("size", "shape"):
        return _SIZES
    if name in _BY_NAME:
        return _BY_NAME[name]
    if "bool" in kind:
        return [True, False]
    if "number" in kind or "float" in kind:
        return [*_FLOATS, *([None] if "Optional" in kind else [])]
    if "List[int]" in kind:
        return [[1], [2], [1, 2], [0, 2, 1], [0, 1]]
    if "int" in kind:
        return [0, 1, 2, -1, 3]
    return []


def settings(name: str, limit: int, seed: int = 0) -> Iterator[Setting]:
    """Settings of an operation and of its form in place: its bases, each argument varied in turn, and mixtures."""
    draw = random.Random(f"{seed} {name}")
    for called in (name, name + "_"):
        packet = getattr(torch.ops.aten, called, None)
        found: list[Setting] = []
        for overload in packet.overloads() if packet is not None else []:
            schema = getattr(packet, overload)._schema
            if any(a.name == "out" or (a.kwarg_only and a.is_out) for a in schema.arguments) or "out" in overload:
                continue
            if overload.startswith("prim_"):  # TorchScript's own: torch.export records none, and they run nowhere else
                continue
            found += _of_overload(called, overload, schema, name, draw, limit)
        kept = found if len(found) <= limit else [found[i] for i in sorted(draw.sample(range(len(found)), limit))]
        yield from kept if called == name else kept[: max(limit // 4, 4)]


def _of_overload(called: str, overload: str, schema: Any, name: str, draw: random.Random, limit: int) -> list[Setting]:
    arguments = [a for a in schema.arguments if a.type.kind() != "DeviceObjType"]
    bases = _bases(name, overload, [a.name for a in schema.arguments])
    found: list[Setting] = []
    for base in bases:
        base = {k: v for k, v in base.items() if any(a.name == k for a in arguments)}
        missing = [a for a in arguments if a.name not in base and not a.has_default_value()]
        for a in missing:
            values = _values(a, {"_name": name})
            base[a.name] = values[0] if values else None
        found.append(Setting(called, overload, base))
        plain = [
            a
            for a in arguments
            if not isinstance(base.get(a.name), Tensor | Input) and a.name not in ("tensors", "indices")
        ]
        for a in plain:
            found += [Setting(called, overload, {**base, a.name: v}) for v in _values(a, {"_name": name})]
        for _ in range(12 if plain else 0):
            mixed = {
                a.name: draw.choice(values)
                for a in plain
                if draw.random() < 0.6 and (values := _values(a, {"_name": name}))
            }
            found.append(Setting(called, overload, {**base, **mixed}))
    return found
