"""Every operation that the ONNX reader serves, over the attribute space that the onnx package's schemas give.

A setting is a tiny model of one operation. Arrangements say which inputs it has (the model's own, or constants of
various shapes), `_ATTRIBUTES` which values an attribute takes beside being left out; the rest is read off the schemas:
versions, attributes, element types, optional inputs.
"""

# ruff: noqa: E501, RUF024  (tables of cases)
from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CAP = 40  # settings of one version of an operation, drawn from all combinations where there are more
FIRST, LAST = 5, 28
KINDS = {
    "tensor(float)": (TensorProto.FLOAT, np.float32), "tensor(double)": (TensorProto.DOUBLE, np.float64),
    "tensor(float16)": (TensorProto.FLOAT16, np.float16), "tensor(int32)": (TensorProto.INT32, np.int32),
    "tensor(int64)": (TensorProto.INT64, np.int64), "tensor(uint8)": (TensorProto.UINT8, np.uint8),
    "tensor(int8)": (TensorProto.INT8, np.int8), "tensor(bool)": (TensorProto.BOOL, np.bool_),
}  # fmt: skip
NP = dict(KINDS.values())


@dataclass
class Setting:
    """One operation with everything that it is given.

    Attributes:
        op: the operation.
        opset: of the file.
        shape: of the model's input.
        kind: its element type.
        inputs: names; "x" is the model's input.
        constants: by name.
        attributes: of the operation.
        outputs: how many are asked for.
    """

    op: str
    opset: int
    shape: tuple[int, ...]
    kind: int
    inputs: list[str]
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1

    def __str__(self) -> str:
        held = ", ".join(f"{k}={v.dtype}{list(v.shape)}{v.reshape(-1)[:4].tolist()}" for k, v in self.constants.items())
        return (
            f"{self.op}-{self.opset} of {TensorProto.DataType.Name(self.kind)}{list(self.shape)} inputs {self.inputs} "
            f"[{held}] {self.attributes} {self.outputs} outputs"
        )

    def model(self) -> onnx.ModelProto:
        """The file."""
        names = [f"y{i}" for i in range(self.outputs)]
        node = helper.make_node(self.op, self.inputs, names, **self.attributes)
        graph = helper.make_graph(
            [node], "g", [helper.make_tensor_value_info("x", self.kind, self.shape)],
            [helper.make_empty_tensor_value_info(names[0])],
            [numpy_helper.from_array(v, k) for k, v in self.constants.items()],
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])
        model.ir_version = 8 if self.opset < 21 else 10
        return model


_RNG = np.random.default_rng(0)


def _w(*shape: int) -> np.ndarray:
    return _RNG.normal(size=shape).astype(np.float32)


