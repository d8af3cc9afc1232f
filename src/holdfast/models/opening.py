"""A model by the name that a command gives: a file with a graph, or one that can only be asked.

What the graph cannot serve is opened to be asked: by onnxruntime, as an estimator, or as a function of a Python file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from holdfast.core.errors import ModelError, UnsafeFileError, UnsupportedError, UsageError
from holdfast.core.verdict import Subject
from holdfast.graph.model import GraphModule
from holdfast.models.estimator import is_estimator_file, read_estimator
from holdfast.models.fingerprint import fingerprint
from holdfast.models.guard import Format, admit, inspect_file
from holdfast.models.load import LoadedModel, load_model
from holdfast.models.onnx_runtime import OnnxRuntime
from holdfast.models.predict import PredictFunction, function_of
from holdfast.models.queries_only import QueriesOnly
from holdfast.models.wrap import Normalisation, Normalised, with_two_classes

__all__ = ["open_model"]


def open_model(
    name: str,
    *,
    arch: str | None = None,
    normalise: Normalisation | None = None,
    binary: Literal["logit", "probability"] | None = None,
    trust: bool = False,
    device: torch.device | str = "cpu",
    output: str | None = None,
    classes: int | Sequence[Any] | None = None,
    pixel: float = 255.0,
) -> LoadedModel:
    """A model to be audited.

    Args:
        name: a file as `load_model` takes it, a pickled estimator, or ``predict.py:function``.
        arch: see `load_model`.
        normalise: see `load_model`.
        binary: see `load_model`.
        trust: run the code that the file is or holds.
        device: where the model goes; what is only asked stays on the CPU.
        output: the output of an ONNX file that is meant.
        classes: how many classes, or their names, where the model answers labels and does not say it.
        pixel: what an input of 1 is as a pixel, for ONNX files that take uint8.

    Returns:
        The model; its module is a `QueriesOnly` where it gives no gradients.

    Raises:
        UnsafeFileError: it runs code and is not trusted.
        ModelError: see `load_model`.
        UsageError: see `load_model`; a flag that does not belong to such a model.
    """
    if function_of(name) is not None:
        _belongs(name, "a function", arch=arch, output=output)
        model = PredictFunction(name, trust=trust, classes=classes)
        return _asked(model, name, Format.FUNCTION, normalise, binary, trusted=True)
    path = Path(name)
    if path.suffix == ".py" and path.is_file():
        raise UsageError(f"{name} is code; name the function that answers: --model {name}:FUNCTION")
    contents = inspect_file(path)
    if contents.format is not Format.ONNX:
        _belongs(name, f"a file of the kind '{contents.format}'", output=output)
    if contents.format is Format.PICKLE and arch is None and is_estimator_file(contents.runs):
        admit(path, contents, trust=trust)
        return _asked(read_estimator(path), name, contents.format, normalise, binary, trusted=True)
    if contents.format is not Format.ONNX or arch is not None:
        return load_model(path, arch=arch, normalise=normalise, binary=binary, trust=trust, device=device)
    try:
        loaded = load_model(path, normalise=normalise, binary=binary, device=device, output=output)
    except UnsafeFileError:
        raise
    except (UnsupportedError, ModelError) as fault:
        reason = str(fault.__cause__ if isinstance(fault.__cause__, UnsupportedError) else fault)
    else:
        # The graph takes whole numbers as they are: it stands for a file of uint8 only where inputs are levels already.
        if pixel == 1.0 or not _takes_uint8(path, loaded):
            return loaded
        reason = (
            f"it takes uint8, and an input of 1 is the level {pixel:g}; data in levels, under a threat with high=255, keep "
            "its gradients"
        )
    try:
        why = f"the graph cannot serve it ({reason})"
        model = OnnxRuntime(path, output=output, classes=classes, pixel=pixel, why=why)
    except ModelError as fault:
        raise ModelError(f"{reason}; and {fault}") from None
    return _asked(model, name, Format.ONNX, normalise, binary, trusted=False)


def _takes_uint8(path: Path, loaded: LoadedModel) -> bool:
    whole = any(isinstance(part, GraphModule) and part.graph.whole for part in loaded.module.modules())
    if not whole:
        return False
    from holdfast.graph.onnx import input_type  # needs the onnx package, which has read the file by now

    return input_type(path) == "uint8"


def _asked(
    model: QueriesOnly,
    source: str,
    kind: Format,
    normalise: Normalisation | None,
    binary: Literal["logit", "probability"] | None,
    *,
    trusted: bool,
) -> LoadedModel:
    notes = (f"{source} is asked only, with no gradient and no certificate: {model.why}", *model.notes)
    module = with_two_classes(model, binary)
    if normalise is not None:
        module = Normalised(module, normalise)
        notes = (*notes, f"declared normalisation {normalise} put in front of the model")
    subject = model.subject if module is model else Subject("model", fingerprint(module), model.what)
    return LoadedModel(module=module.eval(), subject=subject, source=source, format=kind, notes=notes, trusted=trusted)


def _belongs(name: str, kind: str, **flags: str | None) -> None:
    for flag, value in flags.items():
        if value is not None:
            raise UsageError(f"{name} is {kind}, to which --{flag} does not belong; leave it out")
