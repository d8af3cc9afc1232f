"""Reads an ONNX file into the graph. Nothing in the file is run; the `onnx` package only parses it."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from holdfast.core.arrays import tensor_of
from holdfast.core.errors import HoldfastError, ModelError, UnsupportedError, UsageError
from holdfast.graph.build import BatchError, Builder, Value
from holdfast.graph.model import Graph
from holdfast.graph.onnx_call import FLOATS, TYPES, WHOLE, OnnxCall, OnnxOp, type_name
from holdfast.graph.onnx_constants import CONSTANTS, folded, known
from holdfast.graph.onnx_images import IMAGES
from holdfast.graph.onnx_shapes import SHAPES
from holdfast.graph.onnx_values import VALUES
from holdfast.graph.refusals import advised, named, unreadable
from holdfast.graph.simplify import lifted, simplify

__all__ = ["Reading", "input_type", "operations", "parsed", "read_onnx", "reading"]

CALLS: dict[str, OnnxOp] = {**VALUES, **SHAPES, **IMAGES}
_OPSETS = range(7, 29)  # what the handlers were written for; onnxruntime promises nothing before 7
_OWN = ("", "ai.onnx")


class Reading(NamedTuple):
    """What was made of a file.

    Attributes:
        graph: the simplified graph.
        traced: the graph before it was made smaller.
        places: for each value of the file that depends on the input, its position in ``traced`` and the operation
            that computes it, in the file's order.
    """

    graph: Graph
    traced: Graph
    places: dict[str, tuple[int, str]]


def read_onnx(path: str | Path, output: str | None = None, entries: int | None = None) -> Graph:
    """The graph of an ONNX file with one input.

    The first dimension is the batch, whatever size the file gives it, and the features are all others. A file that
    mixes the batch with the features is read for one sample: a first dimension of 1 or of no fixed size is left out of
    the graph's shapes all the same, any other one, or the only one, is a feature.

    Args:
        path: the file.
        output: the name of the output that is meant; a file with one needs none.
        entries: how many numbers an input has, where that is known from elsewhere (a property says it): if they are
            those of all dimensions of the file's input, its first one is no batch.

    Returns:
        The simplified graph.

    Raises:
        UsageError: the `onnx` package is absent.
        ModelError: no readable ONNX file with one input of known shape, several outputs and none named, or weights that
            are missing or outside its folder.
        UnsupportedError: an operation or a setting of one that the graph does not know; the message names it.
    """
    return reading(path, output, entries).graph


def reading(path: str | Path, output: str | None = None, entries: int | None = None) -> Reading:
    """See `read_onnx`; with what finds each of the file's values in the graph."""
    try:
        return _reading(path, output, entries)
    except UnsupportedError as refusal:
        raise advised(refusal) from refusal.__cause__


def _reading(path: str | Path, output: str | None, entries: int | None) -> Reading:
    model, tensor = parsed(path)
    source = _Source(model, tensor, str(path), output)
    _refuse_unknown(model, _needed(source))
    rows = source.shape[0] if source.shape else 0
    if len(source.shape) < 2 or (rows > 1 and entries == rows * torch.Size(source.shape[1:]).numel()):
        return _OnnxReader(source, 0).reading()
    try:
        return _OnnxReader(source, 1).reading()
    except UnsupportedError as first:
        # it may mix the batch with the features, which for one sample at a time is no harm
        try:
            return _OnnxReader(source, 0).reading()
        except HoldfastError as second:
            raise (second if isinstance(first, BatchError) and not isinstance(second, BatchError) else first) from None


def operations(path: str | Path) -> list[tuple[str, bool]]:
    """Every operation of a file, with whether the graph knows it."""
    return _operations(parsed(path, weights=False)[0])


def input_type(path: str | Path) -> str:
    """The element type of the one input of a file that `read_onnx` reads, as the specification calls it."""
    graph = parsed(path, weights=False)[0].graph
    held = {proto.name for proto in graph.initializer}
    return next(type_name(int(i.type.tensor_type.elem_type)) for i in graph.input if i.name not in held)


