"""One network, one property, one verdict: reader, attack, verifier and the exact confirmation of a witness together."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import torch

from holdfast.attacks.falsification import falsifier
from holdfast.certifiers.graph_certifier import GraphCertifier
from holdfast.certifiers.verification.solver import Answer, Decision, Progress
from holdfast.certifiers.verification.tree import Tree
from holdfast.certifiers.verification.verifier import verify
from holdfast.certifiers.verification.vnnlib import Counterexample, Property, parse_counterexample, read_property
from holdfast.core.cost import Cost
from holdfast.core.errors import DataError, UsageError
from holdfast.graph.model import Graph
from holdfast.graph.onnx import read_onnx
from holdfast.models.believed import believed
from holdfast.verification.record import InstanceRecord, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

__all__ = ["Decided", "Effort", "Unread", "decide", "network", "rerun"]

_VERDICTS: dict[Decision, Verdict] = {
    Decision.HOLDS: "unsat", Decision.BROKEN: "sat", Decision.UNKNOWN: "unknown", Decision.TIMEOUT: "timeout",
}  # fmt: skip
_DEPLOYED = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How a property is decided.

    Attributes:
        timeout: seconds from the moment that the files are opened.
        method: ``auto``, or a certifier of graphs or its name.
        memory: bytes for one pass and for what waits.
        deployed: ``float32``, ``bfloat16`` or ``float16``: what is certified is the network as computed in that type.
    """

    timeout: float = 60.0
    method: str | GraphCertifier = "auto"
    memory: int = 1 << 30
    deployed: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.timeout < math.inf:
            raise UsageError(f"a time limit of {self.timeout:g} s; give seconds above 0")
        if self.memory < 1:
            raise UsageError(f"memory of {self.memory} bytes; give a number above 0, such as 2G")
        if self.deployed is not None and self.deployed not in _DEPLOYED:
            raise UsageError(f"no deployment in {self.deployed}; there is {', '.join(_DEPLOYED)}")


@dataclass(frozen=True, eq=False)
class Unread:
    """A model that is no ONNX file: its graph is made once it is known where it is asked about.

    Attributes:
        module: the model.
        shape: of one input.
    """

    module: nn.Module
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Decided:
    """What was found about a property.

    Attributes:
        answer: the verifier's; its witness is only believed if `counterexample` is there.
        counterexample: the witness, confirmed in exact numbers, if the decision is BROKEN.
        seconds: from opening the files.
        held_against: what the graph was compared with on the box of the property; None for one that was given as a graph.
        cost: points that the search for a counterexample sent through the network, in its own type and in float64; bounds
            send sets through it, which `Answer.domains` counts.
    """

    answer: Answer
    counterexample: Counterexample | None
    seconds: float
    held_against: str | None = None
    cost: Cost = field(default_factory=Cost)

    @property
    def record(self) -> InstanceRecord:
        """As a journal and JSON have it; a bound that is not finite is None."""
        a = self.answer
        return InstanceRecord(
            verdict=_VERDICTS[a.decision],
            seconds=round(self.seconds, 3),
            method=a.method,
            reason=a.reason,
            arithmetic=a.arithmetic,
            domains=a.domains,
            bound=a.bound if math.isfinite(a.bound) else None,
            held_against=self.held_against,
            counterexample=None if self.counterexample is None else self.counterexample.text,
        )


def decide(
    net: Path | Graph | Unread,
    prop: Path,
    effort: Effort,
    *,
    proof: Path | None = None,
    progress: Progress | None = None,
    output: str | None = None,
) -> Decided:
    """Decides whether a property holds for a network.

    Args:
        net: an ONNX file, another model, or the graph.
        prop: a VNN-LIB file.
        effort: time, method, memory, arithmetic.
        proof: where a proof for ``holdfast check`` goes, if the property holds and is wanted to be checked.
        progress: told domains done, domains open and the bound so far.
        output: the name of the output that is meant, where an ONNX file has several.

    Raises:
        HoldfastError: a file that cannot be read, or what no method serves.
    """
    begun = monotonic()
    if proof is not None:
        _provable(net, prop, effort)
    said = read_property(prop)
    graph, held_against = _read(net, said, output)
    queries = said.queries(graph)
    trees = None if proof is None else [Tree() for _ in queries]
    search = falsifier(graph)
    answer = verify(
        graph,
        queries,
        timeout=max(effort.timeout - (monotonic() - begun), 0.1),
        falsify=search,
        method=effort.method,
        memory=effort.memory,
        trees=trees,
        progress=progress,
        deployed=None if effort.deployed is None else _DEPLOYED[effort.deployed],
        believed=lambda x: said.confirm(graph, x) is not None,
    )
    counterexample = None
    if answer.decision is Decision.BROKEN:
        counterexample = None if answer.witness is None else said.confirm(graph, answer.witness)
        if counterexample is None:
            answer = replace(
                answer, decision=Decision.UNKNOWN, reason="the witness breaks the property within rounding only"
            )
    if answer.decision in (Decision.UNKNOWN, Decision.TIMEOUT) and said.unrunnable:
        answer = replace(answer, reason="; ".join(filter(None, (said.unrunnable, answer.reason))))
    seconds = monotonic() - begun
    if trees is not None and proof is not None and isinstance(net, Path) and answer.decision is Decision.HOLDS:
        from holdfast.certifiers.verification import proof as proofs

        proofs.write(proof, net, prop, graph, queries, trees)
    return Decided(
        answer=answer,
        counterexample=counterexample,
        seconds=seconds,
        held_against=held_against,
        cost=search.passes.cost,
    )


