"""A module's graph through ``torch.export`` (ATen operations, any batch size)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from holdfast.core.errors import ModelError, UnsupportedError
from holdfast.graph.build import Builder, Value
from holdfast.graph.model import Graph

__all__ = ["capture"]


def capture(module: nn.Module, example: Tensor) -> Graph:
    """See `holdfast.graph.Graph.from_module`."""
    # two samples: an exported batch of one would be taken for a constant
    samples = torch.linspace(0, 1, 2 * example[:1].numel(), dtype=example.dtype, device=example.device)
    samples = samples.view(2, *example.shape[1:])
    with _eval_mode(module), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(module, (samples,), dynamic_shapes=({0: Dim.DYNAMIC},))
        except Exception as error:  # torch.export raises whatever the model's own code raised
            raise ModelError(f"torch.export cannot capture the model for any batch size: {error}") from error
        graph = _read(program, example)
        with torch.no_grad():
            expected, found = module(samples), graph.as_module()(samples)
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
        raise ModelError("the captured graph does not compute what the model does; is the model random in eval mode?")
    return graph


@contextmanager
def _eval_mode(module: nn.Module) -> Iterator[None]:
    modes = [(m, m.training) for m in module.modules()]
    try:
        module.eval()
        yield
    finally:
        for m, training in modes:
            m.training = training


def _read(program: ExportedProgram, example: Tensor) -> Graph:
    signature = program.graph_signature
    targets = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    targets |= signature.inputs_to_lifted_tensor_constants
    held = {**program.constants, **program.state_dict}
    reader = _Reader(Builder(example.shape[1:], example.dtype, example.device))
    for node in program.graph.nodes:
        if node.op == "placeholder":
            reader.values[node] = held[targets[node.name]] if node.name in targets else 0
        elif node.op == "call_function":
            reader.values[node] = reader.call(node)
        elif node.op == "output":
            outputs = node.args[0]
            if len(outputs) != 1:
                raise UnsupportedError(f"a model with {len(outputs)} outputs")
            return reader.builder.finish(reader.operand(outputs[0]))
        else:
            raise UnsupportedError(f"a captured node of kind {node.op}")
    raise ModelError("the captured program has no output")


class _Reader:
    """Translates ATen calls. A value is a graph node's position, a constant tensor, or None for a symbolic size."""

    def __init__(self, builder: Builder) -> None:
        self.builder = builder
        self.values: dict[fx.Node, Value | None] = {}

    def call(self, node: fx.Node) -> Value | None:
        """The value of one call."""
        if isinstance(node.meta.get("val"), torch.SymInt | int):
            return None
        inputs = [self.values[n] for n in node.all_input_nodes]
        if all(isinstance(v, Tensor) for v in inputs):
            target = node.target
            assert callable(target)
            return target(*fx.map_arg(node.args, self._tensor), **fx.map_arg(dict(node.kwargs), self._tensor))
        name = str(node.target).removeprefix("aten.")
        handler = _CALLS.get(name) or _CALLS.get(name.split(".")[0])
        if handler is None:
            raise UnsupportedError(f"the model uses '{name}', which the graph does not know")
        return handler(self, node)

    def _tensor(self, node: fx.Node) -> Any:
        return self.values[node]

    def get(self, node: fx.Node, position: int, name: str, default: Any = None) -> Any:
        """An argument of a call, by position or by name, as it stands."""
        return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)

    def x(self, node: fx.Node, position: int = 0) -> int:
        """An argument that must depend on the input."""
        value = self.operand(node.args[position])
        if isinstance(value, Tensor):
            raise UnsupportedError(f"'{node.target}' of a constant and a value that depends on the input")
        return value

    def operand(self, argument: Any) -> Value:
        """A number, a constant or a value that depends on the input."""
        value = self.values[argument] if isinstance(argument, fx.Node) else torch.tensor(argument, dtype=torch.float64)
        if value is None:
            raise UnsupportedError("arithmetic on the batch size")
        return value

    def constant(self, argument: Any) -> Tensor | None:
        """A weight, or None."""
        value = None if argument is None else self.operand(argument)
        if isinstance(value, int):
            raise UnsupportedError("an operation whose weights depend on the input")
        return value

    def feature_dim(self, node: fx.Node, dim: int) -> int:
        """A dimension of the node's first input without the batch."""
        rank = len(self.builder.shape(self.x(node))) + 1
        if dim % rank == 0:
            raise UnsupportedError(f"'{node.target}' along the batch")
        return dim % rank - 1

    def feature_dims(self, node: fx.Node, dims: Any) -> list[int]:
        """Several of them; None is all features, which the batch would join."""
        return [self.feature_dim(node, d) for d in ([0] if dims is None else dims)]