def _operations(model: Any, needed: Container[str] | None = None) -> list[tuple[str, bool]]:
    held = {proto.name for proto in model.graph.initializer}
    touched = {i.name for i in model.graph.input} - held
    own = {(f.domain, f.name) for f in model.functions}
    found: list[tuple[str, bool]] = []
    for node in model.graph.node:
        name = node.op_type if node.domain in _OWN else f"{node.domain}.{node.op_type}"
        moved = bool(touched.intersection(node.input)) and name not in ("Shape", "Size")
        touched |= set(node.output) if moved else set()
        if needed is not None and not any(o in needed for o in node.output):
            continue
        served = name in CALLS if moved else name in CALLS or name in CONSTANTS or name == "Constant"
        found.append((name, served and (node.domain, node.op_type) not in own))
    return found


def _refuse_unknown(model: Any, needed: Container[str]) -> None:
    unknown = sorted({name for name, served in _operations(model, needed) if not served})
    if unknown:
        names = ", ".join(f"'{name}'" for name in unknown)
        raise UnsupportedError(
            f"the model uses {names}, which the graph does not know; holdfast verify --operations lists what is served"
        )


def parsed(path: str | Path, weights: bool = True) -> tuple[Any, Callable[[Any], Tensor]]:
    """The parsed file, and what makes tensors of its.

    Raises:
        UsageError: the `onnx` package is absent.
        ModelError: no ONNX file, or weights that are missing or outside its folder.
    """
    try:
        import onnx
        from onnx import external_data_helper, numpy_helper
    except ImportError:
        raise UsageError("reading ONNX files needs the onnx package: pip install onnx") from None
    path = Path(path)
    try:
        model: Any = cast("Any", onnx).load(str(path), load_external_data=False)
    except Exception as error:  # the parser's own errors have no common type
        raise ModelError(f"{path} is no readable ONNX file: {error}") from error
    if weights:
        _check_external(model, path.parent, external_data_helper)
        try:
            external_data_helper.load_external_data_for_model(model, str(path.parent))
        except Exception as error:  # onnx raises checker, value and operating system errors alike
            raise ModelError(f"{path}: its weights cannot be read: {error}") from None

    def tensor(proto: Any) -> Tensor:
        if proto.data_type not in TYPES:
            names = ", ".join(map(type_name, TYPES))
            raise UnsupportedError(f"constants of type {type_name(proto.data_type)}; served are {names}")
        try:
            return tensor_of(numpy_helper.to_array(proto, str(path.parent)).copy())
        except (ValueError, TypeError, OSError) as error:
            raise ModelError(f"{path}: the constant '{proto.name}' is damaged: {error}") from None

    return model, tensor


def _check_external(model: Any, folder: Path, helper: Any) -> None:
    """Weights may only lie in files inside the model's own folder, and must be there."""
    root = folder.resolve()
    for proto in model.graph.initializer:
        if helper.uses_external_data(proto):
            location = next((e.value for e in proto.external_data if e.key == "location"), "")
            if not location or not (root / location).resolve().is_relative_to(root):
                raise ModelError(f"the weights '{proto.name}' lie in '{location}', outside the model's folder")
            if not (root / location).is_file():
                raise ModelError(
                    f"the weights '{proto.name}' lie in the file '{location}', which is not beside the model in {folder}; "
                    "copy it there"
                )


