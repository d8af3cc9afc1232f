"""Reads an ONNX file into the graph. Nothing in the file is run; the `onnx` package only parses it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from holdfast.core.errors import ModelError, UnsupportedError, UsageError
from holdfast.graph.build import Builder, Value
from holdfast.graph.model import Graph

__all__ = ["read_onnx"]


def read_onnx(path: str | Path) -> Graph:
    """The graph of an ONNX classifier; its first dimension is the batch, whatever size the file gives it.

    Args:
        path: the file.

    Returns:
        The simplified graph.

    Raises:
        UsageError: the `onnx` package is absent.
        ModelError: no readable ONNX file with one input and one output of known shape, or weights outside its folder.
        UnsupportedError: an operation that the graph does not know; the message names it.
    """
    try:
        import onnx
        from onnx import external_data_helper, numpy_helper
    except ImportError:
        raise UsageError("reading ONNX files needs the onnx package: pip install holdfast[onnx]") from None
    path = Path(path)
    try:
        model: Any = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # the parser's own errors have no common type
        raise ModelError(f"{path} is no readable ONNX file: {error}") from error
    _check_external(model, path.parent, external_data_helper)
    external_data_helper.load_external_data_for_model(model, str(path.parent))

    def tensor(proto: Any) -> Tensor:
        array = numpy_helper.to_array(proto, str(path.parent))
        return torch.from_numpy(array.copy())

    constants = {proto.name: tensor(proto) for proto in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in constants]
    if len(inputs) != 1 or len(model.graph.output) != 1:
        raise ModelError(
            f"{path} has {len(inputs)} inputs and {len(model.graph.output)} outputs; one of each is needed"
        )
    kind = inputs[0].type.tensor_type
    shape = [d.dim_value if d.HasField("dim_value") else 0 for d in kind.shape.dim]
    if len(shape) < 2 or 0 in shape[1:]:
        raise ModelError(f"{path}: the input's shape {shape} has no batch dimension or is not fixed")
    dtype = tensor(onnx.helper.make_tensor("", kind.elem_type, [0], [])).dtype
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
    values: dict[str, Value] = {**constants, inputs[0].name: 0}
    reader = _Reader(Builder(shape[1:], dtype), values, shape[0], opset, tensor)
    for node in model.graph.node:
        reader.read(node)
    return reader.builder.finish(reader.values[model.graph.output[0].name])


def _check_external(model: Any, folder: Path, helper: Any) -> None:
    """Weights may only lie in files inside the model's own folder."""
    root = folder.resolve()
    for proto in model.graph.initializer:
        if helper.uses_external_data(proto):
            location = next((e.value for e in proto.external_data if e.key == "location"), "")
            if not location or not (root / location).resolve().is_relative_to(root):
                raise ModelError(f"the weights '{proto.name}' lie in '{location}', outside the model's folder")


class _Reader:
    """Translates ONNX nodes. A value is a graph node's position or a constant tensor."""

    def __init__(
        self, builder: Builder, values: dict[str, Value], batch: int, opset: int, tensor: Callable[[Any], Tensor]
    ) -> None:
        self.builder = builder
        self.values: dict[str, Value] = values
        self.batch = batch
        self.opset = opset
        self.tensor = tensor

    def read(self, node: Any) -> None:
        """Adds one node's output to the values."""
        inputs = [self.values[name] if name else None for name in node.input]
        call = _Call(self, node, inputs)
        if node.op_type == "Shape" and isinstance(inputs[0], int):
            # -1 where the batch stands: that is how a Reshape will read it
            value: Value = torch.tensor([-1, *self.builder.shape(inputs[0])])
        elif node.op_type == "Constant":
            value = call.literal()
        elif not any(isinstance(v, int) for v in inputs):
            value = self._fold(node, inputs)
        elif node.op_type in _CALLS:
            value = _CALLS[node.op_type](call)
        else:
            raise UnsupportedError(f"the model uses '{node.op_type}', which the graph does not know")
        self.values[node.output[0]] = value

    def _fold(self, node: Any, inputs: Sequence[Value | None]) -> Tensor:
        """The value of an operation of constants, by the `onnx` package's reference implementation."""
        from onnx.reference import ReferenceEvaluator

        feeds = {name: v.numpy() for name, v in zip(node.input, inputs, strict=True) if isinstance(v, Tensor)}
        try:
            outputs: Any = ReferenceEvaluator(node, opsets={"": self.opset}).run(None, feeds)
            return torch.as_tensor(outputs[0])
        except Exception as error:  # whatever numpy raised inside
            raise UnsupportedError(f"'{node.op_type}' of constants cannot be computed: {error}") from error