def _conv(r: _Reader, node: fx.Node) -> Value:
    weight, bias = r.constant(node.args[1]), r.constant(r.get(node, 2, "bias"))
    assert weight is not None
    k = weight.ndim - 2
    stride, dilation = _tuple(r.get(node, 3, "stride", 1), k), _tuple(r.get(node, 5, "dilation", 1), k)
    padding = r.get(node, 4, "padding", 0)
    if padding == "same":
        totals = [d * (size - 1) for d, size in zip(dilation, weight.shape[2:], strict=True)]
        pads = [(total // 2, total - total // 2) for total in totals]
    else:
        pads = [(p, p) for p in _tuple(0 if padding == "valid" else padding, k)]
    return r.builder.conv(r.x(node), weight, bias, stride, pads, dilation, r.get(node, 6, "groups", 1))


def _linear(r: _Reader, node: fx.Node) -> Value:
    weight = r.constant(node.args[1])
    assert weight is not None
    return r.builder.linear(r.x(node), weight, r.constant(r.get(node, 2, "bias")))


def _matmul(r: _Reader, node: fx.Node) -> Value:
    weight = r.constant(node.args[1])
    if weight is None or weight.ndim != 2:
        raise UnsupportedError("a matrix product of anything but a value and a constant matrix")
    return r.builder.linear(r.x(node), weight.T)


def _addmm(r: _Reader, node: fx.Node) -> Value:
    weight = r.constant(node.args[2])
    assert weight is not None
    return r.builder.linear(r.x(node, 1), weight.T, r.constant(node.args[0]))


def _batch_norm(r: _Reader, node: fx.Node) -> Value:
    weight, bias, mean, variance = (r.constant(a) for a in node.args[1:5])
    if mean is None or variance is None:
        raise UnsupportedError("a batch norm without running statistics")
    eps = r.get(node, 6 if "no_training" in str(node.target) else 7, "eps")
    return r.builder.batch_norm(r.x(node), weight, bias, mean, variance, float(eps))


def _add(r: _Reader, node: fx.Node, sign: float = 1.0) -> Value:
    sign *= float(node.kwargs.get("alpha", 1))  # type: ignore[arg-type]
    if abs(sign) != 1:
        raise UnsupportedError("addition with a factor other than 1")
    return r.builder.add(r.operand(node.args[0]), r.operand(node.args[1]), sign)


def _clip(r: _Reader, node: fx.Node) -> Value:
    return r.builder.clip(r.x(node), r.get(node, 1, "min"), r.get(node, 2, "max"))


def _hardtanh(r: _Reader, node: fx.Node) -> Value:
    return r.builder.clip(r.x(node), r.get(node, 1, "min_val", -1.0), r.get(node, 2, "max_val", 1.0))


def _reshape(r: _Reader, node: fx.Node) -> Value:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    before, after = source.meta["val"].shape, node.meta["val"].shape
    if str(before[0]) != str(after[0]) or not all(isinstance(s, int) for s in after[1:]):
        raise UnsupportedError(f"'{node.target}' that mixes the batch with the features")
    return r.builder.reshape(r.x(node), after[1:])


def _permute(r: _Reader, node: fx.Node) -> Value:
    rank = len(r.builder.shape(r.x(node))) + 1
    dims: Sequence[int] = node.args[1]  # type: ignore[assignment]
    if dims[0] % rank != 0:
        raise UnsupportedError(f"'{node.target}' that moves the batch")
    return r.builder.permute(r.x(node), [d % rank - 1 for d in dims[1:]])


def _transpose(r: _Reader, node: fx.Node) -> Value:
    i, j = (r.feature_dim(node, d) for d in node.args[1:3])  # type: ignore[arg-type]
    dims = list(range(len(r.builder.shape(r.x(node)))))
    dims[i], dims[j] = dims[j], dims[i]
    return r.builder.permute(r.x(node), dims)


def _slice(r: _Reader, node: fx.Node) -> Value:
    dim, start, stop, step = (r.get(node, i, "", d) for i, d in ((1, 0), (2, None), (3, None), (4, 1)))
    rank = len(r.builder.shape(r.x(node))) + 1
    if dim % rank == 0 and start in (0, None) and step == 1 and (stop is None or stop >= 2**62):
        return r.x(node)
    dim = r.feature_dim(node, dim)
    return r.builder.select(r.x(node), dim, torch.arange(r.builder.shape(r.x(node))[dim])[slice(start, stop, step)])


def _select(r: _Reader, node: fx.Node) -> Value:
    dim = r.feature_dim(node, node.args[1])  # type: ignore[arg-type]
    size = r.builder.shape(r.x(node))[dim]
    x = r.builder.select(r.x(node), dim, torch.tensor([node.args[2] % size]))  # type: ignore[operator]
    return r.builder.reshape(x, [s for d, s in enumerate(r.builder.shape(x)) if d != dim])


def _index_select(r: _Reader, node: fx.Node) -> Value:
    index = r.constant(node.args[2])
    assert index is not None
    return r.builder.select(r.x(node), r.feature_dim(node, node.args[1]), index)  # type: ignore[arg-type]


def _pad(r: _Reader, node: fx.Node) -> Value:
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


def _cat(r: _Reader, node: fx.Node) -> Value:
    parts = [r.operand(a) for a in node.args[0]]  # type: ignore[union-attr]
    dim = r.get(node, 1, "dim", 0)
    first = next(p for p in parts if isinstance(p, int))
    rank = len(r.builder.shape(first)) + 1
    if dim % rank == 0 or not all(isinstance(p, int) for p in parts):
        raise UnsupportedError("concatenation along the batch or with a constant")
    return r.builder.add_node("concat", [p for p in parts if isinstance(p, int)], attributes={"dim": dim % rank - 1})


def _max_pool(r: _Reader, node: fx.Node) -> Value:
    k = int(str(node.target).split("max_pool")[1][0])
    kernel = _tuple(node.args[1], k)
    stride, padding = _tuple(r.get(node, 2, "stride") or kernel, k), _tuple(r.get(node, 3, "padding", 0), k)
    dilation, ceil = _tuple(r.get(node, 4, "dilation", 1), k), r.get(node, 5, "ceil_mode", False)
    return r.builder.max_pool(r.x(node), kernel, stride, padding, dilation, ceil)


def _avg_pool(r: _Reader, node: fx.Node) -> Value:
    k = int(str(node.target).split("avg_pool")[1][0])
    kernel = _tuple(node.args[1], k)
    stride, padding = _tuple(r.get(node, 2, "stride") or kernel, k), _tuple(r.get(node, 3, "padding", 0), k)
    if r.get(node, 4, "ceil_mode", False) or r.get(node, 6, "divisor_override") is not None:
        raise UnsupportedError("an average pool with ceil_mode or divisor_override")
    count = r.get(node, 5, "count_include_pad", True)
    return r.builder.average_pool(r.x(node), kernel, stride, [(p, p) for p in padding], count)


def _adaptive_avg_pool(r: _Reader, node: fx.Node) -> Value:
    k = int(str(node.target).split("avg_pool")[1][0])
    sizes, target = r.builder.shape(r.x(node))[-k:], _tuple(node.args[1], k)
    if any(s % t for s, t in zip(sizes, target, strict=True)):
        raise UnsupportedError(f"an adaptive average pool from {sizes} to {target}: not a multiple")
    if set(target) == {1}:
        rank = len(r.builder.shape(r.x(node)))
        return r.builder.mean(r.x(node), range(rank - k, rank), keep=True)
    kernel = [s // t for s, t in zip(sizes, target, strict=True)]
    return r.builder.average_pool(r.x(node), kernel, kernel, [(0, 0)] * k)


def _mean(r: _Reader, node: fx.Node) -> Value:
    dims = r.feature_dims(node, r.get(node, 1, "dim"))
    mean = r.builder.mean(r.x(node), dims, bool(r.get(node, 2, "keepdim", False)))
    if "sum" not in str(node.target):
        return mean
    shape = r.builder.shape(r.x(node))
    return r.builder.affine(mean, scale=float(torch.Size([shape[d] for d in dims]).numel()))


def _softmax(r: _Reader, node: fx.Node) -> Value:
    return r.builder.softmax(r.x(node), r.feature_dim(node, node.args[1]))  # type: ignore[arg-type]


def _convert(r: _Reader, node: fx.Node) -> Value:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    if node.meta["val"].dtype != source.meta["val"].dtype:
        raise UnsupportedError(f"a conversion to {node.meta['val'].dtype} in the middle of the model")
    return r.x(node)


def _tuple(value: Any, k: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return values * k if len(values) == 1 else values


def _same(r: _Reader, node: fx.Node) -> Value:
    return r.x(node)


_CALLS: dict[str, Callable[[_Reader, fx.Node], Value]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _conv),
    "linear": _linear,
    **dict.fromkeys(("matmul", "mm"), _matmul),
    "addmm": _addmm,
    "batch_norm": _batch_norm,
    **dict.fromkeys(("add", "add_"), _add),
    **dict.fromkeys(("sub", "sub_"), lambda r, node: _add(r, node, -1.0)),
    "rsub": lambda r, node: r.builder.add(r.operand(node.args[1]), r.x(node), -1.0),
    **dict.fromkeys(("mul", "mul_"), lambda r, node: r.builder.multiply(*map(r.operand, node.args))),
    **dict.fromkeys(("div", "div_"), lambda r, node: r.builder.divide(*map(r.operand, node.args))),
    "neg": lambda r, node: r.builder.affine(r.x(node), scale=-1.0),
    **dict.fromkeys(("relu", "relu_"), lambda r, node: r.builder.relu(r.x(node))),
    **dict.fromkeys(
        ("leaky_relu", "leaky_relu_"),
        lambda r, node: r.builder.leaky_relu(r.x(node), float(r.get(node, 1, "negative_slope", 0.01))),
    ),
    **dict.fromkeys(("sigmoid", "sigmoid_"), lambda r, node: r.builder.add_node("sigmoid", [r.x(node)])),
    **dict.fromkeys(("tanh", "tanh_"), lambda r, node: r.builder.add_node("tanh", [r.x(node)])),
    **dict.fromkeys(("hardtanh", "hardtanh_"), _hardtanh),
    **dict.fromkeys(("relu6", "relu6_"), lambda r, node: r.builder.clip(r.x(node), 0.0, 6.0)),
    **dict.fromkeys(("clamp", "clamp_", "clip"), _clip),
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "flatten", "squeeze", "unsqueeze", "unflatten"), _reshape),
    "permute": _permute,
    "transpose": _transpose,
    "slice": _slice,
    "select": _select,
    "index_select": _index_select,
    **dict.fromkeys(("pad", "constant_pad_nd"), _pad),
    **dict.fromkeys(("cat", "concat"), _cat),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d"), _max_pool),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), _avg_pool),
    **dict.fromkeys(("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"), _adaptive_avg_pool),
    **dict.fromkeys(("mean", "sum"), _mean),
    **dict.fromkeys(("softmax", "_softmax"), _softmax),
    **dict.fromkeys(("to", "_to_copy"), _convert),
    **dict.fromkeys(
        ("contiguous", "clone", "detach", "alias", "lift_fresh_copy", "dropout", "feature_dropout", "identity"), _same
    ),
}
