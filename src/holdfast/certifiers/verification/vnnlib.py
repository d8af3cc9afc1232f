"""Properties in VNN-LIB 1.0: queries that cover what a file says, and witnesses in the format of answers.

A file says which inputs X and outputs Y together are *unsafe*. It is read in exact rational numbers. What goes into a
query is rounded so that its set is never smaller than the file's: a proof of the queries proves the file. A witness, in
turn, must lie in the file's own set, as the decimals that are written into the answer, in exact arithmetic.
"""

from __future__ import annotations

import gzip
import math
import re
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from holdfast.certifiers.verification._vnnlib_text import Bound, Row, UnsafeBox, parse
from holdfast.certifiers.verification.query import Query
from holdfast.core.errors import DataError, UnsupportedError
from holdfast.graph.model import Graph
from holdfast.numerics.rounding import held_inside

__all__ = ["Counterexample", "Property", "parse_counterexample", "parse_vnnlib", "read_property", "read_vnnlib"]


@dataclass(frozen=True, eq=False)
class Counterexample:
    """An input in the file's own set whose output, as the model computes it, is unsafe.

    Attributes:
        x: (1, \\*features) float64: what was run.
        y: (1, \\*outputs) in the model's own type.
        inputs: x in decimals that lie in the set exactly and read back as x.
    """

    x: Tensor
    y: Tensor
    inputs: tuple[str, ...]

    @property
    def text(self) -> str:
        """The answer in the competition's format: ``sat``, then every input and output in full precision."""
        outputs = (repr(v) for v in _numbers(self.y))
        lines = [f"(X_{i} {v})" for i, v in enumerate(self.inputs)] + [f"(Y_{j} {v})" for j, v in enumerate(outputs)]
        return "sat\n(" + "\n ".join(lines) + ")\n"


