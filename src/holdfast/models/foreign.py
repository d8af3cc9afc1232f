"""Files that bring their own architecture: ONNX, Hugging Face, torch.export, TorchScript.

The last two run code on opening; `holdfast.models.load` comes here only after the guard has admitted the file.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch
from torch import nn

from holdfast.core.errors import HoldfastError, ModelError, UsageError
from holdfast.models.wrap import FixedMode, FromHF

__all__ = ["exported_module", "hugging_face_module", "onnx_module", "torchscript_module"]


def onnx_module(path: Path) -> nn.Module:
    """An ONNX file through our own reader, as a differentiable module.

    Raises:
        UsageError: the extra ``[onnx]`` is not installed.
        ModelError: damaged, or an operation that the reader does not know.
    """
    try:
        import onnx  # noqa: F401
    except ImportError:
        raise UsageError(f"{path} is an ONNX file; reading it needs the onnx package: pip install onnx") from None
    from holdfast.graph.onnx import read_onnx

    return read_onnx(path).as_module()


def hugging_face_module(folder: Path) -> tuple[nn.Module, tuple[str, ...]]:
    """An image classifier that ``save_pretrained`` wrote, its logits unwrapped; offline, and no code from the folder.

    Returns:
        the module and a note of the image processor's normalisation, which is not applied unless declared.

    Raises:
        UsageError: the extra ``[hf]`` is not installed.
        ModelError: no image classifier, or damaged.
    """
    try:
        from transformers import AutoModelForImageClassification
    except ImportError as fault:
        raise UsageError(f"{folder} is a Hugging Face folder; it needs transformers: pip install transformers ({fault})") from None
    try:
        module, info = AutoModelForImageClassification.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except Exception as fault:  # transformers raises what its layers raise
        raise ModelError(
            f"{folder} is no readable image classifier ({type(fault).__name__}: {str(fault)[:300]})"
        ) from None
    missing = sorted(info["missing_keys"])
    if missing:  # transformers would fill them with random numbers and warn
        raise ModelError(
            f"{folder}: weights are missing for {', '.join(missing[:8])}; is it the fine-tuned classifier?"
        )
    return FromHF(module), _processor_notes(folder / "preprocessor_config.json")


def _processor_notes(path: Path) -> tuple[str, ...]:
    if not path.is_file() or path.stat().st_size > 1 << 20:
        return ("the folder has no image processor, so its normalisation is unknown; declare it if there was one",)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not config.get("do_normalize", True):
            return ("the image processor does not normalise",)
        mean, std = (",".join(f"{float(v):g}" for v in config[key]) for key in ("image_mean", "image_std"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return ("the image processor's normalisation cannot be read; declare it if there was one",)
    return (f"the image processor normalises by {mean}/{std}; it is applied only if declared",)


def exported_module(path: Path) -> nn.Module:
    """A ``torch.export`` archive. Opening it runs its code.

    Raises:
        ModelError: damaged, or made by another version of PyTorch.
    """
    try:
        return FixedMode(torch.export.load(path).module())
    except Exception as fault:
        raise _unreadable(path, fault) from None


def torchscript_module(path: Path) -> nn.Module:
    """A TorchScript archive. Opening it runs its code.

    Raises:
        ModelError: damaged, or made by another version of PyTorch.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch announces that TorchScript is deprecated
            return torch.jit.load(path, map_location="cpu")
    except Exception as fault:
        raise _unreadable(path, fault) from None


def _unreadable(path: Path, fault: Exception) -> HoldfastError:
    return ModelError(f"{path} cannot be opened; damaged, or of another PyTorch? ({type(fault).__name__}: {fault})")