class _Source:
    """A file's graph with its one input and the output that is meant.

    Args:
        model: the parsed file.
        tensor: makes tensors of the file's.
        name: of the file, for messages.
        output: of the output that is meant, or None.
    """

    def __init__(self, model: Any, tensor: Callable[[Any], Tensor], name: str, output: str | None) -> None:
        self.nodes, self.tensor = model.graph.node, tensor
        self.opset = _opset(model, name)
        if model.graph.sparse_initializer:
            raise UnsupportedError(f"{name} has sparse constants; served are dense ones")
        self.kinds = {proto.name: int(proto.data_type) for proto in model.graph.initializer}
        self.constants = {proto.name: tensor(proto) for proto in model.graph.initializer}
        inputs = [i for i in model.graph.input if i.name not in self.constants]
        outputs = [o.name for o in model.graph.output]
        if len(inputs) != 1:
            names = ", ".join(f"'{i.name}'" for i in inputs)
            raise ModelError(f"{name} has {len(inputs)} inputs ({names}); served is one")
        listed = ", ".join(f"'{o}'" for o in outputs)
        if output is None and len(outputs) != 1:
            raise ModelError(f"{name} has the outputs {listed}; say which one is meant: --output NAME")
        if output is not None and output not in outputs:
            raise ModelError(f"{name} has no output '{output}'; there is {listed}")
        self.input, self.output = inputs[0].name, output or outputs[0]
        kind = inputs[0].type.tensor_type
        self.kind = int(kind.elem_type)
        if self.kind not in FLOATS | WHOLE:
            served = ", ".join(type_name(k) for k in sorted(FLOATS | WHOLE))
            raise UnsupportedError(f"{name} has an input of type {type_name(self.kind)}; served are {served}")
        self.shape = [d.dim_value if d.HasField("dim_value") else 0 for d in kind.shape.dim]
        if not self.shape or 0 in self.shape[1:]:
            raise ModelError(f"{name}: the input's shape {self.shape} is not fixed behind its first dimension")

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type in which the model runs."""
        if self.kind in FLOATS:
            return TYPES[self.kind]
        floats = [t.dtype for t in self.constants.values() if t.is_floating_point()]
        return next(iter(floats), torch.float32)


def _opset(model: Any, name: str) -> int:
    """The version of ONNX's own operations that a file is written in."""
    import onnx

    versions = {o.version for o in model.opset_import if o.domain in _OWN}
    opset = versions.pop() if len(versions) == 1 else 0
    newest = min(_OPSETS[-1], onnx.defs.onnx_opset_version())
    if not _OPSETS[0] <= opset <= newest:
        raise UnsupportedError(
            f"{name} is written in opset {opset or 'unknown'}; served are {_OPSETS[0]} to {newest}: convert it with "
            "onnx.version_converter or export it again"
        )
    return opset


# operations of constants that compute nothing
MOVES = frozenset(
    (
        "Cast",
        "Concat",
        "ConstantOfShape",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    )
)


