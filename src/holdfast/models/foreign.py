"""Files that bring their own architecture: ONNX, torch.export, TorchScript.

The last two run code on opening; `holdfast.models.load` comes here only after the guard has admitted the file.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from holdfast.core.errors import HoldfastError, ModelError, UnsupportedError, UsageError
from holdfast.models.wrap import FixedMode

__all__ = ["exported_module", "onnx_module", "torchscript_module"]


def onnx_module(path: Path, output: str | None = None) -> nn.Module:
    """An ONNX file through our own reader, as a differentiable module, held against the file itself.

    Args:
        path: the file.
        output: the name of the output that is meant; a file with one needs none.

    Raises:
        UsageError: the package onnx is not installed.
        ModelError: damaged, several outputs and none named, or a graph that is not what onnxruntime runs.
        UnsupportedError: an operation that the reader does not know; the file can be asked all the same.
    """
    try:
        import onnx  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError:
        raise UsageError(f"{path} is an ONNX file; reading it needs the onnx package: pip install onnx") from None
    from holdfast.graph.onnx import read_onnx
    from holdfast.graph.onnx_truth import OnnxFile, believe

    try:
        graph = read_onnx(path, output)
    except UnsupportedError as fault:
        raise UnsupportedError(
            f"{fault}. Attacks that only ask it run through onnxruntime: holdfast audit --suite black-box --certify none"
        ) from fault
    rows = [len(node.tensors["weight"]) for node in graph.nodes if node.op == "embedding"]
    # nothing is known yet of the data: numbers around those that models are fed with, or words of the smallest table
    low, high = (0.0, float(min(rows, default=128) - 1)) if graph.whole else (-1.0, 1.0)
    believe(path, graph, torch.full(graph.input_shape, low), torch.full(graph.input_shape, high), output)
    module = graph.as_module()
    module.source = OnnxFile(path, output, path.stat().st_mtime_ns)
    return module


def exported_module(path: Path) -> nn.Module:
    """A ``torch.export`` archive. Opening it runs its code.

    Raises:
        ModelError: damaged, or made by another version of PyTorch.
    """
    try:
        return FixedMode(torch.export.load(path).module())
    except Exception as fault:  # the readers of both formats have no common error
        raise _unreadable(path, fault) from None


def torchscript_module(path: Path) -> nn.Module:
    """A TorchScript archive. Opening it runs its code.

    Raises:
        ModelError: damaged, or made by another version of PyTorch.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch announces that TorchScript is deprecated
            return cast(Any, torch.jit).load(path, map_location="cpu")
    except Exception as fault:  # the readers of both formats have no common error
        raise _unreadable(path, fault) from None


def _unreadable(path: Path, fault: Exception) -> HoldfastError:
    return ModelError(f"{path} cannot be opened; damaged, or of another PyTorch? ({type(fault).__name__}: {fault})")
