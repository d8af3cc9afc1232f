"""Reads a piecewise-linear network from an ONNX file, operation by operation: nothing is folded or rearranged.

Weights are the stored ones as float64. Where a weight has to be computed (a quotient, a batch norm's factor, an average
pool's 1/count) it is right to a few units of relative rounding, for which every step pays (`propagation`).
"""

from math import prod
from typing import Any

import numpy as np

from holdfast.checker.network import (
    ActivationNode,
    ConvMap,
    LinearNode,
    Matrix,
    Move,
    Network,
    PadMap,
    Scale,
)
from holdfast.checker.rounding import LIMIT, Rejected

__all__ = ["read_network"]

Array = Any
Shape = tuple[int, ...]
_OPSETS = range(7, 29)  # before 7, operands were aligned by other rules
_KNOWN = (
    "Add", "AveragePool", "BatchNormalization", "Conv", "Div", "Dropout", "Flatten", "Gemm", "GlobalAveragePool",
    "Identity", "LeakyRelu", "MatMul", "Mul", "Pad", "Relu", "Reshape", "Sub", "Transpose",
)  # fmt: skip


def read_network(content: bytes) -> Network:
    """The network in an ONNX file.

    Raises:
        Rejected: it cannot be read, or an operation in it cannot be checked.
    """
    import onnx
    from onnx import numpy_helper

    model = _model(content)
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in constants]
    if len(inputs) != 1 or len(model.graph.output) != 1:
        raise Rejected("a network with other than one input and one output cannot be checked")
    if inputs[0].type.tensor_type.elem_type not in (1, 10, 11):
        raise Rejected("a network whose inputs are no floats cannot be checked")
    shape = tuple(int(d.dim_value) for d in inputs[0].type.tensor_type.shape.dim)
    if len(shape) < 2 or 0 in shape[1:]:
        raise Rejected(f"an input of shape {shape} cannot be checked")
    reader = _NetworkReader(shape, constants, inputs[0].name)
    for node in model.graph.node:
        reader.read(node, {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}, numpy_helper.to_array)
    return reader.finish(model.graph.output[0].name)


def _model(content: bytes) -> Any:
    """The ONNX model: one file, of a version that is known, without functions of its own."""
    import onnx

    model: Any = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except Exception as error:  # protobuf's own
        raise Rejected(f"the network is no readable ONNX file: {error}") from None
    if any(t.data_location for t in model.graph.initializer):
        raise Rejected(
            "weights in other files cannot be checked; save the network in one file (onnx.save, or external_data=False of "
            "torch.onnx.export)"
        )
    versions = {o.version for o in model.opset_import if o.domain in ("", "ai.onnx")}
    if len(versions) != 1 or not versions <= set(_OPSETS):
        raise Rejected(f"a file of opset {sorted(versions)} cannot be checked; {_OPSETS[0]} to {_OPSETS[-1]} can")
    if model.functions or model.graph.sparse_initializer:
        raise Rejected("a file with functions of its own or sparse constants cannot be checked")
    return model


def _numbers(value: Array) -> Array:
    found = np.asarray(value)
    # a dtype equals its type, and not in another order of bytes, which NumPy's stubs do not know
    if found.dtype not in (np.float16, np.float32, np.float64):  # pyright: ignore[reportUnnecessaryContains]
        raise Rejected(f"constants of type {found.dtype} cannot be checked")
    found = found.astype(np.float64)
    if not ((np.abs(found) < LIMIT) & ((found == 0) | (np.abs(found) > 1 / LIMIT))).all():
        raise Rejected("a constant of the network is not a number or too large or small")
    return found


class _Asked(dict[str, Any]):
    """Attributes of an operation that remember which of them were looked at."""

    # Marked by comments, not by a decorator: the checker asks for numpy and onnx alone.
    def __init__(self, held: dict[str, Any]) -> None:
        super().__init__(held)
        self.read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:  # pyright: ignore[reportImplicitOverride]
        self.read.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:  # pyright: ignore[reportImplicitOverride]
        self.read.add(key)
        return super().__getitem__(key)


