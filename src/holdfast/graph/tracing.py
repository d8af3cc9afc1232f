"""A module's graph through ``torch.export`` (ATen operations, any batch size), compared with the module itself."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind
from torch.utils import _pytree as pytree
from typing_extensions import override

from holdfast.core.errors import HoldfastError, ModelError, UnsupportedError
from holdfast.graph.aten import CALLS, WHOLE, known
from holdfast.graph.aten_call import call_name, where_of
from holdfast.graph.aten_reader import AtenReader
from holdfast.graph.build import Builder
from holdfast.graph.compare import Recording, compare
from holdfast.graph.kept import unchanged_by_answers
from holdfast.graph.model import Graph
from holdfast.graph.program import exported, first_line
from holdfast.graph.refusals import advised
from holdfast.graph.simplify import lifted, simplify

__all__ = ["calls", "exported", "read", "trace"]

# where a graph is compared while no set is known: what activations bend at, images in [0, 255], and tables
_REGIONS = ((-3.0, 3.0), (0.0, 1.0), (-300.0, 300.0))


def trace(module: nn.Module, example: Tensor, box: tuple[Tensor, Tensor] | None = None) -> Graph:
    """Reads a module's graph through ``torch.export``, in eval mode; the module itself is left as it was.

    Args:
        module: the model.
        example: (n, \\*features), any n of at least 1; only its shape, type and device matter.
        box: where the graph is compared with the module, the least and the largest inputs (\\*features); None: the set is
            not known yet, and several wide regions stand for it.

    Returns:
        The simplified graph: batch norms folded, dropout and the like gone, any batch size.

    Raises:
        UnsupportedError: an operation outside the vocabulary; the message names it.
        ModelError: the model cannot be captured for any batch size, or the graph is another function than the module.

    Example:
        >>> graph = trace(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), torch.zeros(1, 2))
        >>> [node.op for node in graph.nodes]
        ['input', 'linear', 'relu']
    """
    with _eval_mode(module):
        _refuse_memory(module, example)
        try:
            return _captured(module, example, box, batch_dims=1)
        except HoldfastError as error:
            # it may mix the batch with the features, which for one sample at a time is no harm
            try:
                return _captured(module, example, box, batch_dims=0)
            except UnsupportedError as other:
                raise advised(other) from error
            except ModelError:
                raise advised(error) if isinstance(error, UnsupportedError) else error from None


def _refuse_memory(module: nn.Module, example: Tensor) -> None:
    """A model that draws or counts where `torch.export` does not look is no graph."""
    x = example[:1].detach()
    try:
        with torch.no_grad():
            module(x.clone())  # what is kept from a first call on is no change
            with unchanged_by_answers(module):
                module(x.clone())
                module((x / 2 if x.is_floating_point() else x).clone())
    except HoldfastError:
        raise
    except Exception:  # the model's own code may raise anything; the export says what in full
        return


def calls(module: nn.Module, example: Tensor) -> list[tuple[str, bool]]:
    """Every ATen call of a module that touches its input, with whether the graph knows it."""
    with _eval_mode(module):
        try:
            program = exported(module, example, batch_dims=1)
        except ModelError:
            program = exported(module, example, batch_dims=0)
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


def _captured(module: nn.Module, example: Tensor, box: tuple[Tensor, Tensor] | None, batch_dims: int) -> Graph:
    """The graph of a module, read and compared."""
    program = exported(module, example, batch_dims)
    outputs = sum(spec.kind is OutputKind.USER_OUTPUT for spec in program.graph_signature.output_specs)
    if outputs != 1:
        raise UnsupportedError(_outputs(outputs))
    reader, graph = read(program, example, batch_dims)

    def recording() -> Recording:
        return Recording(Graph(tuple(reader.builder.nodes), reader.builder.dtype), lambda x: _steps(program, reader, x))

    whole, shape = not example.dtype.is_floating_point, graph.input_shape
    if box is not None:
        compare(graph, lambda x: _scores(module, x), *box, whole=whole, recording=recording)
        return graph
    compared = _Compared(graph, module)
    regions = ((0.0, _words(graph) - 1.0),) if whole else _REGIONS
    for low, high in regions:
        ends = (torch.full(shape, v, dtype=torch.float64, device=example.device) for v in (low, high))
        compare(graph, compared, *ends, whole=whole, recording=recording)
    return graph


class _Compared:
    """A module as the truth where no set is known: what is no number there is left open, as no set may reach it.

    A number of the wide regions may overflow the type of the module where the graph, in float64, does not; on the set
    at hand the two are compared again, and strictly.
    """

    def __init__(self, graph: Graph, module: nn.Module) -> None:
        self.graph, self.module = graph, module

    def __call__(self, x: Tensor) -> Tensor:
        """The module's scores (n, ...)."""
        scores = _scores(self.module, x)
        if bool(scores.isfinite().all()):
            return scores
        exact = self.graph.to(torch.float64).as_module()(x if not x.is_floating_point() else x.double())
        return torch.where(scores.isfinite(), scores, exact.reshape(scores.shape).to(scores.dtype))


def _scores(module: nn.Module, x: Tensor) -> Tensor:
    """The one tensor that a module gives, whatever it is wrapped in."""
    try:
        answer = module(x)
    except Exception as error:  # whatever the model's own code raises
        kind = f"{str(x.dtype).removeprefix('torch.')} of shape {tuple(x.shape)}"
        raise ModelError(f"the model cannot run on inputs in {kind}: {first_line(error)}") from error
    leaves = [v for v in pytree.tree_leaves(answer) if isinstance(v, Tensor)]
    if len(leaves) != 1:
        raise UnsupportedError(_outputs(len(leaves)))
    return leaves[0]