def _provable(net: Path | Graph | Unread, prop: Path, effort: Effort) -> None:
    """Refuses a proof that could not be written, before time is spent."""
    from holdfast.certifiers.verification import proof as proofs

    if not isinstance(net, Path):
        raise UsageError("a proof is about an ONNX file; export the model to one")
    if effort.deployed is not None:
        raise UsageError("a proof is about the network in real numbers; leave out --deployed")
    proofs.check_supported(net, prop)


def _read(net: Path | Graph | Unread, said: Property, output: str | None) -> tuple[Graph, str | None]:
    """The graph, and what it was held against on the smallest box around what is asked."""
    if isinstance(net, Graph):
        return net, None
    low, high = said.hull
    if isinstance(net, Unread):
        said.check(inputs=net.shape)
        captured = believed(net.module, torch.zeros(1, *net.shape), low.view(net.shape), high.view(net.shape))
        return captured.graph, captured.held_against
    from holdfast.graph.onnx_truth import believe

    graph = network(net, said.inputs, output)
    said.check(inputs=graph.input_shape, outputs=graph.output_shape)
    return graph, believe(net, graph, low.view(graph.input_shape), high.view(graph.input_shape), output)


def network(path: Path, entries: int | None = None, output: str | None = None) -> Graph:
    """The graph of an ONNX file; the latest few are kept.

    Args:
        path: the file.
        entries: how many numbers the property says that an input has.
        output: the name of the output that is meant, where there are several.
    """
    try:
        changed = path.stat().st_mtime_ns
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    return _network(path, changed, entries, output)


@lru_cache(4)
def _network(path: Path, changed: int, entries: int | None, output: str | None) -> Graph:
    return read_onnx(path, output, entries)


def rerun(net: Path, prop: Path, text: str) -> list[str]:
    """Runs a counterexample again, as it is written, with no tolerance at all.

    Args:
        net: an ONNX file.
        prop: a VNN-LIB file.
        text: the answer in the competition's format.

    Returns:
        What does not show that the property is broken: of ``float32`` and ``float64`` (our graph) and ``onnxruntime``
        (where it is installed). Empty if all do.
    """
    said = read_property(prop)
    graph = network(net, said.inputs)
    inputs = parse_counterexample(text, said.inputs)
    x = torch.tensor([float(v) for v in inputs], dtype=torch.float64).view(1, *graph.input_shape)
    runs: dict[str, Callable[[], Tensor | None]] = {
        str(dtype).removeprefix("torch."): partial(_run, graph.to(dtype), x) for dtype in (graph.dtype, torch.float64)
    }
    runs["onnxruntime"] = partial(_onnxruntime, net, x)
    failed: list[str] = []
    for name, run in runs.items():
        y = run()
        if y is not None and not said.breaks(inputs, y):
            failed.append(name)
    return failed


def _run(graph: Graph, x: Tensor) -> Tensor:
    with torch.no_grad():
        return graph.as_module()(x.to(graph.dtype))


def _onnxruntime(net: Path, x: Tensor) -> Tensor | None:
    from holdfast.graph.onnx_truth import KINDS
    from holdfast.graph.onnx_truth import session as opened

    try:
        session = opened(net)
    except ImportError:
        return None
    (entry,) = session.get_inputs()
    shape = [size if isinstance(size, int) and size > 0 else 1 for size in entry.shape]
    given = x.reshape(shape).numpy().astype(KINDS[entry.type])
    return torch.as_tensor(session.run(None, {entry.name: given})[0])