class _OnnxReader:
    """Translates ONNX nodes. A value is a graph node's position or a constant tensor.

    Args:
        source: the file.
        batch_dims: see `Builder`.
    """

    def __init__(self, source: _Source, batch_dims: int) -> None:
        self.source = source
        shape = source.shape
        self.batch = max(shape[0], 1)
        self.dropped = batch_dims == 0 and len(shape) > 1 and self.batch == 1
        self.builder = Builder(shape[1:] if batch_dims or self.dropped else shape, source.dtype, batch_dims=batch_dims)
        self.values: dict[str, Value] = dict(source.constants)
        self.kinds = {**source.kinds, source.input: source.kind}
        self.errors: dict[str, Tensor] = {}
        self.values[source.input] = self.builder.reshape(0, (1, *shape[1:])) if self.dropped else 0
        self.places: dict[str, tuple[int, str]] = {}

    def reading(self) -> Reading:
        """The simplified graph, and where the file's values are."""
        needed = _needed(self.source)
        for node in self.source.nodes:
            if needed.intersection(node.output):
                self.read(node)
        output = self.value(self.source.output)
        if self.kinds[self.source.output] not in FLOATS and isinstance(output, int):
            raise UnsupportedError(
                f"the output '{self.source.output}' is of type {type_name(self.kinds[self.source.output])}; served are floats"
            )
        if isinstance(output, int) and self.dropped and self.builder.shape(output)[:1] == (1,):
            output = self.builder.reshape(output, self.builder.shape(output)[1:])
        graph = self.builder.finish(output)
        if any(not node.shape for node in graph.nodes) and graph.input_shape:
            graph = lifted(graph)
            graph = simplify(graph, len(graph.nodes) - 1)
        graph = replace(graph, whole=self.source.kind in WHOLE)
        return Reading(graph, Graph(tuple(self.builder.nodes), self.builder.dtype), self.places)

    def value(self, name: str) -> Value:
        """What stands under a name."""
        if name not in self.values:
            raise ModelError(f"the file uses '{name}' before anything computes it")
        return self.values[name]

    def read(self, node: Any) -> None:
        """Adds one node's outputs to the values."""
        call = self._call(node)
        where = f" ({node.name})" if node.name else ""
        try:
            outputs = self._outputs(call, list(node.input))
        except UnsupportedError as refusal:
            raise named(refusal, call.op, where) from refusal.__cause__
        except HoldfastError:
            raise
        except (RuntimeError, LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise unreadable(call.op, where, error) from error
        call.finished(len(outputs))
        for name, (value, error) in zip(node.output, outputs, strict=False):
            if not name:
                continue
            if name in self.values:
                raise ModelError(f"the file computes '{name}' twice")
            self.values[name], self.kinds[name] = value, call.kind
            if error is not None:
                self.errors[name] = error
            if isinstance(value, int):
                self.places[name] = (value, f"'{call.op}' ({node.name or name})")

    def _call(self, node: Any) -> OnnxCall:
        import onnx

        op = node.op_type if node.domain in _OWN else f"{node.domain}.{node.op_type}"
        try:
            schema = onnx.defs.get_schema(node.op_type, self.source.opset, "") if node.domain in _OWN else None
        except onnx.defs.SchemaError:
            raise UnsupportedError(f"opset {self.source.opset} has no operation '{op}'") from None
        inputs = [self.value(name) if name else None for name in node.input]
        kinds = [self.kinds[name] if name else 0 for name in node.input]
        attributes = {a.name: a for a in node.attribute}
        return OnnxCall(
            b=self.builder,
            op=op,
            inputs=inputs,
            kinds=kinds,
            outputs=list(node.output),
            attributes=attributes,
            schema=schema,
            batch=self.batch,
            tensor=self.source.tensor,
        )

    def _outputs(self, call: OnnxCall, names: Sequence[str]) -> list[tuple[Value, Tensor | None]]:
        """The values of one operation, constants with their error."""
        if call.op == "Constant":
            return [(_literal(call), None)]
        if call.op in ("Shape", "Size") and isinstance(call.value(0), int):
            start, end = call.get("start", 0), call.get("end")
            call.kind = 7
            return [
                (torch.tensor(call.full[start:end]) if call.op == "Shape" else torch.tensor(call.full).prod(), None)
            ]
        errors = [self.errors.get(name) for name in names]
        served = CALLS.get(call.op)
        if served is not None:
            _check_version(call, served)
        if not any(isinstance(v, int) for v in call.inputs):
            made: list[tuple[Value, Tensor | None]] = list(folded(call, errors))
            if call.op not in MOVES and any(isinstance(v, Tensor) and v.is_floating_point() for v, _ in made):
                self.builder.computed.append(call.op)
            return made
        if served is None:
            raise UnsupportedError(f"the model uses '{call.op}', which the graph does not know")
        for value, error, name in zip(call.inputs, errors, names, strict=True):
            if isinstance(value, Tensor) and not known(value, error):
                raise UnsupportedError(
                    f"the constant '{name}' cancels to few digits; fold it before exporting the model"
                )
        kinds = {k for v, k in zip(call.inputs, call.kinds, strict=True) if isinstance(v, int)}
        if not kinds <= served.kinds:
            raise UnsupportedError(
                f"'{call.op}' of {', '.join(map(type_name, sorted(kinds - served.kinds)))} values that depend on the "
                f"model's input; served are {', '.join(map(type_name, sorted(served.kinds)))}: cast to float before it"
            )
        self.builder.origin = call.op
        found = served.handler(call)
        return [(v, None) for v in (found if isinstance(found, list) else [found])]


def _check_version(call: OnnxCall, served: OnnxOp) -> None:
    if call.schema.deprecated or not served.oldest <= call.version <= served.newest:
        raise UnsupportedError(
            f"'{call.op}' of opset {call.version}; served are its versions {served.oldest} to {served.newest}: convert the "
            "file with onnx.version_converter or export it again"
        )


def _literal(call: OnnxCall) -> Tensor:
    """The value of a Constant."""
    kinds = {"value_float": 1, "value_floats": 1, "value_int": 7, "value_ints": 7}
    if "value" in call.attributes:
        call.kind = int(call.attributes["value"].t.data_type)
        return call.get("value")
    name = next((name for name in kinds if name in call.attributes), None)
    if name is None:
        raise UnsupportedError(f"'Constant' with {', '.join(call.attributes) or 'nothing'}; served are dense numbers")
    call.kind = kinds[name]
    return torch.tensor(call.get(name), dtype=TYPES[call.kind])


def _needed(source: _Source) -> set[str]:
    """The values that the output needs: what stands beside them is nobody's business."""
    needed: set[str] = {source.output}
    for node in reversed(source.nodes):
        if needed.intersection(node.output):
            needed.update(name for name in node.input if name)
    return needed
