"""Reads an ONNX file into the graph. Nothing in the file is run; the `onnx` package only parses it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from holdfast.core.errors import HoldfastError, ModelError, UnsupportedError, UsageError
from holdfast.graph.build import Builder, Value
from holdfast.graph.model import Graph
from holdfast.graph.onnx_call import Call, Handler
from holdfast.graph.onnx_shapes import SHAPES, unsqueezed
from holdfast.graph.onnx_values import VALUES

__all__ = ["operations", "read_onnx"]

CALLS: dict[str, Handler] = {**VALUES, **SHAPES}


def read_onnx(path: str | Path) -> Graph:
    """The graph of an ONNX file with one input and one output.

    The first dimension is the batch, whatever size the file gives it, and the features are all others. A file that
    mixes the batch with the features is read for one sample: a first dimension of 1 or of no fixed size is left out of
    the graph's shapes all the same, any other one, or the only one, is a feature.

    Args:
        path: the file.

    Returns:
        The simplified graph.

    Raises:
        UsageError: the `onnx` package is absent.
        ModelError: no readable ONNX file with one input and one output of known shape, or weights outside its folder.
        UnsupportedError: an operation that the graph does not know; the message names it.
    """
    model, tensor = _loaded(path)
    constants = {proto.name: tensor(proto) for proto in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in constants]
    if len(inputs) != 1 or len(model.graph.output) != 1:
        raise ModelError(
            f"{path} has {len(inputs)} inputs and {len(model.graph.output)} outputs; one of each is needed"
        )
    import onnx

    kind = inputs[0].type.tensor_type
    shape = [d.dim_value if d.HasField("dim_value") else 0 for d in kind.shape.dim]
    if not shape or 0 in shape[1:]:
        raise ModelError(f"{path}: the input's shape {shape} is not fixed behind its first dimension")
    dtype = tensor(onnx.helper.make_tensor("", kind.elem_type, [0], [])).dtype
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
    reader = partial(_Reader, model.graph, inputs[0].name, constants, shape, dtype, opset, tensor)
    if len(shape) == 1:
        return reader(0).graph()
    try:
        return reader(1).graph()
    except UnsupportedError:
        # it may mix the batch with the features, which for one sample at a time is no harm
        return reader(0).graph()


def operations(path: str | Path) -> list[tuple[str, bool]]:
    """Every operation of a file, with whether the graph knows it."""
    model, _ = _loaded(path, weights=False)
    held = {proto.name for proto in model.graph.initializer}
    touched = {i.name for i in model.graph.input} - held
    found: list[tuple[str, bool]] = []
    for node in model.graph.node:
        name = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
        moved = bool(touched.intersection(node.input)) and name not in ("Shape", "Size")
        touched |= set(node.output) if moved else set()
        found.append((name, not moved or name in CALLS))
    return found


def _loaded(path: str | Path, weights: bool = True) -> tuple[Any, Callable[[Any], Tensor]]:
    """The parsed file, and what makes tensors of its."""
    try:
        import onnx
        from onnx import external_data_helper, numpy_helper
    except ImportError:
        raise UsageError("reading ONNX files needs the onnx package: pip install onnx") from None
    path = Path(path)
    try:
        model: Any = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # the parser's own errors have no common type
        raise ModelError(f"{path} is no readable ONNX file: {error}") from error
    if weights:
        _check_external(model, path.parent, external_data_helper)
        external_data_helper.load_external_data_for_model(model, str(path.parent))

    def tensor(proto: Any) -> Tensor:
        array = numpy_helper.to_array(proto, str(path.parent))
        return torch.from_numpy(array.copy())

    return model, tensor


def _check_external(model: Any, folder: Path, helper: Any) -> None:
    """Weights may only lie in files inside the model's own folder."""
    root = folder.resolve()
    for proto in model.graph.initializer:
        if helper.uses_external_data(proto):
            location = next((e.value for e in proto.external_data if e.key == "location"), "")
            if not location or not (root / location).resolve().is_relative_to(root):
                raise ModelError(f"the weights '{proto.name}' lie in '{location}', outside the model's folder")