class _NetworkReader:
    """Values by name: a node's position, or a constant."""

    def __init__(self, shape: Shape, constants: dict[str, Array], name: str) -> None:
        self.batch = shape[0]
        self.network = Network(shape[1:], [None])
        self.values: dict[str, int | Array] = {**constants, name: 0}

    def finish(self, name: str) -> Network:
        """The network without the nodes that the output does not need."""
        last = self.values.get(name)
        if not isinstance(last, int):
            raise Rejected("the output does not depend on the input")
        needed = {0, last}
        for i in range(last, 0, -1):
            if i in needed:
                needed.update(self.network.nodes[i].inputs)  # pyright: ignore[reportOptionalMemberAccess]
        place = {old: new for new, old in enumerate(sorted(needed))}
        nodes = [self.network.nodes[i] for i in sorted(needed)]
        for node in nodes[1:]:
            node.inputs = tuple(place[i] for i in node.inputs)  # pyright: ignore[reportOptionalMemberAccess]
        return Network(self.network.shape, nodes)

    def read(self, proto: Any, attributes: dict[str, Any], to_array: Any) -> None:
        """Adds one operation."""
        if proto.output[0] in self.values:
            raise Rejected(f"two values are named '{proto.output[0]}'")
        if proto.op_type == "Constant" and "value" in attributes and not attributes["value"].data_location:
            self.values[proto.output[0]] = to_array(attributes["value"])
            return
        if proto.op_type not in _KNOWN or proto.domain not in ("", "ai.onnx"):
            raise Rejected(f"'{proto.op_type}' cannot be checked")
        self.op, self.at = proto.op_type, _Asked(attributes)
        self.given = [self.values[name] if name else None for name in proto.input]
        self.used: set[int] = set()
        self.values[proto.output[0]] = getattr(self, f"_{proto.op_type.lower()}")()
        # what was not looked at would be another function
        left = [name for name in attributes if name not in self.at.read]
        left += [f"input {i}" for i, value in enumerate(self.given) if value is not None and i not in self.used]
        left += [f"output '{name}'" for name in proto.output[1:] if name]
        if left:
            raise self.refuse(f"with {left[0]}")

    def refuse(self, what: str) -> Rejected:
        return Rejected(f"'{self.op}' {what} cannot be checked")

    def input(self, i: int) -> int | Array | None:
        """Input i, or None if it is left out."""
        self.used.add(i)
        return self.given[i] if i < len(self.given) else None

    def x(self, i: int = 0) -> int:
        """Input i, a node."""
        value = self.input(i)
        if not isinstance(value, int):
            raise self.refuse(f"whose input {i} is a constant")
        return value

    def constant(self, i: int) -> Array | None:
        """Input i, a constant or absent."""
        value = self.input(i)
        if isinstance(value, int):
            raise self.refuse(f"whose input {i} depends on the network's")
        return value

    def weight(self, i: int) -> Array:
        """Input i, a constant that must be there."""
        value = self.constant(i)
        if value is None:
            raise self.refuse(f"without input {i}")
        return _numbers(value)

    @property
    def shape(self) -> Shape:
        return self.network.shape_of(self.x())

    def add(self, node: Any) -> int:
        self.network.nodes.append(node)
        return len(self.network.nodes) - 1

    def move(self, after: Shape, order: Shape | None = None) -> int:
        if prod(after) != prod(self.shape):
            raise self.refuse(f"of {self.shape} to {after}")
        return self.add(LinearNode(inputs=(self.x(),), shape=after, maps=(Move(self.shape, after, order),)))

    def entrywise(self, x: int, scale: Array | None, bias: Array | None) -> int:
        shape = self.network.shape_of(x)

        def fitting(value: Array) -> Array:
            value = value[0] if value.ndim == len(shape) + 1 and len(value) == 1 else value
            if value.ndim > len(shape) or np.broadcast_shapes(value.shape, shape) != shape:
                raise self.refuse(f"of shapes {shape} and {value.shape}")
            return value

        scale = np.ones(()) if scale is None else fitting(scale)
        return self.add(
            LinearNode(
                inputs=(x,), shape=shape, maps=(Scale(_numbers(scale)),), bias=None if bias is None else fitting(bias)
            )
        )

    # the operations, by name

    def _identity(self) -> int | Array:
        return self.input(0)

    def _dropout(self) -> int:
        mode = self.constant(2)
        if mode is not None and bool(mode):
            raise self.refuse("in training")
        _ = self.constant(1), self.at.get("ratio"), self.at.get("seed")  # of training
        return self.x()

    def _relu(self) -> int:
        return self.add(ActivationNode((self.x(),), self.shape))

    def _leakyrelu(self) -> int:
        slope = float(self.at.get("alpha", np.float32(0.01)))
        if not 0 <= slope <= 1:
            raise self.refuse(f"of slope {slope}")
        return self.add(ActivationNode((self.x(),), self.shape, slope))

    def _gemm(self) -> int:
        weight, bias = self.weight(1), self.constant(2)
        if self.at.get("transA", 0) or len(self.shape) != 1 or weight.ndim != 2:
            raise self.refuse("of these shapes")
        weight = (weight.T if self.at.get("transB", 0) else weight) * self.at.get("alpha", 1.0)
        bias = None if bias is None else _numbers(bias) * self.at.get("beta", 1.0)
        return self._matrix(weight, bias)

    def _matmul(self) -> int:
        return self._matrix(self.weight(1), None)

    def _matrix(self, weight: Array, bias: Array | None) -> int:
        if weight.ndim != 2 or weight.shape[0] != self.shape[-1]:
            raise self.refuse(f"of shapes {self.shape} and {weight.shape}")
        after = (*self.shape[:-1], weight.shape[1])
        if bias is not None:
            bias = np.broadcast_to(bias[0] if bias.ndim == 2 and len(bias) == 1 else bias, after)
        return self.add(LinearNode(inputs=(self.x(),), shape=after, maps=(Matrix(_numbers(weight)),), bias=bias))

    def _add(self, sign: float = 1.0) -> int:
        x, y = self.input(0), self.input(1)
        if isinstance(x, int) and isinstance(y, int):
            if self.network.shape_of(x) != self.network.shape_of(y):
                raise self.refuse("of two shapes")
            return self.add(
                LinearNode(inputs=(x, y), shape=self.shape, maps=(Scale(np.ones(())), Scale(np.full((), sign))))
            )
        if isinstance(x, int):
            return self.entrywise(x, None, sign * self.weight(1))
        return self.entrywise(self.x(1), np.full((), sign), self.weight(0))

    def _sub(self) -> int:
        return self._add(-1.0)

    def _mul(self) -> int:
        x = 0 if isinstance(self.given[0], int) else 1
        return self.entrywise(self.x(x), self.weight(1 - x), None)

    def _div(self) -> int:
        divisor = self.weight(1)
        if not (np.abs(divisor) > 1 / LIMIT).all():
            raise self.refuse("by zero")
        return self.entrywise(self.x(), 1 / divisor, None)

    def _batchnormalization(self) -> int:
        scale, bias, mean, variance = (self.weight(i).reshape(-1, *(1,) * (len(self.shape) - 1)) for i in range(1, 5))
        spread = variance + float(self.at.get("epsilon", np.float32(1e-5)))
        self.at.get("momentum")  # of running statistics, which inference leaves alone
        if (
            self.at.get("training_mode", 0)
            or self.at.get("spatial", 1) != 1
            or not (variance >= 0).all()
            or not (spread > 1 / LIMIT).all()
        ):
            raise self.refuse("of this kind")
        centred = self.entrywise(self.x(), None, -mean)
        return self.entrywise(centred, scale / np.sqrt(spread), bias)

    def _flatten(self) -> int:
        if self.at.get("axis", 1) != 1:
            raise self.refuse("at another axis than 1")
        return self.move((prod(self.shape),))

    def _reshape(self) -> int:
        target = self.constant(1)
        target = [int(n) for n in (self.at.get("shape", []) if target is None else target)]
        if len(target) < 2 or target[0] not in (0, -1, 1, self.batch) or self.at.get("allowzero", 0):
            raise self.refuse(f"to {target}")
        after = [self.shape[i] if n == 0 else n for i, n in enumerate(target[1:])]
        known = prod(n for n in after if n != -1)
        return self.move(tuple(prod(self.shape) // max(known, 1) if n == -1 else n for n in after))

    def _transpose(self) -> int:
        order: Shape = tuple(self.at.get("perm", range(len(self.shape), -1, -1)))
        if order[0] != 0:
            raise self.refuse("of the batch")
        order = tuple(d - 1 for d in order[1:])
        return self.move(tuple(self.shape[d] for d in order), order)

    def _pad(self) -> int:
        sides, value = self.constant(1), self.constant(2)
        sides = [int(n) for n in (self.at.get("pads", []) if sides is None else sides)]
        filled = self.at.get("value", 0.0) if value is None else float(value)
        pairs = list(zip(sides[: len(sides) // 2], sides[len(sides) // 2 :], strict=True))
        whole = len(pairs) == len(self.shape) + 1 and len(self.given) < 4
        if filled or self.at.get("mode", b"constant") != b"constant" or not whole or pairs[0] != (0, 0):
            raise self.refuse("of this kind")
        return self._padded(self.x(), tuple(pairs[1:]))

    def _padded(self, x: int, sides: tuple[tuple[int, int], ...]) -> int:
        if min(min(pair) for pair in sides) < 0:
            raise self.refuse("with a negative side")
        shape = tuple(n + before + after for n, (before, after) in zip(self.network.shape_of(x), sides, strict=True))
        return self.add(LinearNode(inputs=(x,), shape=shape, maps=(PadMap(sides),))) if any(map(any, sides)) else x

    def _convolve(self, weight: Array, bias: Array | None, groups: int) -> int:
        """weight: (out, in / groups, *kernel)."""
        k = weight.ndim - 2
        if self.at.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID") or k != len(self.shape) - 1:
            raise self.refuse("with auto_pad or of another rank")
        pads = tuple(self.at.get("pads", [0] * 2 * k)) if self.at.get("auto_pad") != b"VALID" else (0,) * 2 * k
        x = self._padded(self.x(), ((0, 0), *zip(pads[:k], pads[k:], strict=True)))
        before = self.network.shape_of(x)
        if tuple(self.at.get("kernel_shape", weight.shape[2:])) != tuple(weight.shape[2:]):
            raise self.refuse("with a kernel_shape that is not its weight's")
        if weight.shape[1] * groups != before[0] or len(weight) % groups:
            raise self.refuse(f"of shapes {before} and {weight.shape}")
        conv = ConvMap(
            weight=_numbers(weight).reshape(groups, -1, *weight.shape[1:]),
            stride=tuple(self.at.get("strides", [1] * k)),
            dilation=tuple(self.at.get("dilations", [1] * k)),
            before=before[1:],
        )
        if min(conv.after) < 1:
            raise self.refuse("without output")
        bias = None if bias is None else _numbers(bias).reshape(len(weight), *(1,) * k)
        return self.add(LinearNode(inputs=(x,), shape=(len(weight), *conv.after), maps=(conv,), bias=bias))

    def _conv(self) -> int:
        return self._convolve(self.weight(1), self.constant(2), self.at.get("group", 1))

    def _averagepool(self) -> int:
        kernel, padded = tuple(self.at["kernel_shape"]), any(self.at.get("pads", []))
        if self.at.get("ceil_mode", 0) or (padded and not self.at.get("count_include_pad", 0)):
            raise self.refuse("with ceil_mode or padding that does not count")
        channels = self.shape[0]
        return self._convolve(np.full((channels, 1, *kernel), 1 / prod(kernel)), None, channels)

    def _globalaveragepool(self) -> int:
        channels, *sizes = self.shape
        return self._convolve(np.full((channels, 1, *sizes), 1 / prod(sizes)), None, channels)