def _outputs(count: int) -> str:
    return f"a model with {count} outputs; the graph has one: wrap it in a module that returns the scores alone"


def _words(graph: Graph) -> int:
    """How many different whole numbers the embeddings of a graph take."""
    return min((len(n.tensors["weight"]) for n in graph.nodes if n.op == "embedding"), default=2)


def _steps(program: ExportedProgram, reader: AtenReader, x: Tensor) -> Iterable[tuple[str, int, Tensor]]:
    """Each call of a program that depends on the input: its name, its node of the graph and its value for ``x``."""
    held, steps = _held(program), list[tuple[str, int, Tensor]]()

    class Noting(fx.Interpreter):
        @override
        def run_node(self, n: fx.Node) -> Any:
            value, place = super().run_node(n), reader.values.get(n)
            if isinstance(value, Tensor) and isinstance(place, int) and n.op == "call_function":
                steps.append((f"'{call_name(n)}'{where_of(n)}", place, value))
            return value

    given = [held.get(n, x) for n in program.graph.nodes if n.op == "placeholder"]
    Noting(program.graph_module).run(*given)
    return steps


@contextmanager
def _eval_mode(module: nn.Module) -> Generator[None, None, None]:
    modes = [(m, m.training) for m in module.modules()]
    try:
        with suppress(NotImplementedError):  # an exported program stays in its mode, and its calls say which
            module.eval()
        yield
    finally:
        for m, training in modes:
            m.training = training


def read(program: ExportedProgram, example: Tensor, batch_dims: int, output: int = 0) -> tuple[AtenReader, Graph]:
    """The graph of one output of a program, with the reader that knows which call became which node.

    Args:
        program: without writing in place.
        example: (n, \\*features), of which shape, type and device count.
        batch_dims: 1 for any batch size, 0 for a batch of one.
        output: which of the program's outputs.

    Raises:
        UnsupportedError: what the graph does not serve, by name.
        ModelError: the output does not depend on the input.
    """
    _refuse_state(program)
    dtype, shape, held = example.dtype, tuple(example.shape[1:]), _held(program)
    if not dtype.is_floating_point:
        floats = [t.dtype for t in held.values() if isinstance(t, Tensor) and t.is_floating_point()]
        dtype = next(iter(floats), torch.float32)
    reader = AtenReader(Builder(shape, dtype, example.device, batch_dims), CALLS, WHOLE)
    end = list(program.graph.output_node().args[0])[output]  # type: ignore[arg-type]
    needed = _ancestors(end)
    for node in program.graph.nodes:  # first of all: a random model hears that it is random
        reader.refuse(node, node in needed)
    for node in program.graph.nodes:
        if node.op == "placeholder":
            start = 0 if batch_dims else reader.builder.reshape(0, (1, *shape))
            reader.values[node] = held.get(node, start)
        elif node.op == "call_function" and node in needed:
            reader.values[node] = reader.call(node)
        elif node in needed:
            raise UnsupportedError(f"the model has a part of kind '{node.op}', which the graph does not know")
    value = reader.operand(end)
    if not batch_dims and isinstance(value, int):
        answer = reader.builder.shape(value)
        if answer[:1] != (1,):
            raise UnsupportedError(
                f"the model answers one input with a tensor of shape {tuple(answer)}; the graph serves models whose answer has a "
                "row for each input, (n, classes)"
            )
        value = reader.builder.reshape(value, answer[1:])
    graph = reader.builder.finish(value)
    if any(not n.shape for n in graph.nodes) and shape:
        graph = lifted(graph)
        graph = simplify(graph, len(graph.nodes) - 1)
    return reader, replace(graph, whole=not example.dtype.is_floating_point)


def _held(program: ExportedProgram) -> dict[fx.Node, Any]:
    """The parameters, buffers and constants of a program by the nodes that stand for them."""
    signature = program.graph_signature
    targets = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    targets |= signature.inputs_to_lifted_tensor_constants
    values: dict[str, Any] = {**program.constants, **program.state_dict}
    nodes = [n for n in program.graph.nodes if n.op == "placeholder"]
    return {n: values[targets[n.name]] for n in nodes if n.name in targets}


def _ancestors(node: Any) -> set[fx.Node]:
    """A node and all that it needs."""
    needed: set[fx.Node] = set()
    waiting = [node] if isinstance(node, fx.Node) else []
    while waiting:
        one = waiting.pop()
        if one not in needed:
            needed.add(one)
            waiting += one.all_input_nodes
    return needed


def _refuse_state(program: ExportedProgram) -> None:
    """A model that writes into its input or its buffers is another function at each call."""
    signature = program.graph_signature
    if signature.user_inputs_to_mutate:
        raise UnsupportedError(
            "the model writes into its own input, so that what it was asked changes while it answers; "
            "let it take a copy first: x = x.clone()"
        )
    for kind, written in (("buffer", signature.buffers_to_mutate), ("parameter", signature.parameters_to_mutate)):
        if not written:
            continue
        name = next(iter(written.values()))
        raise UnsupportedError(
            f"the model writes into its {kind} '{name}' in eval mode too, so that it is another function at each call; "
            "no graph stands for it"
        )
