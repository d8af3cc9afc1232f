"""What an ONNX file really computes, by onnxruntime, and the graph held against it before anybody believes it.

Where onnxruntime is not installed, or does not run the file, another reader of ours stands in that shares no code with
this one: that of the checker of proofs, for the operations that it knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast.core.arrays import tensor_of
from holdfast.core.errors import ModelError
from holdfast.graph.compare import Recording, compare
from holdfast.graph.model import Graph
from holdfast.graph.onnx import parsed, read_onnx, reading

__all__ = ["KINDS", "OnnxFile", "believe", "session"]

KINDS: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(int16)": np.int16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
}


def believe(path: Path, graph: Graph, low: Tensor, high: Tensor, output: str | None = None) -> str:
    """Holds a graph against the file that it was read from, on points of a box.

    Args:
        path: the file.
        graph: what `read_onnx` made of it.
        low: (\\*features), the smallest inputs.
        high: (\\*features), the largest.
        output: the name of the output that the graph ends in.

    Returns:
        What it was compared with: ``onnxruntime`` and its version, ``our own second evaluation``, or that neither can run
        the file and ``only one reading exists``.

    Raises:
        ModelError: the graph is not the model, or onnxruntime cannot run it at an input of the box.
    """
    run = _runtime(path, path.stat().st_mtime_ns)
    if run is not None:
        names = [output or run.get_outputs()[0].name]
        one = run.get_inputs()[0]

        def truth(x: Tensor) -> Tensor:
            return torch.cat([y[0] for y in _fed(run, one, names, x, graph)])

        def recording() -> Recording:
            return _recording(path, graph, output)

        compare(graph, truth, low, high, whole=graph.whole, recording=recording)
        return f"onnxruntime {_onnxruntime().__version__}"
    other = None if output is not None else _second(path)
    if other is None:
        return "nothing: only one reading exists"
    compare(graph, other, low, high, whole=graph.whole)
    return "our own second evaluation"


@dataclass(frozen=True)
class OnnxFile:
    """A file that a module was read from; see `holdfast.graph.model.Source`.

    Attributes:
        path: the file.
        output: the name of the output that is meant.
        changed: when it was last written to, at the time of reading.
    """

    path: Path
    output: str | None
    changed: int

    def hold(self, low: Tensor, high: Tensor) -> str:
        """See `believe`; the file is read again, since a module has its constants in its own type only.

        Raises:
            ModelError: the graph is not the file's, or the file is another one by now.
        """
        if not self.path.is_file() or self.path.stat().st_mtime_ns != self.changed:
            raise ModelError(
                f"{self.path} was changed or moved after it was opened; start again with the file in its place"
            )
        graph = read_onnx(self.path, self.output, low.numel())
        return believe(self.path, graph, low.reshape(graph.input_shape), high.reshape(graph.input_shape), self.output)


def session(path: Path | bytes) -> Any:
    """An onnxruntime session on one thread that says nothing; raises what onnxruntime raises."""
    onnxruntime = _onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = 1, 1, 4
    given = path if isinstance(path, bytes) else str(path)
    return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])


def _onnxruntime() -> Any:
    import onnxruntime  # pyright: ignore[reportMissingTypeStubs]  # it comes without types

    return onnxruntime


@lru_cache(2)
def _runtime(path: Path, changed: int) -> Any:
    """A session, or None where onnxruntime is absent or does not serve the file."""
    try:
        return session(path)
    except ImportError:
        return None
    except Exception:  # onnxruntime's errors have no public common type; a file it does not load it cannot judge
        return None


def _fed(run: Any, one: Any, names: list[str], x: Tensor, graph: Graph) -> Iterable[list[Tensor]]:
    """The named outputs for each input, or for as many as the file takes at once; (n, ...) each."""
    shape = [size if isinstance(size, int) and size > 0 else 1 for size in one.shape]
    rows = torch.Size(shape).numel() // max(torch.Size(graph.input_shape).numel(), 1)
    for start in range(0, len(x), rows):
        given = x[start : start + rows]
        given = torch.cat([given, given[-1:].expand(rows - len(given), *given.shape[1:])])
        try:
            found = run.run(names, {one.name: given.numpy().astype(KINDS[one.type]).reshape(shape)})
        except Exception as error:  # as above
            raise ModelError(f"onnxruntime cannot run the model at an input of the set: {error}") from None
        kept = min(rows, len(x) - start)
        yield [_rows(np.asarray(y), rows)[:kept] for y in found]


def _rows(value: Any, rows: int) -> Tensor:
    found = tensor_of(value.astype(np.float64))
    return found.reshape(rows, -1) if found.numel() % rows == 0 else found.reshape(1, -1)


def _recording(path: Path, graph: Graph, output: str | None) -> Recording:
    """Every value of the file that depends on its input, by onnxruntime and in the graph before it was made smaller."""
    import onnx

    model, _ = parsed(path)
    read = reading(path, output, torch.Size(graph.input_shape).numel())
    asked = {o.name for o in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in read.places if name not in asked)
    run = session(model.SerializeToString())
    kinds = {o.name: o.type for o in run.get_outputs()}
    names = [name for name in read.places if kinds.get(name) in KINDS]

    def steps(x: Tensor) -> Iterable[tuple[str, int, Tensor]]:
        (values,) = _fed(run, run.get_inputs()[0], names, x, graph)
        for name, value in zip(names, values, strict=True):
            place, operation = read.places[name]
            yield operation, place, value

    return Recording(read.traced, steps)


def _second(path: Path) -> Callable[[Tensor], Tensor] | None:
    """The checker's reading of a file as a function, or None where it does not know the file."""
    from holdfast.checker.onnx_network import read_network
    from holdfast.checker.rounding import Rejected

    try:
        network = read_network(path.read_bytes())
    except Rejected:
        return None
    return lambda x: tensor_of(network.values(x.double().numpy())[-1])
