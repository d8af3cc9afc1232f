"""``holdfast.verify``: whether a property of a network holds, with a witness or a proof."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from typing_extensions import override

from holdfast.api.keywords import tool_of
from holdfast.api.results import Block, Result, Saved, figure
from holdfast.api.voice import Progress, Voice
from holdfast.core.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor, nn

    from holdfast.certifiers.graph_certifier import GraphCertifier
    from holdfast.certifiers.verification.solver import Decision
    from holdfast.core.cost import Cost
    from holdfast.models.load import LoadedModel
    from holdfast.verification.decide import Decided, Effort, Unread

__all__ = ["VerifyResult", "open_network", "run_verifier", "size_in_bytes", "verify"]


@dataclass(frozen=True, kw_only=True, repr=False)
class VerifyResult(Result):
    """What was decided about a property.

    Attributes:
        decided: the verifier's answer, and the counterexample that was confirmed in exact numbers.
        proof: the file of the proof; None where none was written.
    """

    decided: Decided
    proof: Path | None = None

    @property
    def decision(self) -> Decision:
        """``unsat`` (it holds), ``sat`` (it does not), ``unknown`` or ``timeout``."""
        return self.decided.answer.decision

    @property
    def holds(self) -> bool:
        """It is proved: what the property calls unsafe cannot happen."""
        return str(self.decision) == "unsat"

    @property
    def witness(self) -> Tensor | None:
        """An input at which the unsafe happens, confirmed in exact numbers."""
        return None if self.decided.counterexample is None else self.decided.counterexample.x

    @property
    def counterexample(self) -> str | None:
        """The witness with its outputs, in the verification competition's format."""
        return None if self.decided.counterexample is None else self.decided.counterexample.text

    @property
    def seconds(self) -> float:
        """From opening the files."""
        return round(self.decided.seconds, 3)

    @property
    @override
    def cost(self) -> Cost:
        """Points that the search for a counterexample sent through the network, forwards and backwards.

        Bounds send sets through it, and are counted in domains (``to_dict()["domains"]``). None is a query: the verifier
        has the network itself. How far a search comes hangs on the time, and so does this figure.
        """
        return self.decided.cost

    @override
    def to_dict(self) -> dict[str, Any]:
        return self.decided.record.model_dump()

    @override
    def columns(self) -> Mapping[str, Sequence[Any]]:
        """One row."""
        return {name: [value] for name, value in self.to_dict().items()}

    @property
    def about(self) -> str:
        """How it was decided, in one line."""
        found, verdict = self.decided.record, str(self.decision)
        words = [
            f"{found.seconds:.2f} s",
            *([f"by {found.method}"] if found.method else []),
            *([f"{found.domains} domains"] if found.domains > 1 else []),
            *([f"bound {found.bound:.6g}"] if found.bound is not None and verdict != "sat" else []),
            *([f"in {found.arithmetic}"] if found.arithmetic and verdict == "unsat" else []),
        ]
        return f"{verdict}: {', '.join(words)}{': ' + found.reason if found.reason else ''}"

    @override
    def blocks(self) -> list[Block]:
        held = self.decided.held_against
        return [
            self.about,
            *([figure("held against", held)] if held else []),
            *(
                []
                if self.proof is None
                else [figure("proof", f"{self.proof}; check it with: holdfast check {self.proof}")]
            ),
            *([] if self.counterexample is None else [self.counterexample.rstrip()]),
        ]

    @override
    def save(self, path: str | Path) -> Saved:
        """Writes what `to_dict` gives as JSON, or the counterexample where the name does not end in ``.json``."""
        from holdfast.core.files import write_whole

        if Path(path).suffix == ".json":
            return super().save(path)
        if self.counterexample is None:
            raise UsageError(
                f"{self.decision}: there is no counterexample; save the answer under a name ending in .json"
            )
        write_whole(Path(path), self.counterexample)
        return Saved(files=(Path(path),))