class _Reader:
    """Translates ONNX nodes. A value is a graph node's position or a constant tensor.

    Args:
        source: the file's graph.
        name: of its input.
        constants: its initializers.
        shape: of its input, 0 where a size is not fixed.
        dtype: of its input.
        opset: version of the operations.
        tensor: makes tensors of the file's.
        lead: see `Builder`.
    """

    def __init__(
        self,
        source: Any,
        name: str,
        constants: Mapping[str, Tensor],
        shape: Sequence[int],
        dtype: torch.dtype,
        opset: int,
        tensor: Callable[[Any], Tensor],
        lead: int,
    ) -> None:
        self.source = source
        self.batch = max(shape[0], 1)
        self.opset = opset
        self.tensor = tensor
        self.dropped = lead == 0 and len(shape) > 1 and self.batch == 1
        self.whole = not dtype.is_floating_point
        floats = [t.dtype for t in constants.values() if t.is_floating_point()]
        dtype = next(iter(floats), torch.float32) if self.whole else dtype
        self.builder = Builder(shape[1:] if lead or self.dropped else shape, dtype, lead=lead)
        self.values: dict[str, Value] = dict(constants)
        self.values[name] = self.builder.reshape(0, (1, *shape[1:])) if self.dropped else 0

    def graph(self) -> Graph:
        """The simplified graph."""
        for node in self.source.node:
            self.read(node)
        output = self.value(self.source.output[0].name)
        if isinstance(output, int) and self.dropped and self.builder.shape(output)[:1] == (1,):
            output = self.builder.reshape(output, self.builder.shape(output)[1:])
        return self.builder.finish(output)

    def value(self, name: str) -> Value:
        """What stands under a name."""
        if name not in self.values:
            raise ModelError(f"the file uses '{name}' before anything computes it")
        return self.values[name]

    def read(self, node: Any) -> None:
        """Adds one node's outputs to the values."""
        inputs = [self.value(name) if name else None for name in node.input]
        call = Call(self.builder, node, inputs, self.batch, self.opset, self.whole, self.tensor)
        if call.op in ("Shape", "Size") and isinstance(inputs[0], int):
            start, end = call.get("start", 0), call.get("end", None)
            found: Any = torch.tensor(call.full[start:end]) if call.op == "Shape" else torch.tensor(call.full).prod()
        elif call.op == "Constant":
            found = call.literal()
        elif not any(isinstance(v, int) for v in inputs):
            found = self._fold(call, node)
        elif call.op in CALLS:
            try:
                found = CALLS[call.op](call)
            except HoldfastError:
                raise
            except (RuntimeError, IndexError, TypeError, ValueError) as error:
                raise UnsupportedError(f"'{call.op}' cannot be read: {error}") from error
        else:
            raise UnsupportedError(f"the model uses '{call.op}', which the graph does not know")
        outputs = found if isinstance(found, list) else [found]
        self.values |= dict(zip(node.output, outputs, strict=False))

    def _fold(self, call: Call, node: Any) -> list[Tensor]:
        """The values of an operation of constants, by the `onnx` package's reference implementation."""
        from onnx.reference import ReferenceEvaluator

        first = call.inputs[0] if call.inputs else None
        if call.op in ("Unsqueeze", "Squeeze") and "axes" in call.attributes and isinstance(first, Tensor):
            axes = call.get("axes")  # which the package reads as newer files give them
            return [unsqueezed(first, axes) if call.op == "Unsqueeze" else first.squeeze(axes)]
        feeds = {name: v.numpy() for name, v in zip(node.input, call.inputs, strict=True) if isinstance(v, Tensor)}
        try:
            outputs: Any = ReferenceEvaluator(node, opsets={"": self.opset}).run(None, feeds)
            return [torch.as_tensor(output) for output in outputs]
        except Exception as error:  # whatever numpy raised inside
            raise UnsupportedError(f"'{call.op}' of constants cannot be computed: {error}") from error
