"""Properties in VNN-LIB 1.0: read exactly, turned into queries that cover them, and witnesses in the format of answers.

A file says which inputs X and outputs Y together are *unsafe*. It is read in exact rational numbers and brought into
disjunctive normal form: boxes of inputs, and for each box groups of linear rows ``c Y + d <= 0``. What goes into a query
is rounded so that its set is never smaller than the file's: a proof of the queries proves the file. A witness, in turn,
must lie in the file's own set, as the numbers that are written into the answer, in exact arithmetic.
"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from holdfast.certify.query import Query
from holdfast.core.errors import DataError, UnsupportedError
from holdfast.graph.model import Graph

__all__ = ["Box", "Counterexample", "Property", "Row", "parse_vnnlib", "read_property", "read_vnnlib"]

CLAUSES = 100_000
"""Disjuncts that a file may have once all its assertions are multiplied out."""

_TOKEN = re.compile(r";[^\n]*|[()]|[^\s();]+")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,4})?")
_NAME = re.compile(r"([XY])_(0|[1-9]\d{0,8})")
_FORMALITIES = frozenset({"set-logic", "set-info", "set-option", "check-sat", "get-model", "exit"})
_COMPARISONS = frozenset({"<=", ">=", "<", ">", "="})

Expression = str | list["Expression"]
Bound = tuple[Fraction, bool]
"""A number, and whether the number itself is excluded."""


@dataclass(frozen=True)
class Row:
    """``coefficients . Y + offset <= 0``, or ``< 0``, in exact numbers.

    Attributes:
        coefficients: (output, factor) for each output that takes part, ascending.
        offset: what is added.
        strict: whether equality is safe.
    """

    coefficients: tuple[tuple[int, Fraction], ...]
    offset: Fraction
    strict: bool = False

    def met(self, y: Mapping[int, Fraction] | Sequence[Fraction]) -> bool:
        """Whether the outputs y meet it, exactly."""
        total = sum((factor * y[j] for j, factor in self.coefficients), self.offset)
        return total < 0 or (total == 0 and not self.strict)


@dataclass(frozen=True)
class Box:
    """Inputs between bounds, with the groups of rows that are unsafe there: all rows of one group at once.

    Attributes:
        lower: for each input.
        upper: for each input.
        groups: at least one, each of at least one row.
    """

    lower: tuple[Bound, ...]
    upper: tuple[Bound, ...]
    groups: tuple[tuple[Row, ...], ...]

    @cached_property
    def nearest(self) -> tuple[list[float], list[float]]:
        """The float64 numbers next to the bounds, which are the corners that a witness may have."""
        return [float(q) for q, _ in self.lower], [float(q) for q, _ in self.upper]

    def written(self, i: int, value: float) -> str | None:
        """A decimal inside the bounds of input i that reads back as ``value``, or None if there is none."""
        (low, above), (high, below) = self.lower[i], self.upper[i]

        def inside(text: str) -> bool:
            exact = Fraction(text)
            return (low < exact if above else low <= exact) and (exact < high if below else exact <= high)

        exact = format(value, ".1074f").rstrip("0") + "0" if value else "0.0"
        ends = [_decimal(q) for q in (low, high) if float(q) == value]
        return next((text for text in [repr(value), exact, *ends] if text and inside(text)), None)


@dataclass(frozen=True, eq=False)
class Counterexample:
    """An input in the file's own set whose output, as the model computes it, is unsafe.

    Attributes:
        x: (1, \\*features) float64: what was run.
        y: (1, \\*outputs) in the model's own type.
        inputs: x in decimals that lie in the set exactly.
    """

    x: Tensor
    y: Tensor
    inputs: tuple[str, ...]

    @property
    def text(self) -> str:
        """The answer in the competition's format: ``sat``, then every input and output in full precision."""
        outputs = (repr(v) for v in self.y.double().flatten().tolist())
        lines = [f"(X_{i} {v})" for i, v in enumerate(self.inputs)] + [f"(Y_{j} {v})" for j, v in enumerate(outputs)]
        return "sat\n(" + "\n ".join(lines) + ")\n"


