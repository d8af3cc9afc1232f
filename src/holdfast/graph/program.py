"""A module's ATen program through ``torch.export``, without what PyTorch prints, and what its refusals mean in a sentence."""

from __future__ import annotations

import io
import logging
import traceback
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from holdfast.core.errors import ModelError
from holdfast.graph.aten import known
from holdfast.graph.torch_calls import PartOfProgram, overload_of, schema_of

__all__ = ["exported", "first_line"]


def exported(module: nn.Module, example: Tensor, batch_dims: int) -> ExportedProgram:
    """The module's ATen program, without writing in place; what the graph does not know is decomposed where PyTorch can.

    Args:
        module: the model, in eval mode.
        example: (n, \\*features).
        batch_dims: 1 for any batch size, 0 for a batch of one.

    Raises:
        ModelError: PyTorch cannot capture the model.
    """
    # two samples where any batch is meant: an exported batch of one would be taken for a constant
    samples = torch.linspace(0, 1, 2 * example[:1].numel(), dtype=example.dtype, device=example.device)
    samples = samples.view(2, *example.shape[1:])[: 1 + batch_dims]
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        with _quiet():
            program = torch.export.export(
                module, (samples,), dynamic_shapes=({0: Dim.DYNAMIC},) if batch_dims else None
            )
            if any(_impure(n) for n in program.graph.nodes):
                # an empty table: only what writes in place, and what stands in parts of its own, becomes plain calls
                program = _decomposed(program, {})
            unknown = {n.target for n in program.graph.nodes if n.op == "call_function" and not known(n)}
            if unknown:
                table = torch.export.default_decompositions()
                program = _decomposed(program, {k: table[k] for k in unknown if k in table})
        return program
    except Exception as error:  # torch.export raises whatever the model's own code raised
        raise ModelError(_refusal(error)) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _decomposed(program: ExportedProgram, table: Mapping[Any, Any]) -> ExportedProgram:
    return cast("Any", program).run_decompositions(table)


def _impure(node: fx.Node) -> bool:
    """Whether a call writes in place, or is a part of the program of its own (under no_grad, for instance)."""
    overload = overload_of(node)
    if overload is not None:
        return schema_of(overload).is_mutable
    return isinstance(node.target, PartOfProgram)


def _refusal(error: Exception) -> str:
    """What PyTorch says at length, in its first sentence and with the line of the model's own code."""
    frames: list[traceback.FrameSummary] = []
    cause: BaseException | None = error
    while cause is not None:
        frames += traceback.extract_tb(cause.__traceback__)
        cause = cause.__cause__ or cause.__context__
    own = [
        f for f in frames if not {"torch", "holdfast"}.intersection(Path(f.filename).parts) and f.filename[:1] != "<"
    ]
    at = f" (line {own[-1].lineno} of {Path(own[-1].filename).name}: {own[-1].line})" if own else ""
    text = str(error).strip() or type(error).__name__
    if "data-dependent" in text or "data dependent" in text:
        return (
            f"torch.export cannot capture the model: its code decides by the values of the input{at}; the graph serves "
            "models that do the same operations for every input (attacks need no graph)"
        )
    if text.startswith("Constraints violated"):
        return (
            "torch.export cannot capture the model: its code decides by the number of inputs in the batch; the graph "
            "serves models that answer each input by itself (attacks need no graph)"
        )
    return f"torch.export cannot capture the model{at}: {first_line(error)}"


def first_line(error: Exception) -> str:
    """What an error says first."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]


@contextmanager
def _quiet() -> Generator[None, None, None]:
    """Without PyTorch's warnings, its log of an export that fails, and the program that it prints to stderr then; what it
    means is said in the error."""
    before = logging.root.manager.disable
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(before)