@dataclass(frozen=True, eq=False, kw_only=True)
class Property:
    """What a file says.

    Attributes:
        inputs: how many X it declares.
        outputs: how many Y it declares.
        boxes: at least one, no two equal.
        source: where it was read.
    """

    inputs: int
    outputs: int
    boxes: tuple[UnsafeBox, ...]
    source: str = "the property"

    def queries(self, graph: Graph) -> list[Query]:
        """One query for each box, in order; together they cover the file's set.

        Args:
            graph: the network. Its inputs and outputs, flattened row by row, are X and Y.

        Raises:
            DataError: the numbers of inputs or outputs are not the network's.
            UnsupportedError: factors that float64 cannot hold.
        """
        self.check(inputs=graph.input_shape, outputs=graph.output_shape)
        return [self._query(box, graph) for box in self.boxes]

    def check(self, inputs: Sequence[int] | None = None, outputs: Sequence[int] | None = None) -> None:
        """Refuses a network of other shapes than the property is about.

        Raises:
            DataError: the numbers of inputs or outputs are not the network's.
        """
        for declared, shape, letter in ((self.inputs, inputs, "X"), (self.outputs, outputs, "Y")):
            if shape is not None and declared != math.prod(shape):
                word = "inputs" if letter == "X" else "outputs"
                raise DataError(
                    f"{self.source} declares {letter}_0 to {letter}_{declared - 1}, the network has {math.prod(shape)} "
                    f"{word}; take the property of this network"
                )

    @property
    def hull(self) -> tuple[Tensor, Tensor]:
        """The least and the largest inputs of all boxes, (inputs,) float64, rounded outward."""
        lower = [min(_down(box.lower[i].number) for box in self.boxes) for i in range(self.inputs)]
        upper = [max(-_down(-box.upper[i].number) for box in self.boxes) for i in range(self.inputs)]
        return torch.tensor(lower, dtype=torch.float64), torch.tensor(upper, dtype=torch.float64)

    def _query(self, box: UnsafeBox, graph: Graph) -> Query:
        rows = [row for group in box.groups for row in group]
        c, d = self._constraints(rows)
        groups = torch.tensor([g for g, group in enumerate(box.groups) for _ in group])
        lower = torch.tensor([_down(bound.number) for bound in box.lower], dtype=torch.float64)
        upper = torch.tensor([-_down(-bound.number) for bound in box.upper], dtype=torch.float64)
        strict = torch.tensor([row.strict for row in rows])
        below, above = (torch.tensor([bound.strict for bound in side]) for side in (box.lower, box.upper))
        lower, upper, below, above = (t.view(graph.input_shape) for t in (lower, upper, below, above))
        outside = (below, above) if bool((below | above).any()) else None
        return Query.of_box(lower, upper, c, d, groups, strict=strict if bool(strict.any()) else None, outside=outside)

    def _constraints(self, rows: list[Row]) -> tuple[Tensor, Tensor]:
        """The rows in float64, each in a scale in which its factors are exact."""
        c, d = torch.zeros(len(rows), self.outputs, dtype=torch.float64), torch.zeros(len(rows), dtype=torch.float64)
        for k, row in enumerate(rows):
            scale = _scale([factor for _, factor in row.factors])
            if scale is None or abs(row.offset * scale) > sys.float_info.max:
                raise UnsupportedError(
                    f"{self.source}: float64 cannot hold the factors {_shown(row)} exactly beside the constant, in any "
                    "scale; write them with fewer digits or nearer to each other in size"
                )
            for j, factor in row.factors:
                c[k, j] = float(factor * scale)
            d[k] = _down(row.offset * scale)
        return c, d

    def breaks(self, inputs: Sequence[str], y: Tensor) -> bool:
        """Whether inputs in decimals and the outputs of a run on them are unsafe, in exact arithmetic.

        Args:
            inputs: one for each X.
            y: as many numbers as there are Y.
        """
        x = [Fraction(text) for text in inputs]
        return any(
            _unsafe(box, y)
            for box in self.boxes
            if all(map(_near, inputs)) and all(_between(*at) for at in zip(x, box.lower, box.upper, strict=True))
        )

    @property
    def unrunnable(self) -> str:
        """Why no box has an input that can be run, in words; empty if one has."""
        words = ""
        for box in self.boxes:
            at = [
                i
                for i, (a, b) in enumerate(zip(box.lower, box.upper, strict=True))
                if _held(a.number, up=True) > _held(b.number, up=False)
            ]
            if not at:
                return ""
            words = (
                f"X_{at[0]} is kept between numbers so near to 0 that float64 has none there (they read as 0, which is not in "
                "the box), so no input of the box can be run; write 0, or magnitudes from 2.3e-308 on"
            )
        return words

    def confirm(self, graph: Graph, x: Tensor) -> Counterexample | None:
        """Runs a witness again and keeps it only if it shows in exact numbers what the file calls unsafe.

        It is moved to the nearest numbers of the model's type in the file's box (at most an ulp, if it comes from a
        query) and run in that type and in float64. Its decimals must lie in the box, and both outputs must meet all rows
        of a group.

        Args:
            graph: the network.
            x: (1, \\*features).

        Returns:
            The counterexample, or None if it is not one.
        """
        models = [graph.to(dtype).as_module() for dtype in (graph.dtype, torch.float64)]
        for box in self.boxes:
            lower = torch.tensor([_held(bound.number, up=True) for bound in box.lower], dtype=torch.float64)
            upper = torch.tensor([_held(bound.number, up=False) for bound in box.upper], dtype=torch.float64)
            if bool((lower > upper).any()):
                continue
            settled = held_inside(x.detach().double().cpu().reshape(1, -1), lower, upper, graph.dtype)
            ends = zip(_numbers(settled), box.lower, box.upper, strict=True)
            written = tuple(filter(None, (_decimal(v, low, high) for v, low, high in ends)))
            if len(written) < self.inputs:
                continue
            settled = settled.view(1, *graph.input_shape)
            with torch.no_grad():
                y, exact = (model(settled.to(x.device, model.dtype)).cpu() for model in models)
            if _unsafe(box, y) and _unsafe(box, exact):
                return Counterexample(settled, y, written)
        return None


def read_vnnlib(path: str | Path, graph: Graph) -> list[Query]:
    """The queries of a VNN-LIB file, one for each box of inputs; the property holds if all of them do.

    Args:
        path: a ``.vnnlib`` file, plain or compressed by gzip.
        graph: the network that it is about.

    Raises:
        DataError: no such file, or no property of this network; the message names the line, the expression and the fix.
        UnsupportedError: more than boxes of inputs with linear rows of outputs.
    """
    return read_property(path).queries(graph)


def read_property(path: str | Path) -> Property:
    """What a VNN-LIB file says, exactly; errors as of `read_vnnlib`."""
    try:
        content = Path(path).read_bytes()
        text = (gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content).decode()
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no VNN-LIB file: {error}") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    return parse_vnnlib(text, str(path))