@dataclass(frozen=True, eq=False)
class Property:
    """What a file says.

    Attributes:
        inputs: how many X it declares.
        outputs: how many Y it declares.
        boxes: at least one; no two are equal.
        source: where it was read.
    """

    inputs: int
    outputs: int
    boxes: tuple[Box, ...]
    source: str = "the property"

    def queries(self, graph: Graph) -> list[Query]:
        """One query for each box, in the boxes' order; together they cover the file's set.

        Args:
            graph: the network. Its inputs and outputs, flattened row by row, are X and Y.

        Raises:
            DataError: the numbers of inputs or outputs are not the network's.
            UnsupportedError: a factor that float64 cannot hold.
        """
        for count, shape, letter, word in (
            (self.inputs, graph.input_shape, "X", "inputs"),
            (self.outputs, graph.output_shape, "Y", "outputs"),
        ):
            if count != math.prod(shape):
                raise DataError(
                    f"{self.source} declares {letter}_0 to {letter}_{count - 1}, but the network has "
                    f"{math.prod(shape)} {word} {tuple(shape)}; is it the property of another network?"
                )
        return [self._query(box, graph) for box in self.boxes]

    def _query(self, box: Box, graph: Graph) -> Query:
        rows = [row for group in box.groups for row in group]
        c, d = torch.zeros(len(rows), self.outputs, dtype=torch.float64), torch.zeros(len(rows), dtype=torch.float64)
        for k, row in enumerate(rows):
            scale = _scale([factor for _, factor in row.coefficients])
            if scale is None:
                raise UnsupportedError(f"{self.source}: the factors {row.coefficients} do not fit into float64 exactly")
            for j, factor in row.coefficients:
                c[k, j] = float(factor * scale)
            d[k] = _down(row.offset * scale)
        groups = torch.tensor([g for g, group in enumerate(box.groups) for _ in group])
        lower = torch.tensor([_down(q) for q, _ in box.lower], dtype=torch.float64).view(graph.input_shape)
        upper = torch.tensor([-_down(-q) for q, _ in box.upper], dtype=torch.float64).view(graph.input_shape)
        return Query.of_box(lower, upper, c, d, groups)

    def confirm(self, graph: Graph, x: Tensor) -> Counterexample | None:
        """Runs a witness again and keeps it only if it proves the file's claim in exact numbers.

        The input is moved onto numbers of the model's type inside the nearest box (by an ulp at most, if it came from a
        query), written as decimals, and run in the model's type and in float64. The decimals must lie in the file's set
        and both outputs must meet all rows of a group, strict ones strictly, in exact arithmetic.

        Args:
            graph: the network.
            x: (1, \\*features).

        Returns:
            The counterexample, or None.
        """
        models = {dtype: graph.to(dtype=dtype).as_module() for dtype in (graph.dtype, torch.float64)}
        for box in self.boxes:
            settled = _settle(x.detach().double().cpu().flatten(), box, graph.dtype)
            written = [box.written(i, v) for i, v in enumerate(settled.tolist())]
            inputs = tuple(text for text in written if text is not None)
            if len(inputs) != self.inputs:
                continue
            settled = settled.view(1, *graph.input_shape)
            with torch.no_grad():
                found = {
                    dtype: model.to(x.device)(settled.to(x.device, dtype)).cpu() for dtype, model in models.items()
                }
            if all(_unsafe(box, y) for y in found.values()):
                return Counterexample(settled, found[graph.dtype], inputs)
        return None