def verify(
    model: nn.Module | LoadedModel | str | Path,
    prop: str | Path,
    method: str | GraphCertifier = "auto",
    *,
    seconds: float = 60.0,
    memory: int | str = "1G",
    deployed: Literal["float32", "bfloat16", "float16"] | None = None,
    proof: str | Path | None = None,
    shape: Sequence[int] | int | None = None,
    arch: str | None = None,
    trust: bool = False,
    progress: Progress = True,
    **parameters: Any,
) -> VerifyResult:
    """Proves that a network never does what a property calls unsafe, or finds an input where it does.

    Args:
        model: an ONNX file; or a module, or weights with ``arch``, and the ``shape`` of one input.
        prop: what is unsafe: a VNN-LIB 1.0 file.
        method: ``auto``, or one certifier of graphs: its name, or the certifier.
        seconds: time limit, files included.
        memory: for tensors of one pass and for what waits: bytes, or ``500M``, ``2G``.
        deployed: prove it of the network as computed in this type; None: in real numbers.
        proof: where a proof for ``holdfast check`` goes, if the property holds.
        shape: of one input, where the model does not tell it.
        arch: builds the architecture of weights.
        trust: open files whose opening can run code.
        progress: show how far it is, or who is told (domains, done, all).
        parameters: the method's parameters.

    Raises:
        UsageError: no such method or parameter, or a shape that is missing.
        UnsupportedError: an operation that no method serves; the message names it.
        DataError: a file that cannot be read.
    """
    from holdfast.verification.decide import Effort

    most = memory if isinstance(memory, int) else size_in_bytes(memory)
    effort = Effort(timeout=seconds, method=_certifier(method, parameters), memory=most, deployed=deployed)
    net, _ = open_network(
        model,
        arch=arch,
        shape=(shape,) if isinstance(shape, int) else None if shape is None else tuple(shape),
        trust=trust,
    )
    voice = Voice(progress)
    with voice.progress() as tell:

        def told(done: int, waiting: int, bound: float) -> None:
            tell("domains", done, done + waiting)

        return run_verifier(net, Path(prop), effort, proof=None if proof is None else Path(proof), progress=told)


def _certifier(method: str | GraphCertifier, parameters: Mapping[str, Any]) -> str | GraphCertifier:
    """The method with its parameters; ``auto`` chooses methods, and has none.

    Raises:
        UsageError: no such method or parameter.
    """
    if method != "auto":
        return tool_of(method, parameters, beside=signature(verify).parameters.keys())
    for name in parameters:
        raise UsageError(
            f"verify has no '{name}'. {did_you_mean(name, signature(verify).parameters.keys() - {'parameters'})} Parameters "
            "belong to a method, and 'auto' chooses that itself: name one"
        )
    return "auto"


def run_verifier(
    net: Path | Unread,
    prop: Path,
    effort: Effort,
    *,
    proof: Path | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> VerifyResult:
    """Decides about an opened network.

    Args:
        net: the network.
        prop: the property.
        effort: time, method, memory, arithmetic.
        proof: where a proof goes.
        progress: told domains done, domains open and the bound so far.
    """
    from holdfast.verification.decide import decide

    if proof is not None and proof.is_dir():
        raise UsageError(f"{proof} is a folder, and a proof is a file: choose another --proof")
    found = decide(net, prop, effort, proof=proof, progress=progress)
    return VerifyResult(decided=found, proof=proof if str(found.answer.decision) == "unsat" else None)


def open_network(
    model: nn.Module | LoadedModel | str | Path,
    *,
    arch: str | None = None,
    shape: tuple[int, ...] | None = None,
    trust: bool = False,
) -> tuple[Path | Unread, tuple[str, ...]]:
    """An ONNX file as its path, anything else as a module with the shape of an input; and what was noticed.

    Raises:
        UsageError: the shape is missing, or said of a file that tells it.
    """
    from torch import nn

    from holdfast.models.guard import Format, inspect_file
    from holdfast.models.load import LoadedModel, load_model
    from holdfast.session.spec import described, is_url
    from holdfast.verification.decide import Unread

    notes: tuple[str, ...] = ()
    if is_url(model):
        raise UsageError(
            f"{model} can only be asked, and a proof needs the network itself: give its file or the module"
        )
    if isinstance(model, str | Path):
        if inspect_file(Path(model)).format is Format.ONNX:
            if arch is not None or shape is not None:
                raise UsageError(
                    f"{model} is an ONNX file, which holds its own architecture; leave out --arch and --shape"
                )
            return Path(model), notes
        loaded = load_model(model, arch=arch, trust=trust)
        module, name, notes = loaded.module, str(model), loaded.notes
    elif isinstance(model, LoadedModel):
        module, name = model.module, model.source
    elif isinstance(model, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]  # people give anything
        module, name = model, type(model).__name__
    else:
        raise UsageError(f"a network is an ONNX file, a module or weights with arch; got {described(model)}")
    if shape is None or not shape:
        raise UsageError(
            f"{name} does not tell the shape of an input; give it: --shape 1,28,28, from Python shape=(1, 28, 28)"
        )
    return Unread(module, shape), notes


def size_in_bytes(text: str) -> int:
    """``500M`` or ``2G`` as bytes.

    Raises:
        UsageError: no size.

    Example:
        >>> size_in_bytes("2K"), size_in_bytes("1.5 MiB")
        (2048, 1572864)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise UsageError(f"--memory {text} is no size; write 500M or 2G")
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))
