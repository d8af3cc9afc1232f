"""ONNX files that the graph cannot serve, asked through onnxruntime: quantised networks, trees, scikit-learn's exports."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from typing_extensions import override

from holdfast.core.errors import ModelError, UsageError
from holdfast.core.kinds import is_list
from holdfast.models.queries_only import QueriesOnly

__all__ = ["OnnxRuntime", "onnx_identity", "output_named"]

_TYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8,
}
_PIXEL = 255.0


class _Port(Protocol):
    """What onnxruntime says of an input or output; a size of the shape is a number, a name or open."""

    name: str
    type: str
    shape: Sequence[int | str | None]


class OnnxRuntime(QueriesOnly):
    """An ONNX file in onnxruntime on the CPU: one session, one thread, so that its sums are always taken in one order.

    A file with a fixed batch is asked in parts of that size, the last one filled up with copies. Inputs of type uint8 are
    pixels: x is multiplied by ``pixel`` and rounded to the nearest level before the file sees it.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        output: str | None = None,
        classes: int | Sequence[Any] | None = None,
        pixel: float = _PIXEL,
        why: str = "it runs in onnxruntime, which gives no gradients",
    ) -> None:
        """Opens a session.

        Args:
            path: the file.
            output: which of its outputs holds the scores or labels; needed where it has several.
            classes: how many classes, or their names in order, where it answers labels and does not say it.
            pixel: what an input of 1 is as a pixel, for files that take uint8.
            why: why there is no gradient.

        Raises:
            UsageError: onnxruntime is not installed, or there is no such output.
            ModelError: onnxruntime cannot open the file, or its input is none that can be served.
        """
        path = Path(path)
        try:
            import onnxruntime  # pyright: ignore[reportMissingTypeStubs]  # it comes without types
        except ImportError:
            raise UsageError(f"asking {path} needs the onnxruntime package: pip install onnxruntime") from None
        identity = onnx_identity(path)
        runtime = cast(Any, onnxruntime)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        try:
            session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as fault:  # onnxruntime's errors have no common class
            raise ModelError(f"onnxruntime cannot open {path}: {_line(fault)}") from None
        inputs: Sequence[_Port] = session.get_inputs()
        outputs: Sequence[_Port] = session.get_outputs()
        if len(inputs) != 1 or inputs[0].type not in _TYPES:
            got = ", ".join(f"{i.name} {i.type}" for i in inputs)
            raise ModelError(
                f"{path} takes the inputs {got}; served is one input of float, double, float16 or uint8, so join the columns "
                "into one before the export, or write a predict.py:function"
            )
        chosen = output_named(path, [(o.name, f"{o.type} {o.shape}") for o in outputs], output)
        names = classes if classes is not None else _class_names(path)
        digest = hashlib.sha256(f"{identity}\x1foutput={chosen}".encode()).hexdigest()
        super().__init__(digest, f"{path.name} in onnxruntime{f', output {chosen}' if output else ''}", why, names)
        self._session, self._input, self._output = session, inputs[0], chosen
        self._type, self._pixel = _TYPES[inputs[0].type], pixel
        shape = inputs[0].shape
        self._batch = shape[0] if shape and isinstance(shape[0], int) and shape[0] > 0 else None
        self._features = tuple(shape[1:]) if shape else None  # of a rank that the file leaves open

    @property
    @override
    def notes(self) -> tuple[str, ...]:
        """What was noticed."""
        if self._type is not np.uint8:
            return ()
        return (
            f"the file takes uint8: inputs are multiplied by {self._pixel:g} and rounded to the nearest level; "
            "--grid 1/255 also judges what lies on the levels",
        )

    @override
    def ask(self, x: np.ndarray) -> np.ndarray:
        """(n, \\*features) float32 -> scores (n, K) or labels (n,)."""
        x = self._shaped(x)
        if self._type is np.uint8:
            x = np.clip(np.rint(x.astype(np.float64) * self._pixel), 0, 255)
        x = x.astype(self._type)
        size = self._batch or len(x)
        parts: list[np.ndarray] = []
        for at in range(0, len(x), size):
            part = x[at : at + size]
            filled = np.concatenate([part, np.repeat(part[-1:], size - len(part), 0)])
            parts.append(self._run(filled)[: len(part)])
        return np.concatenate(parts)

    def _shaped(self, x: np.ndarray) -> np.ndarray:
        wanted, given = self._features, x.shape[1:]
        if wanted is None:
            return x
        if len(wanted) == 1 and wanted[0] == int(np.prod(given)):
            return x.reshape(len(x), -1)
        fits = len(wanted) == len(given) and all(
            not isinstance(w, int) or w == g for w, g in zip(wanted, given, strict=True)
        )
        if not fits:
            raise ModelError(f"{self.what} takes rows of the shape {wanted}, and the data has {tuple(given)}")
        return x

    def _run(self, x: np.ndarray) -> np.ndarray:
        try:
            answer = self._session.run([self._output], {self._input.name: x})[0]
        except Exception as fault:  # onnxruntime's errors have no common class
            raise ModelError(f"onnxruntime fails on {self.what}: {_line(fault)}") from None
        if is_list(answer):  # a ZipMap: for each row the scores by class
            return self.by_class(answer, "export with options={'zipmap': False}")
        return np.asarray(answer)