class _Call:
    """One ONNX node with its resolved inputs and attributes."""

    def __init__(self, reader: _Reader, node: Any, inputs: Sequence[Value | None]) -> None:
        self.reader = reader
        self.b = reader.builder
        self.op = node.op_type
        self.inputs = inputs
        self.attributes = {a.name: a for a in node.attribute}

    @property
    def x(self) -> int:
        """The first input, which must depend on the model's."""
        if not isinstance(self.inputs[0], int):
            raise UnsupportedError(f"'{self.op}' whose first input is a constant")
        return self.inputs[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Feature shape of the first input."""
        return self.b.shape(self.x)

    def constant(self, i: int) -> Tensor | None:
        """Input i, which must be constant, or None if it is absent."""
        value = self.inputs[i] if i < len(self.inputs) else None
        if isinstance(value, int):
            raise UnsupportedError(f"'{self.op}' with a second value that depends on the input")
        return value

    def weight(self, i: int) -> Tensor:
        """Input i, which must be constant and present."""
        value = self.constant(i)
        if value is None:
            raise ModelError(f"'{self.op}' lacks its input {i}")
        return value

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute as a plain value."""
        if name not in self.attributes:
            return default
        a = self.attributes[name]
        kinds: dict[int, Callable[[], Any]] = {
            1: lambda: a.f,
            2: lambda: a.i,
            3: lambda: a.s.decode(),
            6: lambda: list(a.floats),
            7: lambda: list(a.ints),
        }
        return kinds[a.type]()

    def argument(self, name: str, i: int) -> Any:
        """What newer opsets pass as input i and older ones as an attribute, as plain values."""
        value = self.constant(i)
        return self.get(name) if value is None else value.tolist()

    def literal(self) -> Tensor:
        """The value of a Constant."""
        if "value" in self.attributes:
            return self.reader.tensor(self.attributes["value"].t)
        return torch.tensor(next(self.get(name) for name in self.attributes))

    def dim(self, axis: int, rank: int | None = None) -> int:
        """A feature dimension from an axis that counts the batch."""
        rank = len(self.shape) + 1 if rank is None else rank
        if axis % rank == 0:
            raise UnsupportedError(f"'{self.op}' along the batch")
        return axis % rank - 1


def _pads(c: _Call, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> list[tuple[int, int]]:
    """(before, after) for each spatial dimension."""
    auto, k = c.get("auto_pad", "NOTSET"), len(kernel)
    if auto in ("NOTSET", ""):
        sides = c.get("pads", [0] * (2 * k))
        return list(zip(sides[:k], sides[k:], strict=True))
    if auto == "VALID":
        return [(0, 0)] * k
    pads: list[tuple[int, int]] = []
    for size, w, s, d in zip(c.shape[1:], kernel, stride, dilation, strict=True):
        total = max((-(-size // s) - 1) * s + d * (w - 1) + 1 - size, 0)
        pads.append((total // 2, total - total // 2) if auto == "SAME_UPPER" else (total - total // 2, total // 2))
    return pads


def _conv(c: _Call) -> Value:
    weight = c.weight(1)
    k = weight.ndim - 2
    stride, dilation = c.get("strides", [1] * k), c.get("dilations", [1] * k)
    pads = _pads(c, weight.shape[2:], stride, dilation)
    return c.b.conv(c.x, weight, c.constant(2), stride, pads, dilation, c.get("group", 1))


def _gemm(c: _Call) -> Value:
    if c.get("transA", 0):
        raise UnsupportedError("'Gemm' with a transposed input")
    weight, bias = c.weight(1), c.constant(2)
    weight = (weight if c.get("transB", 0) else weight.T) * c.get("alpha", 1.0)
    if bias is not None:
        bias = (bias * c.get("beta", 1.0)).flatten().expand(len(weight))
    return c.b.linear(c.x, weight, bias)


def _matmul(c: _Call) -> Value:
    weight = c.weight(1)
    if weight.ndim != 2:
        raise UnsupportedError("'MatMul' with a constant that is no matrix")
    return c.b.linear(c.x, weight.T)


def _batch_norm(c: _Call) -> Value:
    scale, bias, mean, variance = (c.weight(i) for i in range(1, 5))
    return c.b.batch_norm(c.x, scale, bias, mean, variance, c.get("epsilon", 1e-5))


def _two(c: _Call) -> tuple[Value, Value]:
    x, y = c.inputs
    if x is None or y is None:
        raise ModelError(f"'{c.op}' lacks an input")
    return x, y


def _reshape(c: _Call) -> Value:
    target = c.argument("shape", 1)
    if len(target) < 2 or target[0] not in (0, -1, c.reader.batch):
        raise UnsupportedError(f"'Reshape' to {target}: it mixes the batch with the features")
    shape = [c.shape[i] if s == 0 else s for i, s in enumerate(target[1:])]
    return c.b.reshape(c.x, shape)


def _flatten(c: _Call) -> Value:
    axis = c.get("axis", 1) % (len(c.shape) + 1)
    if axis != 1:
        raise UnsupportedError(f"'Flatten' at axis {axis}")
    return c.b.reshape(c.x, [-1])


def _transpose(c: _Call) -> Value:
    order = c.get("perm") or list(range(len(c.shape), -1, -1))
    if order[0] != 0:
        raise UnsupportedError("'Transpose' that moves the batch")
    return c.b.permute(c.x, [d - 1 for d in order[1:]])


def _squeeze(c: _Call) -> Value:
    axes = c.argument("axes", 1)
    dims = [d for d, s in enumerate(c.shape) if s == 1] if axes is None else [c.dim(a) for a in axes]
    return c.b.reshape(c.x, [s for d, s in enumerate(c.shape) if d not in dims])


def _unsqueeze(c: _Call) -> Value:
    axes = c.argument("axes", 1)
    shape = list(c.shape)
    for d in sorted(c.dim(a, len(c.shape) + 1 + len(axes)) for a in axes):
        shape.insert(d, 1)
    return c.b.reshape(c.x, shape)


def _max_pool(c: _Call) -> Value:
    kernel = c.get("kernel_shape")
    stride, dilation = c.get("strides", [1] * len(kernel)), c.get("dilations", [1] * len(kernel))
    pads = _pads(c, kernel, stride, dilation)
    if any(before != after for before, after in pads):
        raise UnsupportedError("'MaxPool' whose padding differs on the two sides")
    return c.b.max_pool(c.x, kernel, stride, [before for before, _ in pads], dilation, bool(c.get("ceil_mode", 0)))


def _average_pool(c: _Call) -> Value:
    kernel = c.get("kernel_shape")
    stride = c.get("strides", [1] * len(kernel))
    if c.get("ceil_mode", 0) or set(c.get("dilations", [1])) != {1}:
        raise UnsupportedError("'AveragePool' with ceil_mode or dilations")
    pads = _pads(c, kernel, stride, [1] * len(kernel))
    return c.b.average_pool(c.x, kernel, stride, pads, bool(c.get("count_include_pad", 0)))


def _pad(c: _Call) -> Value:
    sides, value, axes = c.argument("pads", 1), c.constant(2), c.argument("axes", 3)
    filled = c.get("value", 0.0) if value is None else float(value)
    if c.get("mode", "constant") != "constant" or filled:
        raise UnsupportedError("'Pad' with anything but zeros")
    rank = len(c.shape) + 1
    pairs = [(0, 0)] * rank
    half = len(sides) // 2
    for axis, before, after in zip(axes or range(rank), sides[:half], sides[half:], strict=True):
        pairs[axis] = (int(before), int(after))
    if pairs[0] != (0, 0):
        raise UnsupportedError("'Pad' along the batch")
    return c.b.pad(c.x, pairs[1:])


def _concat(c: _Call) -> Value:
    parts = [v for v in c.inputs if isinstance(v, int)]
    if len(parts) < len(c.inputs):
        raise UnsupportedError("'Concat' with a constant")
    return c.b.add_node("concat", parts, attributes={"dim": c.dim(c.get("axis"))})


def _slice(c: _Call) -> Value:
    starts, ends, axes, steps = (c.argument(name, i) for i, name in enumerate(("starts", "ends", "axes", "steps"), 1))
    x = c.x
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis, step = (axes[i] if axes else i), (steps[i] if steps else 1)
        if axis == 0 and start == 0 and step == 1 and end >= 2**31 - 1:
            continue
        dim = c.dim(axis)
        size = c.b.shape(x)[dim]
        x = c.b.select(x, dim, torch.tensor(range(*slice(start, end, step).indices(size)), dtype=torch.int64))
    return x


def _gather(c: _Call) -> Value:
    index, dim = c.weight(1), c.dim(c.get("axis", 0))
    if index.ndim > 1:
        raise UnsupportedError("'Gather' with an index that is no list")
    size = c.shape[dim]
    x = c.b.select(c.x, dim, index.reshape(-1) % size)
    return x if index.ndim else c.b.reshape(x, [s for d, s in enumerate(c.shape) if d != dim])


def _reduce_mean(c: _Call) -> Value:
    axes = c.argument("axes", 1)
    if axes is None:
        raise UnsupportedError("'ReduceMean' over the batch")
    return c.b.mean(c.x, [c.dim(a) for a in axes], keep=bool(c.get("keepdims", 1)))


def _clip(c: _Call) -> Value:
    low, high = c.argument("min", 1), c.argument("max", 2)
    return c.b.clip(c.x, low, high)


def _softmax(c: _Call) -> Value:
    axis = c.get("axis", -1 if c.reader.opset >= 13 else 1)
    if c.reader.opset < 13 and c.dim(axis) != len(c.shape) - 1:
        raise UnsupportedError("'Softmax' over several dimensions")
    return c.b.softmax(c.x, c.dim(axis))


_CALLS: dict[str, Callable[[_Call], Value]] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "BatchNormalization": _batch_norm,
    "Relu": lambda c: c.b.relu(c.x),
    "LeakyRelu": lambda c: c.b.leaky_relu(c.x, c.get("alpha", 0.01)),
    "Sigmoid": lambda c: c.b.add_node("sigmoid", [c.x]),
    "Tanh": lambda c: c.b.add_node("tanh", [c.x]),
    "Add": lambda c: c.b.add(*_two(c)),
    "Sub": lambda c: c.b.add(*_two(c), sign=-1.0),
    "Mul": lambda c: c.b.multiply(*_two(c)),
    "Div": lambda c: c.b.divide(*_two(c)),
    "Neg": lambda c: c.b.affine(c.x, scale=-1.0),
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": lambda c: c.b.mean(c.x, range(1, len(c.shape)), keep=True),
    "Pad": _pad,
    "Concat": _concat,
    "Slice": _slice,
    "Gather": _gather,
    "ReduceMean": _reduce_mean,
    "Clip": _clip,
    "Softmax": _softmax,
    "Dropout": lambda c: c.x,
    "Identity": lambda c: c.x,
}