def read_vnnlib(path: str | Path, graph: Graph) -> list[Query]:
    """The queries of a VNN-LIB file, one for each box of inputs; it holds if all of them do.

    Args:
        path: a ``.vnnlib`` file, or one compressed with gzip.
        graph: the network that it is about.

    Raises:
        DataError: no such file, or no property of this network; the message names the line or expression and the fix.
        UnsupportedError: VNN-LIB that is not boxes of inputs with linear rows of outputs.
    """
    return read_property(path).queries(graph)


def read_property(path: str | Path) -> Property:
    """What a VNN-LIB file says, exactly; see `read_vnnlib`."""
    path = Path(path)
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    except (EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no VNN-LIB text: {error}") from None
    return parse_vnnlib(text, str(path))


def parse_vnnlib(text: str, source: str = "the property") -> Property:
    """What a VNN-LIB text says, exactly.

    Args:
        text: the text.
        source: its name in messages.

    Raises:
        DataError: it is no property.
        UnsupportedError: it is one, but not of boxes of inputs with linear rows of outputs.

    Example:
        >>> found = parse_vnnlib('''(declare-const X_0 Real) (declare-const Y_0 Real) (declare-const Y_1 Real)
        ... (assert (and (>= X_0 0.1) (<= X_0 0.2))) (assert (or (>= Y_0 Y_1) (<= Y_0 -3)))''')
        >>> [(box.lower, len(box.groups)) for box in found.boxes]
        [(((Fraction(1, 10), False),), 2)]
    """
    return _Reader(text, source).read()


# --- reading ----------------------------------------------------------------------------------------------------------

Atom = tuple[int, int, Bound] | Row
"""A bound of one input (its number, +1 if it is an upper bound, the bound), or a row of outputs."""
Clause = tuple[Atom, ...]
Linear = dict[tuple[str, int] | None, Fraction]
"""Factors of variables; None is the constant."""


class _Reader:
    def __init__(self, text: str, source: str) -> None:
        self.text, self.source = text, source
        self.declared: dict[tuple[str, int], None] = {}
        self.line = 0

    def error(self, what: str, expression: Expression | None = None, kind: type[DataError] = DataError) -> Exception:
        shown = "" if expression is None else f": {_shown(expression)}"
        where = f"{self.source}, line {self.line}" if self.line else self.source
        return (UnsupportedError if kind is not DataError else DataError)(f"{where}: {what}{shown}")

    def read(self) -> Property:
        common: list[Atom] = []
        factors: list[list[Clause]] = []
        for command in self.commands():
            match command:
                case ["declare-const", str(name), "Real"] | ["declare-fun", str(name), [], "Real"]:
                    self.declare(name, command)
                case ["assert", expression]:
                    clauses = self.clauses(expression)
                    if len(clauses) == 1:
                        common += clauses[0]
                    else:
                        factors.append(clauses)
                case [str(head), *_] if head in _FORMALITIES:
                    pass
                case _:
                    raise self.error("VNN-LIB 1.0 has declare-const NAME Real and assert; found", command)
        self.line = 0
        counts = {letter: sum(name[0] == letter for name in self.declared) for letter in "XY"}
        for letter, count in counts.items():
            if not count:
                raise self.error(f"it declares no {letter}_0; write (declare-const {letter}_0 Real)")
            if missing := next((i for i in range(count) if (letter, i) not in self.declared), None):
                raise self.error(f"it declares {count} {letter} but not {letter}_{missing}")
        self.limit(math.prod(len(clauses) for clauses in factors))
        return Property(counts["X"], counts["Y"], self.boxes(counts["X"], common, factors), self.source)

    def commands(self) -> Iterator[list[Expression]]:
        """The top-level lists of the text; `line` is that of the list."""
        stack: list[list[Expression]] = []
        begun = 0
        for token in _TOKEN.finditer(self.text):
            word = token.group()
            if word == "(":
                if not stack:
                    begun = token.start()
                stack.append([])
            elif word == ")":
                if not stack:
                    self.line = self.number(token.start())
                    raise self.error("a ) too many")
                done = stack.pop()
                if stack:
                    stack[-1].append(done)
                else:
                    self.line = self.number(begun)
                    yield done
            elif word[0] != ";":
                if not stack:
                    self.line = self.number(token.start())
                    raise self.error("text outside parentheses", word)
                stack[-1].append(word)
        if stack:
            self.line = self.number(begun)
            raise self.error("a ( that is never closed")

    def number(self, position: int) -> int:
        """The line of a position; positions ascend, so each stretch is counted once."""
        self._line, self._counted = (
            getattr(self, "_line", 1) + self.text.count("\n", getattr(self, "_counted", 0), position),
            position,
        )
        return self._line

    def declare(self, name: str, command: Expression) -> None:
        match = _NAME.fullmatch(name)
        if match is None:
            raise self.error("names are X_0, X_1, ... for inputs and Y_0, Y_1, ... for outputs; found", command)
        key = (match[1], int(match[2]))
        if key in self.declared:
            raise self.error(f"{name} is declared twice")
        self.declared[key] = None

    def limit(self, count: int) -> None:
        if count > CLAUSES:
            raise self.error(f"{count} disjuncts once multiplied out, more than {CLAUSES}; split the file", None, _Refused)

    def clauses(self, expression: Expression) -> list[Clause]:
        """The expression's disjunctive normal form; an empty list is false, an empty clause true."""
        match expression:
            case ["or", *parts] if parts:
                return [clause for part in parts for clause in self.clauses(part)]
            case ["and", *parts] if parts:
                found = [self.clauses(part) for part in parts]
                self.limit(math.prod(len(clauses) for clauses in found))
                return [tuple(atom for clause in chosen for atom in clause) for chosen in product(*found)]
            case [str(sign), left, right] if sign in _COMPARISONS:
                if sign == "=":
                    return [self.comparison("<=", left, right, expression)[0] + self.comparison(">=", left, right, expression)[0]]  # fmt: skip
                return self.comparison(sign, left, right, expression)
        raise self.error("expected and, or, <=, >=, <, > or =; found", expression)

    def comparison(self, sign: str, left: Expression, right: Expression, whole: Expression) -> list[Clause]:
        terms = self.linear(left, whole)
        for key, factor in self.linear(right, whole).items():
            terms[key] = terms.get(key, Fraction(0)) - factor
        constant = terms.pop(None, Fraction(0))
        if sign[0] == ">":
            constant, terms = -constant, {key: -factor for key, factor in terms.items()}
        terms = {key: factor for key, factor in sorted(terms.items(), key=str) if factor}
        strict = len(sign) == 1
        letters = {key[0] for key in terms if key is not None}
        if not letters:
            return [()] if constant < 0 or (constant == 0 and not strict) else []
        if letters == {"X", "Y"}:
            raise self.error("one constraint on inputs and outputs together is not supported", whole, _Refused)
        keyed = sorted((key[1], factor) for key, factor in terms.items() if key is not None)
        if letters == {"Y"}:
            return [(Row(tuple(keyed), constant, strict),)]
        if len(keyed) > 1:
            raise self.error("inputs may be bounded one by one only, write (<= X_0 1.5); found", whole, _Refused)
        ((i, factor),) = keyed
        return [((i, 1 if factor > 0 else -1, (-constant / factor, strict)),)]

    def linear(self, expression: Expression, whole: Expression) -> Linear:
        if isinstance(expression, str):
            if match := _NAME.fullmatch(expression):
                key = (match[1], int(match[2]))
                if key not in self.declared:
                    raise self.error(f"{expression} is not declared (before this line)", whole)
                return {key: Fraction(1)}
            return {None: self.constant(expression, whole)}
        match expression:
            case ["+", *parts] if parts:
                return _sum([self.linear(part, whole) for part in parts])
            case ["-", part]:
                return {key: -factor for key, factor in self.linear(part, whole).items()}
            case ["-", first, *parts] if parts:
                taken = _sum([self.linear(part, whole) for part in parts])
                return _sum([self.linear(first, whole), {key: -factor for key, factor in taken.items()}])
            case ["*", *parts] if parts:
                found, scale = {None: Fraction(1)}, Fraction(1)
                for terms in (self.linear(part, whole) for part in parts):
                    if set(terms) <= {None}:
                        scale *= terms.get(None, Fraction(0))
                    elif set(found) <= {None}:
                        found = terms
                    else:
                        raise self.error("a product of variables is not linear", whole, _Refused)
                return {key: factor * scale for key, factor in found.items()}
            case ["/", part, divisor]:
                by = self.linear(divisor, whole)
                if set(by) > {None} or not by.get(None):
                    raise self.error("only division by a number that is not 0 is linear", whole, _Refused)
                return {key: factor / by[None] for key, factor in self.linear(part, whole).items()}
        raise self.error("expected a number, a variable, +, -, * or /; found", expression)

    def constant(self, word: str, whole: Expression) -> Fraction:
        if not _NUMBER.fullmatch(word):
            raise self.error(f"'{word}' is neither a number nor a name like X_0 or Y_0", whole)
        value = _exact(word)
        try:
            finite = math.isfinite(float(value))
        except OverflowError:
            finite = False
        if not finite:
            raise self.error(f"{word} is beyond float64", whole)
        return value

    def boxes(self, inputs: int, common: list[Atom], factors: list[list[Clause]]) -> tuple[Box, ...]:
        """Clauses multiplied out, those with the same box together."""
        lower: list[Bound | None] = [None] * inputs
        upper: list[Bound | None] = [None] * inputs
        for atom in common:
            if not isinstance(atom, Row):
                _tighten(lower if atom[1] < 0 else upper, atom)
        for i, (low, high) in enumerate(zip(lower, upper, strict=True)):
            if low is not None and high is not None and _empty(low, high):
                raise self.error(f"no input is in the box: X_{i} is at least {float(low[0])!r} and at most {float(high[0])!r}")
        shared = [atom for atom in common if isinstance(atom, Row)]
        found: dict[tuple[Atom, ...], list[tuple[Row, ...]]] = {}
        for chosen in product(*factors):
            atoms = [atom for clause in chosen for atom in clause]
            own = _own_bounds([atom for atom in atoms if not isinstance(atom, Row)], lower, upper)
            rows = list(dict.fromkeys([*shared, *(atom for atom in atoms if isinstance(atom, Row))]))
            if own is not None:
                found.setdefault(own, []).append(tuple(rows))
        if not found:
            raise self.error("its assertions contradict each other: no input is in it, so it says nothing")
        made: list[Box] = []
        for own, groups in found.items():
            sides = [list(lower), list(upper)]
            for i, sign, bound in (atom for atom in own if not isinstance(atom, Row)):
                sides[sign > 0][i] = bound
            lows, highs = ([bound for bound in side if bound is not None] for side in sides)
            if len(lows) < inputs or len(highs) < inputs:
                side, word = (sides[0], "lower") if len(lows) < inputs else (sides[1], "upper")
                sign = ">=" if word == "lower" else "<="
                raise self.error(f"X_{side.index(None)} has no {word} bound; add (assert ({sign} X_{side.index(None)} NUMBER))")
            if not all(groups):
                raise self.error(
                    "a box of inputs without a constraint on an output: every input in it would be a counterexample; "
                    "add one, such as (assert (<= Y_0 0))"
                )
            made.append(Box(tuple(lows), tuple(highs), tuple(dict.fromkeys(groups))))
        return tuple(made)


class _Refused(DataError):
    """Marks what VNN-LIB may say and Holdfast does not serve."""


def _tighten(side: list[Bound | None] | dict[int, Bound], atom: Atom) -> None:
    i, sign, bound = atom  # type: ignore[misc]
    ...