def parse_vnnlib(text: str, source: str = "the property") -> Property:
    """What a VNN-LIB text says, exactly; errors as of `read_vnnlib`.

    Args:
        text: the text.
        source: its name in messages.

    Example:
        >>> found = parse_vnnlib('''(declare-const X_0 Real) (declare-const Y_0 Real) (declare-const Y_1 Real)
        ... (assert (>= X_0 0.1)) (assert (<= X_0 0.2)) (assert (or (>= Y_0 Y_1) (<= Y_0 -3)))''')
        >>> [(box.lower[0].number, len(box.groups)) for box in found.boxes]
        [(Fraction(1, 10), 2)]
    """
    inputs, outputs, boxes = parse(text, source)
    return Property(inputs=inputs, outputs=outputs, boxes=boxes, source=source)


def parse_counterexample(text: str, inputs: int) -> list[str]:
    """The inputs that an answer in the competition's format names, in its own decimals.

    Args:
        text: the answer; outputs in it are not read, since a model says them itself.
        inputs: how many there have to be.

    Raises:
        DataError: another number of inputs, or no decimals.

    Example:
        >>> parse_counterexample("sat\\n((X_0 0.25)\\n (Y_0 1.0))", 1)
        ['0.25']
    """
    found = {int(i): value for i, value in re.findall(r"\(X_(\d+)\s+([-+.\deE]+)\s*\)", text)}
    if sorted(found) != list(range(inputs)):
        raise DataError(f"a counterexample with {len(found)} inputs where there are {inputs}")
    try:
        return [value for _, value in sorted(found.items()) if math.isfinite(float(value))]
    except ValueError:
        raise DataError("a counterexample with an input that is no number") from None


def _numbers(t: Tensor) -> list[float]:
    return t.detach().double().flatten().numpy().tolist()


def _shown(row: Row) -> str:
    """The factors of a row, to three digits of a decimal; a fraction of a thousand digits tells nobody anything."""
    return ", ".join(f"{Decimal(f.numerator) / Decimal(f.denominator):.3g}" for _, f in row.factors)


def _down(exact: Fraction) -> float:
    """The largest float64 at or below it."""
    value = float(exact)
    return math.nextafter(value, -math.inf) if Fraction(value) > exact else value


def _scale(factors: Sequence[Fraction]) -> Fraction | None:
    """By what a row is multiplied so that float64 holds its factors exactly; positive, and 1 where they fit as they are."""
    if all(Fraction(float(f)) == f for f in factors):
        return Fraction(1)
    scale = Fraction(math.lcm(*(f.denominator for f in factors)), math.gcd(*(f.numerator for f in factors)))
    scale /= 2 ** max(int(max(abs(f) for f in factors) * scale).bit_length() - 1, 0)
    return scale if all(Fraction(float(f * scale)) == f * scale for f in factors) else None


def _held(number: Fraction, up: bool) -> float:
    """The float64 nearest to an end; one that float64 holds to less than full precision is moved inward, to 0 at most."""
    value = float(number)
    if number == 0 or abs(value) >= sys.float_info.min:
        return value
    return sys.float_info.min * ((number > 0) if up else -(number < 0))


def _decimal(value: float, low: Bound, high: Bound) -> str | None:
    """A decimal within the bounds that reads back as the value, to within one rounding, or None if there is none."""
    texts = [
        repr(value),
        *(str(Decimal(end.number.numerator) / Decimal(end.number.denominator)) for end in (low, high)),
    ]
    return next(
        (text for text in texts if float(text) == value and _near(text) and _between(Fraction(text), low, high)), None
    )


def _near(text: str) -> bool:
    """Whether a decimal reads as a float64 that is it to within one rounding; 1e-400 reads as 0, which is another input."""
    exact = Fraction(text)
    return abs(Fraction(float(text)) - exact) <= abs(exact) * Fraction(1, 2**53)


def _between(x: Fraction, low: Bound, high: Bound) -> bool:
    above = low.number < x if low.strict else low.number <= x
    return above and (x < high.number if high.strict else x <= high.number)


def _unsafe(box: UnsafeBox, y: Tensor) -> bool:
    if not bool(y.isfinite().all()):
        return False
    exact = [Fraction(v) for v in _numbers(y)]
    return any(all(row.met(exact) for row in group) for group in box.groups)