def _i(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


_BOTH = [0, 1]
_ATTRIBUTES: dict[str, list[Any]] = {
    "alpha": [0.3, 0.0, -1.5, 7.0], "beta": [0.7, 0.0, -2.0], "gamma": [2.0, -1.0], "epsilon": [1e-3, 0.1],
    "axis": [0, 1, -1, 2, 7], "axes": [[1], [-1], [1, 2], [0], [1, 1], [7], [-1, 1]], "keepdims": _BOTH,
    "noop_with_empty_axes": _BOTH, "exclusive": _BOTH, "reverse": _BOTH,
    "auto_pad": ["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"], "pads": [[1, 1, 1, 1], [0, 1, 1, 0], [2, 2, 2, 2], [1, 0]],
    "strides": [[2, 2], [1, 3]], "dilations": [[2, 2], [1, 2]], "kernel_shape": [[2, 2], [3, 3], [3, 2]], "group": [2],
    "ceil_mode": _BOTH, "count_include_pad": _BOTH, "storage_order": _BOTH, "output_padding": [[1, 1], [0, 1]],
    "output_shape": [[9, 9]], "stash_type": [1, 0, 11], "training_mode": _BOTH, "momentum": [0.5], "spatial": _BOTH,
    "transA": _BOTH, "transB": _BOTH, "perm": [[0, 2, 1, 3], [0, 3, 1, 2], [1, 0, 2, 3], [3, 2, 1, 0], [0, 1]],
    "allowzero": _BOTH, "blocksize": [2, 1], "num_groups": [1, 2, 4], "num_outputs": [2, 3], "split": [[2, 2], [1, 3], [4]],
    "to": [1, 10, 11, 6, 7, 2, 9], "saturate": _BOTH, "round_mode": ["up", "nearest"], "approximate": ["none", "tanh"],
    "value": [0.5, -3.0], "ratio": [0.9], "seed": [3], "consumed_inputs": [[0]], "broadcast": _BOTH, "is_test": _BOTH,
    "mode": ["nearest", "linear", "cubic", "constant", "edge", "reflect", "wrap", "DCR", "CRD"],
    "coordinate_transformation_mode": [
        "half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric", "tf_crop_and_resize",
        "tf_half_pixel_for_nn",
    ],
    "nearest_mode": ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"], "antialias": _BOTH,
    "exclude_outside": _BOTH, "cubic_coeff_a": [-0.5], "extrapolation_value": [1.0],
    "keep_aspect_ratio_policy": ["stretch", "not_larger"], "scales": [[1.0, 1.0, 2.0, 1.5]], "min": [-0.4, 1.0],
    "max": [0.3, -1.0, 3.4028234663852886e38], "starts": [[1, 0], [-2, 1]], "ends": [[3, 2], [99, -1]], "shape": [[1, -1]],
    "height_scale": [2.0], "width_scale": [2.0], "paddings": [[0, 0, 1, 1, 0, 0, 1, 1]],
}  # fmt: skip

Arrangement = tuple[tuple[int, ...], list[str], dict[str, np.ndarray]]
_UNARY: list[Arrangement] = [((1, 6), ["x"], {}), ((1, 2, 4, 4), ["x"], {}), ((2, 3), ["x"], {}), ((4,), ["x"], {})]
_IMAGE: list[Arrangement] = [((1, 4, 6, 6), ["x"], {})]
_BINARY: list[Arrangement] = [
    ((1, 2, 3), ["x", "c"], {"c": c})
    for c in (np.array(0.7, np.float32), _w(1), _w(3), _w(2, 1), _w(1, 2, 3), _w(4, 2, 3), _w(5, 1, 2, 3), _w(2, 2, 3))
] + [
    ((1, 2, 3), ["c", "x"], {"c": np.abs(_w(3)) + 0.5}), ((1, 2, 3), ["x", "x"], {}), ((2, 3), ["x", "c"], {"c": _w(2, 3)}),
    ((1, 3), ["x", "c"], {"c": np.array([0.0, 1.0, -2.0], np.float32)}), ((1, 3), ["c", "x"], {"c": _w(2, 3)}),
]  # fmt: skip
_FAR: list[Arrangement] = [
    ((1, 3), ["x", "c"], {"c": np.array([v], np.float32)})
    for v in (-1e9, 1e20, -3.4028235e38, np.inf, -np.inf, 0.0, 255.0, np.nan)
]
_INDEX = [_i(0), np.int64(1), np.array(-1), _i(1, 0), np.array([[0, 1], [1, 1]]), _i(3), _i(-9)]
_NORM = {"s": _w(4), "b": _w(4), "m": _w(4), "v": np.abs(_w(4)) + 0.1}
_F = np.float32

ARRANGEMENTS: dict[str, list[Arrangement]] = {
    "Gemm": [
        ((1, 3), ["x", "w"], {"w": _w(3, 3)}), ((1, 3), ["x", "w", "c"], {"w": _w(3, 3), "c": _w(3)}),
        ((1, 3), ["x", "w", "c"], {"w": _w(3, 3), "c": _w(1, 3)}), ((1, 3), ["x", "w", "c"], {"w": _w(3, 3), "c": _w(1)}),
        ((2, 2), ["x", "w", "c"], {"w": _w(2, 2), "c": _w(2, 1)}), ((2, 2), ["w", "x"], {"w": _w(2, 2)}),
        ((2, 2), ["w", "w", "x"], {"w": _w(2, 2)}), ((2, 2), ["x", "x"], {}),
        ((1, 3), ["x", "w", "c"], {"w": _w(3, 3), "c": np.array(0.3, _F)}),
    ],
    "MatMul": [
        ((1, 3), ["x", "w"], {"w": _w(3, 2)}), ((1, 3), ["x", "w"], {"w": _w(3)}), ((3,), ["x", "w"], {"w": _w(3, 2)}),
        ((1, 2, 3), ["x", "w"], {"w": _w(2, 3, 4)}), ((1, 2, 3), ["x", "w"], {"w": _w(5, 1, 3, 4)}),
        ((1, 2, 3), ["w", "x"], {"w": _w(4, 2)}), ((3, 3), ["x", "x"], {}), ((1, 3, 3), ["x", "x"], {}),
        ((2, 3), ["w", "x"], {"w": _w(2)}), ((4, 2, 3), ["x", "w"], {"w": _w(4, 3, 2)}),
    ],
    "BatchNormalization": [(s, ["x", "s", "b", "m", "v"], _NORM) for s in ((1, 4), (1, 4, 3), (1, 4, 3, 3), (2, 4, 2))],
    "InstanceNormalization": [(s, ["x", "s", "b"], _NORM) for s in ((1, 4, 3), (1, 4, 3, 3), (2, 4, 3))],
    "GroupNormalization": [(s, ["x", "s", "b"], _NORM) for s in ((1, 4, 3), (1, 4, 3, 3))]
    + [((1, 4, 3), ["x", "s", "b"], {"s": _w(2), "b": _w(2)})],
    "LayerNormalization": [
        ((1, 2, 3), ["x", "s", "b"], {"s": _w(3), "b": _w(3)}), ((1, 2, 3), ["x", "s"], {"s": _w(3)}),
        ((1, 2, 3), ["x", "s", "b"], {"s": _w(2, 3), "b": _w(2, 3)}), ((1, 2, 3), ["x", "s"], {"s": _w(1)}),
        ((1, 2, 3), ["x", "s"], {"s": _w(1, 2, 3)}),
    ],
    "PRelu": [
        ((1, 2, 3), ["x", "c"], {"c": c})
        for c in (_w(1), _w(3), _w(2, 1), _w(2, 3), _w(1, 2, 3), np.array([-0.5], _F), np.array([1.7], _F), np.array(0.2, _F))
    ] + [((1, 2, 4, 4), ["x", "c"], {"c": _w(2, 1, 1)}), ((1, 2, 4, 4), ["x", "c"], {"c": _w(2)})],
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), _BINARY),
    "Pow": [*_BINARY, *(((1, 3), ["x", "c"], {"c": np.array(v, _F)}) for v in (2, 3, -1, 0.5, -2, 0, 1, 4, -3, -0.5)),
            *(((1, 3), ["x", "c"], {"c": np.array(v, np.int64)}) for v in (2, 3)),
            ((1, 1), ["x", "c"], {"c": np.full((1, 3), 2, _F)}), ((1, 3), ["x", "c"], {"c": np.array([1, 2, 3], _F)})],
    **dict.fromkeys(("Max", "Min"), [*_BINARY, *_FAR, ((1, 3), ["x"], {}), ((1, 3), ["x", "c", "d"], {"c": _w(3), "d": _w(1)})]),
    **dict.fromkeys(("Sum", "Mean"), [*_BINARY, ((1, 3), ["x"], {}), ((1, 3), ["x", "c", "x"], {"c": _w(1, 3)})]),
    "Where": [
        ((1, 2, 3), ["k", "x", "c"], {"k": k, "c": c})
        for k in (_w(3) > 0, _w(2, 1) > 0, _w(1, 2, 3) > 0, _w(4, 2, 3) > 0, np.array(True))
        for c in (np.array(0.5, _F), _w(3), np.array(-np.inf, _F), np.array(-1e9, _F))
    ] + [((1, 3), ["k", "x", "x"], {"k": _w(3) > 0}), ((1, 3), ["k", "c", "x"], {"k": _w(3) > 0, "c": _w(3)})],
    "CumSum": [((1, 2, 3), ["x", "a"], {"a": a}) for a in (np.int64(1), np.int64(-1), np.int64(0), _i(2), np.int32(2), np.int64(9))],
    "Clip": [((1, 3), ["x"], {})] + [
        ((1, 3), ["x", lo and "lo", hi and "hi"], {k: np.array(v, _F) for k, v in (("lo", lo), ("hi", hi)) if v})
        for lo in ("", -0.4, 1.5, -3.4028235e38, -np.inf, 1e-30, np.nan)
        for hi in ("", 0.3, -1.0, 3.4028235e38, np.inf, 1e20, 6.0, 1000.0)
    ],
    "Dropout": [((1, 6), ["x"], {})] + [
        ((1, 6), ["x", "r", t and "t"], {"r": np.array(r, _F)} | ({"t": np.array(t == "on")} if t else {}))
        for r in (0.0, 0.9) for t in ("", "on", "off")
    ] + [((1, 6), ["x", "", "t"], {"t": np.array(False)})],
    "Conv": [
        ((1, 4, 6, 6), ["x", "w", "b"], {"w": _w(4, 4, 3, 3), "b": _w(4)}), ((1, 4, 6, 6), ["x", "w"], {"w": _w(4, 2, 3, 2)}),
        ((2, 4, 6, 6), ["x", "w"], {"w": _w(2, 4, 2, 2)}), ((1, 4, 7), ["x", "w"], {"w": _w(2, 4, 3)}),
        ((1, 4, 3, 3, 3), ["x", "w"], {"w": _w(2, 4, 2, 2, 2)}), ((1, 4, 6, 6), ["x", "w", ""], {"w": _w(2, 4, 1, 1)}),
    ],
    "ConvTranspose": [
        ((1, 4, 4, 4), ["x", "w", "b"], {"w": _w(4, 2, 3, 3), "b": _w(2)}), ((1, 4, 4, 4), ["x", "w"], {"w": _w(4, 2, 2, 3)}),
        ((1, 4, 5), ["x", "w"], {"w": _w(4, 2, 3)}), ((2, 4, 3, 3), ["x", "w"], {"w": _w(4, 1, 2, 2)}),
    ],
    "Reshape": [((1, 4, 6), ["x", "s"], {"s": _i(*s)})
                for s in ((1, 24), (0, -1), (-1, 24), (0, 0, 2, 3), (24,), (-1,), (1, 0, 6), (4, 6), (2, 12), (1, -1, 6), (0, 6, -1))]
    + [((2, 6), ["x", "s"], {"s": _i(*s)}) for s in ((2, 2, 3), (12,), (0, 3, 2), (6, 2), (-1, 6))],
    "Squeeze": [((1, 1, 3, 1), ["x"], {})] + [((1, 1, 3, 1), ["x", "a"], {"a": _i(*a)}) for a in ((1,), (-1,), (1, 3), (0,), (2,), (1, -3))],
    "Unsqueeze": [((1, 3), ["x"], {})] + [((1, 3), ["x", "a"], {"a": _i(*a)}) for a in ((1,), (-1,), (0,), (1, 3), (3, 1), (0, 1), (1, 1))],
    "Expand": [((1, 2, 1), ["x", "s"], {"s": _i(*s)}) for s in ((1, 2, 3), (3,), (1, 1, 1), (4, 2, 3), (2, 1, 2, 3), (2, 3), (1,))],
    "Tile": [((1, 2, 3), ["x", "s"], {"s": _i(*s)}) for s in ((1, 2, 1), (1, 1, 3), (2, 1, 1), (1, 1, 1), (1, 0, 1), (2, 1))],
    "Pad": [((1, 2, 3, 3), ["x"], {})] + [
        ((1, 2, 3, 3), ["x", "p", *more], {"p": _i(*p), **c})
        for p in ((0, 0, 1, 1, 0, 0, 1, 1), (0, 0, 0, 2, 0, 0, 1, 0), (0, 0, -1, 0, 0, 0, 0, 1), (1, 0, 0, 0, 0, 0, 0, 0), (0, 1, 0, 0, 0, 0, 0, 0))
        for more, c in (([], {}), (["v"], {"v": np.array(0.5, _F)}), (["v"], {"v": np.array(np.inf, _F)}))
    ] + [((1, 2, 3, 3), ["x", "p", "", "a"], {"p": _i(1, 0, 0, 1), "a": _i(*a)}) for a in ((2, 3), (-1, 1), (0, 1), (2, 2))],
    "Concat": [((1, 2, 3), i, c) for i, c in ((["x", "x"], {}), (["x", "c"], {"c": _w(1, 2, 3)}), (["c", "x", "c"], {"c": _w(1, 2, 3)}), (["x"], {}))],
    "Split": [((1, 4, 4), ["x"], {})] + [((1, 4, 4), ["x", "s"], {"s": _i(*s)}) for s in ((2, 2), (1, 3), (4, 0), (1, 1, 2), (5, -1))],
    "Slice": [((1, 4, 4), ["x"], {})] + [
        ((1, 4, 4), ["x", *n], dict(zip(n, v, strict=True)))
        for n, v in (
            (["s", "e"], (_i(0, 1), _i(1, 3))), (["s", "e", "a"], (_i(1), _i(99), _i(2))), (["s", "e", "a"], (_i(-2), _i(-1), _i(-1))),
            (["s", "e", "a", "t"], (_i(3), _i(-99), _i(1), _i(-1))), (["s", "e", "a", "t"], (_i(0), _i(4), _i(2), _i(2))),
            (["s", "e", "a", "t"], (_i(-1), _i(0), _i(2), _i(-2))), (["s", "e", "a"], (_i(3), _i(1), _i(1))),
            (["s", "e", "a"], (_i(0), _i(1), _i(0))), (["s", "e", "a"], (_i(1, 1), _i(2, 2), _i(1, 1))),
            (["s", "e", "a", "t"], (_i(-99), _i(-2), _i(1), _i(-1))), (["s", "e", "a", "t"], (_i(-5), _i(-1), _i(2), _i(-1))),
            (["s", "e", "a"], (_i(0), _i(9223372036854775807), _i(1))), (["s", "e", "a", "t"], (_i(9), _i(-9), _i(2), _i(-1))),
        )
    ],
    "Gather": [((1, 2, 3), ["x", "i"], {"i": np.asarray(i)}) for i in _INDEX] + [((1, 2), ["w", "x"], {"w": _w(5, 3)}), ((1, 2), ["w", "x"], {"w": _w(5)})],
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), [((1, 4, 4, 4), ["x"], {}), ((2, 8, 2, 2), ["x"], {})]),
    "MaxPool": [*_IMAGE, ((1, 2, 7, 5), ["x"], {}), ((1, 2, 7), ["x"], {})],
    "AveragePool": [*_IMAGE, ((1, 2, 7, 5), ["x"], {}), ((1, 2, 7), ["x"], {})],
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), [((1, 2, 3, 4), ["x"], {}), ((2, 3, 4), ["x"], {}), ((1, 3), ["x"], {})]),
    "Resize": [((1, 2, 4, 4), ["x", "", "s"], {"s": np.array(s, _F)}) for s in ((1, 1, 2, 2), (1, 1, 1.5, 0.7), (1, 1, 0.3, 3), (1, 2, 1, 1), (2, 1, 1, 1))]
    + [((1, 2, 4, 4), ["x", "", "", "z"], {"z": _i(*z)}) for z in ((1, 2, 8, 8), (1, 2, 3, 7), (1, 2, 1, 1))]
    + [((1, 2, 4, 4), ["x", "s"], {"s": np.array((1, 1, 2, 1.5), _F)}), ((1, 2, 4, 4), ["x", "r", "s"], {"r": np.array([0, 0, 0.1, 0.2, 1, 1, 0.9, 0.8], _F), "s": np.array((1, 1, 2, 2), _F)})],
    "Upsample": [((1, 2, 4, 4), ["x", "s"], {"s": np.array(s, _F)}) for s in ((1, 1, 2, 2), (1, 1, 1.5, 2), (1, 1, 1, 1))] + [((1, 2, 4, 4), ["x"], {})],
    "Transpose": [((1, 2, 3, 4), ["x"], {}), ((2, 3), ["x"], {})],
    "Flatten": [((1, 2, 3, 4), ["x"], {}), ((2, 3), ["x"], {}), ((4,), ["x"], {})],
    **dict.fromkeys(("Softmax", "LogSoftmax"), [((1, 2, 3), ["x"], {}), ((1, 6), ["x"], {}), ((2, 3), ["x"], {})]),
    **dict.fromkeys(
        ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp"),
        [((1, 2, 3, 4), ["x"], {}), ((2, 3), ["x"], {})]
        + [((1, 2, 3, 4), ["x", "a"], {"a": _i(*a)}) for a in ((1,), (-1,), (1, 2), (0,), (1, 1), (), (2, -1), (9,))],
    ),
}  # fmt: skip
_OUTPUTS = {
    "BatchNormalization": [1, 3, 5],
    "LayerNormalization": [1, 3],
    "Dropout": [1, 2],
    "MaxPool": [1, 2],
    "Split": [2, 3],
}