def output_named(path: Path, outputs: Sequence[tuple[str, str]], wanted: str | None) -> str:
    """The output that a flag names, or the only one.

    Args:
        path: the file, for messages.
        outputs: name and type of each.
        wanted: the flag.

    Raises:
        UsageError: several and none named, or no such name; the message lists them.
    """
    names = [name for name, _ in outputs]
    listed = ", ".join(f"{name} ({kind})" for name, kind in outputs)
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted is None:
        raise UsageError(f"{path} has {len(names)} outputs: {listed}; say which holds the scores: --output NAME")
    if wanted not in names:
        raise UsageError(f"{path} has no output '{wanted}'; it has {listed}")
    return wanted


def onnx_identity(path: Path) -> str:
    """SHA-256 of a file and of the files beside it that hold its weights.

    Raises:
        UsageError: the onnx package is not installed.
        ModelError: damaged, or weights that are missing or outside its folder.
    """
    try:
        import onnx
    except ImportError:
        raise UsageError(f"{path} is an ONNX file; reading it needs the onnx package: pip install onnx") from None
    digest = hashlib.sha256(path.read_bytes())
    try:
        model = cast(Any, onnx).load(str(path), load_external_data=False)
    except Exception as fault:  # protobuf's errors have no common class
        raise ModelError(f"{path} is no readable ONNX file: {_line(fault)}") from None
    folder = path.resolve().parent
    places = {e.value for t in _tensors(model) for e in t.external_data if e.key == "location"}
    for place in sorted(places):
        file = (folder / place).resolve()
        if not file.is_relative_to(folder):
            raise ModelError(f"{path} takes weights from {place}, outside its folder; nothing is read from there")
        if not file.is_file():
            raise ModelError(f"{path} keeps its weights in {place}, which is missing beside it")
        digest.update(f"\n{place}\n".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _tensors(model: Any) -> list[Any]:
    """Every tensor of a model that may lie outside of it, those of inner graphs among them."""
    found, graphs = list[Any](), [model.graph]
    while graphs:
        graph = graphs.pop()
        found += graph.initializer
        for node in graph.node:
            for attribute in node.attribute:
                found += [attribute.t, *attribute.tensors]
                graphs += [attribute.g, *attribute.graphs] if attribute.g.node or attribute.graphs else []
    found += [t for f in model.functions for n in f.node for a in n.attribute for t in (a.t, *a.tensors)]
    return [t for t in found if t.external_data]


def _class_names(path: Path) -> tuple[Any, ...] | None:
    """The classes that an operation of ai.onnx.ml names."""
    import onnx

    found: tuple[Any, ...] | None = None
    for node in cast(Any, onnx).load(str(path), load_external_data=False).graph.node:
        for attribute in node.attribute:
            if attribute.name.startswith("classlabels"):
                found = tuple(s.decode() for s in attribute.strings) or tuple(attribute.ints) or found
    return found


def _line(fault: Exception) -> str:
    return " ".join(str(fault).split())[:300]
