"""A list of instances, each a network with a property.

It is the competition's (``onnx,vnnlib,timeout`` without a head) or a table with a head that names at least ``onnx`` and
``vnnlib``, and maybe ``benchmark``, ``timeout_s`` (or ``timeout``), ``verdict`` and ``confidence``. Paths are relative to
the list.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from holdfast.core.errors import DataError, UsageError, did_you_mean

__all__ = ["Instance", "read_instances"]


@dataclass(frozen=True, kw_only=True)
class Instance:
    """A network with a property.

    Attributes:
        number: its row in the list, from 0.
        net: the ONNX file.
        prop: the VNN-LIB file.
        timeout: seconds of the list, or None.
        benchmark: what it belongs to.
        verdict: what is known: ``sat``, ``unsat``, or anything else for unknown.
        confidence: how well it is known, in the list's words.
    """

    number: int
    net: Path
    prop: Path
    timeout: float | None
    benchmark: str
    verdict: str = ""
    confidence: str = ""

    @property
    def is_weak(self) -> bool:
        """Its verdict is a single tool's claim."""
        return self.confidence == "one-tool"

    @property
    def is_known(self) -> bool:
        """The list says that it holds, or that it does not."""
        return self.verdict in ("sat", "unsat")

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.net.stem} {self.prop.name.removesuffix('.gz').removesuffix('.vnnlib')}"


def read_instances(path: Path, only: Sequence[str] = ()) -> list[Instance]:
    """The instances of a list.

    Args:
        path: the list.
        only: benchmarks; all of them if empty.

    Raises:
        DataError: no such file, or not a list; the message names the line.
        UsageError: a benchmark that is not in it.
    """
    try:
        rows = [(k, row) for k, row in enumerate(csv.reader(path.read_text().splitlines()), 1) if any(row)]
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no list of instances: {error}") from None
    head = [name.strip() for name in rows[0][1]] if rows else []
    if {"onnx", "vnnlib"} <= set(head):
        rows = rows[1:]
    else:
        head = ["onnx", "vnnlib", "timeout"]
    instances = [_instance(path, line, n, head, row) for n, (line, row) in enumerate(rows)]
    if not instances:
        raise DataError(f"{path} lists nothing; a row is onnx,vnnlib,timeout")
    names = {instance.benchmark for instance in instances}
    for name in only:
        if name not in names:
            raise UsageError(f"{path} has no benchmark '{name}'. {did_you_mean(name, names)}")
    return [instance for instance in instances if not only or instance.benchmark in only]


def _instance(path: Path, line: int, number: int, head: Sequence[str], row: Sequence[str]) -> Instance:
    if len(row) < min(len(head), 2) or len(row) > len(head):
        raise DataError(f"{path}, line {line}: {len(row)} columns where there are {len(head)}: {','.join(head)}")
    cells = {name: cell.strip() for name, cell in zip(head, row, strict=False)}
    limit = cells.get("timeout_s") or cells.get("timeout") or ""
    try:
        timeout = float(limit) if limit else None
    except ValueError:
        raise DataError(f"{path}, line {line}: the time limit '{limit}' is no number of seconds") from None
    net = path.parent / cells["onnx"]
    first = Path(cells["onnx"]).parts[0]
    benchmark = cells.get("benchmark") or (path.absolute().parent.name if first in ("onnx", cells["onnx"]) else first)
    return Instance(
        number=number,
        net=net,
        prop=path.parent / cells["vnnlib"],
        timeout=timeout,
        benchmark=benchmark,
        verdict=cells.get("verdict", ""),
        confidence=cells.get("confidence", ""),
    )