_ALWAYS_FLOAT = ("Resize", "Upsample", "Dropout")  # their constants are no values of the input's type


def _combinations(schema: Any, draw: random.Random) -> list[dict[str, Any]]:
    """Values of a schema's attributes: each alone against the defaults, then combinations up to `CAP`."""
    spaces = {name: [None, *_ATTRIBUTES.get(name, [])] for name in sorted(schema.attributes)}
    spaces = {
        n: [v for v in values if v is not None] if schema.attributes[n].required else values
        for n, values in spaces.items()
    }
    names, total = list(spaces), 1
    for values in spaces.values():
        total *= max(len(values), 1)
    if total <= CAP:
        chosen = list(itertools.product(*spaces.values()))
    else:
        base = [values[0] for values in spaces.values()]
        chosen = [tuple(base)]
        for i, name in enumerate(names):
            chosen += [(*base[:i], v, *base[i + 1 :]) for v in spaces[name][1:]]
        while len(chosen) < 2 * CAP:
            chosen.append(tuple(draw.choice(values) for values in spaces.values()))
    return [{n: v for n, v in zip(names, values, strict=True) if v is not None} for values in chosen]


def settings(served: list[str]) -> Iterator[Setting]:
    """All settings, in a fixed order."""
    history: dict[str, list[Any]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "" and schema.since_version <= LAST:
            history.setdefault(schema.name, []).append(schema)
    for op in sorted(served):
        versions = sorted(history[op], key=lambda s: s.since_version)
        for schema, after in itertools.zip_longest(versions, versions[1:]):
            opset = max(schema.since_version, FIRST)
            if after is not None and after.since_version <= opset:
                continue
            opset = max(opset, min(7, (after.since_version - 1) if after else 7))
            yield from _of_version(op, opset, schema)


def _of_version(op: str, opset: int, schema: Any) -> Iterator[Setting]:
    draw = random.Random(f"{op}{opset}")
    arrangements = [
        a for a in ARRANGEMENTS.get(op, _UNARY) if len(a[1]) <= schema.max_input and len(a[1]) >= schema.min_input
    ]
    combinations = _combinations(schema, draw)
    pairs = list(itertools.product(arrangements, combinations))
    if len(pairs) > 4 * CAP:  # every arrangement and every combination, and a draw of both
        first = [(a, combinations[0]) for a in arrangements] + [(draw.choice(arrangements), c) for c in combinations]
        pairs = (first + draw.sample(pairs, 4 * CAP))[: max(4 * CAP, len(arrangements))]
    kinds = [
        KINDS[k]
        for t in schema.type_constraints
        for k in t.allowed_type_strs
        if k in KINDS and t.type_param_str in ("T", "T1", "V")
    ]
    kinds = [(TensorProto.FLOAT, np.float32)] + [k for k in dict.fromkeys(kinds) if k[0] != TensorProto.FLOAT]
    for n, ((shape, inputs, constants), attributes) in enumerate(pairs):
        # every type on a few of them, floats on all
        for kind, dtype in kinds if n < 2 else [kinds[0], draw.choice(kinds)][: 1 + n % 2]:
            outputs = draw.choice(_OUTPUTS.get(op, [1])) if n % 3 == 2 else _OUTPUTS.get(op, [1])[0]
            with np.errstate(invalid="ignore", over="ignore"):
                held = {
                    k: v if v.dtype != np.float32 or op in _ALWAYS_FLOAT else v.astype(dtype)
                    for k, v in constants.items()
                }
            yield Setting(op, opset, shape, kind, list(inputs), held, dict(attributes), min(outputs, schema.max_output))
