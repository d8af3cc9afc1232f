"""Which operations a model uses and whether the graph knows them, all of them at once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from holdfast.core.errors import UsageError

__all__ = ["Use", "survey"]


class Use(NamedTuple):
    """One kind of operation in a model.

    Attributes:
        name: the ONNX operation, or the ATen call of a module.
        times: how often the model uses it.
        known: whether the graph knows it; an operation of constants alone is computed while reading and counts as
            known. A known operation may still be refused in a form that the graph cannot have.
    """

    name: str
    times: int
    known: bool


def survey(model: str | Path | nn.Module, example: Tensor | None = None) -> list[Use]:
    """All operations of a model, those that the graph does not know first, then by name.

    Args:
        model: an ONNX file or a module.
        example: (n, \\*features), which a module needs; only its shape, type and device matter.

    Raises:
        UsageError: a module without an example, or an ONNX file without the `onnx` package.
        ModelError: a model that cannot be read at all.

    Example:
        >>> import torch
        >>> survey(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.ReLU()), torch.zeros(1, 2))
        [Use(name='linear', times=1, known=True), Use(name='relu', times=2, known=True)]
    """
    if isinstance(model, nn.Module):
        if example is None:
            raise UsageError("the operations of a module need an example: survey(module, example)")
        from holdfast.graph.tracing import calls

        found = calls(model, example)
    else:
        from holdfast.graph.onnx import operations

        found = operations(model)
    counts = Counter(name for name, _ in found)
    known = {name: all(k for n, k in found if n == name) for name in counts}
    return sorted((Use(name, counts[name], known[name]) for name in counts), key=lambda use: (use.known, use.name))
