"""A module's graph through ``torch.export`` (ATen operations, any batch size)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from holdfast.core.errors import HoldfastError, ModelError, UnsupportedError
from holdfast.graph.aten import CALLS, known
from holdfast.graph.aten_reader import Reader, call_name
from holdfast.graph.build import Builder
from holdfast.graph.model import Graph

__all__ = ["calls", "capture"]


def capture(module: nn.Module, example: Tensor) -> Graph:
    """See `holdfast.graph.Graph.from_module`."""
    samples = _samples(example)
    with _eval_mode(module), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            graph = _read(_exported(module, example, lead=1), example, lead=1)
        except HoldfastError as error:
            # it may mix the batch with the features, which for one sample at a time is no harm
            try:
                graph = _read(_exported(module, example, lead=0), example, lead=0)
                _check(graph, module, samples)
            except UnsupportedError as other:
                raise other from error
            except ModelError:
                raise error from None
        else:
            _check(graph, module, samples)
    return graph


def calls(module: nn.Module, example: Tensor) -> list[tuple[str, bool]]:
    """Every ATen call of a module that touches its input, with whether the graph knows it."""
    with _eval_mode(module), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = _exported(module, example, lead=1)
        except ModelError:
            program = _exported(module, example, lead=0)
    constant = {*program.graph_signature.inputs_to_parameters, *program.graph_signature.inputs_to_buffers}
    constant |= set(program.graph_signature.inputs_to_lifted_tensor_constants)
    touched: set[fx.Node] = set()
    found: list[tuple[str, bool]] = []
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name not in constant:
            touched.add(node)
        elif node.op == "call_function" and touched.intersection(node.all_input_nodes):
            touched.add(node)
            if call_name(node) != "getitem" and not isinstance(node.meta.get("val"), torch.SymInt | int):
                found.append((call_name(node), known(node)))
    return found


def _exported(module: nn.Module, example: Tensor, lead: int) -> ExportedProgram:
    """The module's ATen program, in which what the graph does not know is decomposed where PyTorch can.

    Args:
        module: the model, in eval mode.
        example: (n, \\*features).
        lead: 1 for any batch size, 0 for a batch of one.

    Raises:
        ModelError: PyTorch cannot capture the model.
    """
    # two samples where any batch is meant: an exported batch of one would be taken for a constant
    samples = _samples(example)[: 1 + lead]
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        program = torch.export.export(module, (samples,), dynamic_shapes=({0: Dim.DYNAMIC},) if lead else None)
        unknown = {n.target for n in program.graph.nodes if n.op == "call_function" and not known(n)}
        if unknown:
            table = torch.export.default_decompositions()
            program = program.run_decompositions({k: table[k] for k in unknown if k in table})
        return program
    except Exception as error:  # torch.export raises whatever the model's own code raised
        raise ModelError(f"torch.export cannot capture the model for any batch size: {error}") from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _samples(example: Tensor) -> Tensor:
    samples = torch.linspace(0, 1, 2 * example[:1].numel(), dtype=example.dtype, device=example.device)
    return samples.view(2, *example.shape[1:])


def _check(graph: Graph, module: nn.Module, samples: Tensor) -> None:
    """The graph must compute what the model does."""
    with torch.no_grad():
        expected, found = module(samples), graph.as_module()(samples)
    if found.shape == expected.shape and bool(torch.isfinite(expected).all()):
        tolerance = 1e-3 * float(expected.abs().max())
    else:
        tolerance = 0.0
    if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-3, atol=tolerance, equal_nan=True):
        raise ModelError("the captured graph does not compute what the model does; is the model random in eval mode?")


@contextmanager
def _eval_mode(module: nn.Module) -> Iterator[None]:
    modes = [(m, m.training) for m in module.modules()]
    try:
        module.eval()
        yield
    finally:
        for m, training in modes:
            m.training = training


def _read(program: ExportedProgram, example: Tensor, lead: int) -> Graph:
    signature = program.graph_signature
    targets = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    targets |= signature.inputs_to_lifted_tensor_constants
    held: dict[str, Any] = {**program.constants, **program.state_dict}
    dtype, shape = example.dtype, tuple(example.shape[1:])
    if not dtype.is_floating_point:
        floats = [t.dtype for t in held.values() if isinstance(t, Tensor) and t.is_floating_point()]
        dtype = next(iter(floats), torch.float32)
    reader = Reader(Builder(shape, dtype, example.device, lead), CALLS)
    for node in program.graph.nodes:
        if node.op == "placeholder":
            start = 0 if lead else reader.builder.reshape(0, (1, *shape))
            reader.values[node] = held[targets[node.name]] if node.name in targets else start
        elif node.op == "call_function":
            if node.users:
                reader.values[node] = reader.call(node)
        elif node.op == "output":
            outputs = node.args[0]
            if len(outputs) != 1:
                raise UnsupportedError(f"a model with {len(outputs)} outputs")
            output = reader.operand(outputs[0])
            if not lead and isinstance(output, int):
                output = reader.builder.reshape(output, reader.builder.shape(output)[1:])
            return reader.builder.finish(output)
        else:
            raise UnsupportedError(f"a captured node of kind {node.op}")
    raise ModelError("the captured program has no output")
