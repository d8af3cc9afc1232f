"""A model from a file, safe by default: nothing that could run code is opened without trust."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from holdfast.core.errors import UsageError
from holdfast.core.verdict import Subject
from holdfast.graph.model import GraphModule
from holdfast.models.arch import build_arch, working_folder_on_path
from holdfast.models.fingerprint import fingerprint
from holdfast.models.foreign import exported_module, onnx_module, torchscript_module
from holdfast.models.guard import Format, admit, inspect_file
from holdfast.models.hugging_face import hugging_face_module
from holdfast.models.weights import fill, read_objects, read_state, state_in
from holdfast.models.wrap import Normalisation, Normalised, with_two_classes

__all__ = ["LoadedModel", "load_model"]


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model ready to be asked.

    Attributes:
        module: (n, \\*features) float32 in the threat model's range -> (n, K) logits; in eval mode, on the device.
        subject: what its witnesses and certificates will be about.
        source: file and architecture, for people.
        format: what the file was.
        notes: what was noticed and done while loading.
        trusted: whether code from the file may have run.
    """

    module: nn.Module
    subject: Subject
    source: str
    format: Format
    notes: tuple[str, ...] = ()
    trusted: bool = False


def load_model(
    path: str | Path,
    *,
    arch: str | None = None,
    normalise: Normalisation | None = None,
    binary: Literal["logit", "probability"] | None = None,
    trust: bool = False,
    device: torch.device | str = "cpu",
    output: str | None = None,
) -> LoadedModel:
    """Load a classifier; the format is told by the file's content.

    Args:
        path: a state dict (``torch.save`` or safetensors; needs ``arch``), an ONNX file, a Hugging Face folder of an
            image classifier or, with ``trust`` only, a pickled module, a TorchScript or a ``.pt2`` archive.
        arch: ``package.module:function``, ``file.py:function`` or ``timm:NAME``: what builds the module.
        normalise: declared normalisation, put in front of the model.
        binary: the model has one output: the logit, or the probability, of class 1 of 2.
        trust: open files whose opening can run code.
        device: where the model goes.
        output: the output of an ONNX file that is meant, where it has several.

    Raises:
        UnsafeFileError: the file could run code and is not trusted (exit code 4).
        ModelError: damaged, unknown, or weights and architecture do not belong together.
        UsageError: an architecture is missing or not to be found.
    """
    path = Path(path)
    contents = inspect_file(path)
    admit(path, contents, trust=trust)
    if arch is not None and contents.format in (Format.ONNX, Format.HF_FOLDER, Format.PT2, Format.TORCHSCRIPT):
        raise UsageError(
            f"{path} is a file of the kind '{contents.format}', which holds its own architecture; leave out --arch"
        )
    module, notes = _read(path, contents.format, arch, trust, normalise is not None, output)
    others = {p.dtype for p in module.parameters() if p.is_floating_point()} - {torch.float32}
    notes = (*notes, *(f"some weights are {str(t).removeprefix('torch.')}; the model runs in float32" for t in others))
    module = module.float()
    if binary is not None:
        module, without = _before_sigmoid(module) if binary == "probability" else (module, False)
        notes = (
            (*notes, "the sigmoid at the end of the file is left out: its logit decides alike") if without else notes
        )
        module = with_two_classes(module, "logit" if without else binary)
    if normalise is not None:
        module = Normalised(module, normalise)
        notes = (*notes, f"declared normalisation {normalise} put in front of the model")
    module = module.to(device).eval()
    if contents.runs:
        notes = (*notes, f"opened with --trust; the file could run: {', '.join(contents.runs[:6])}")
    source = f"{path} ({arch})" if arch else str(path)
    return LoadedModel(
        module=module,
        subject=Subject("model", fingerprint(module)),
        source=source,
        format=contents.format,
        notes=notes,
        trusted=bool(contents.runs),
    )


def _before_sigmoid(module: nn.Module) -> tuple[nn.Module, bool]:
    """A graph without the sigmoid that it ends in, which would flatten the loss, and whether there was one."""
    if not isinstance(module, GraphModule) or module.graph.nodes[-1].op != "sigmoid":
        return module, False
    return module.before_last(), True


def _read(
    path: Path, kind: Format, arch: str | None, trust: bool, normalised: bool, output: str | None
) -> tuple[nn.Module, tuple[str, ...]]:
    match kind:
        case Format.SAFETENSORS | Format.STATE_DICT:
            return _assemble(*read_state(path, kind), arch, path, trust)
        case Format.PICKLE:
            return _pickled(path, arch, trust)
        case Format.ONNX:
            return onnx_module(path, output), ()
        case Format.HF_FOLDER:
            return hugging_face_module(path, processed=not normalised)
        case Format.PT2:
            return exported_module(path), ()
        case Format.TORCHSCRIPT:
            return torchscript_module(path), ()
        case Format.FUNCTION:
            raise UsageError(f"{path} is code, not a model file; name its function: {path}:NAME")


def _assemble(
    state: Mapping[str, Tensor], notes: tuple[str, ...], arch: str | None, path: Path, trust: bool
) -> tuple[nn.Module, tuple[str, ...]]:
    if arch is None:
        raise UsageError(
            f"{path} holds weights alone; name the function that builds the model: --arch package.module:function"
        )
    module, noticed = build_arch(arch, state, trust=trust)
    return module, (*notes, *noticed, *fill(module, state, what=arch))


def _pickled(path: Path, arch: str | None, trust: bool) -> tuple[nn.Module, tuple[str, ...]]:
    with working_folder_on_path():
        held = read_objects(path, trust=trust)
    if not isinstance(held, nn.Module):
        return _assemble(*state_in(held, path), arch, path, trust)
    if arch is not None:
        raise UsageError(f"{path} holds a whole module, {type(held).__name__}; leave out --arch")
    return held, ()
