"""The text of VNN-LIB 1.0: parsed in exact rational numbers into boxes of inputs with groups of output rows.

Needs no torch; `holdfast.certifiers.verification.vnnlib` makes queries of what is found here.
"""

from __future__ import annotations

import math
import re
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import product
from typing import NamedTuple

from holdfast.core.errors import DataError, UnsupportedError

__all__ = ["Bound", "Row", "UnsafeBox", "parse"]

CLAUSES = 100_000
"""Disjuncts that a file may have once all its assertions are multiplied out."""

DEPTH = 200
"""Parentheses in parentheses that a file may have."""

_TOKEN = re.compile(r";[^\n]*|[()]|[^\s();]+")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,4})?", re.ASCII)
_NAME = re.compile(r"([XY])_(0|[1-9]\d{0,8})", re.ASCII)
_BEYOND = Fraction(2**1024 - 2**970)
"""The first number that rounds to infinity in float64."""
_FORMALITIES = frozenset({"set-logic", "set-info", "set-option", "check-sat", "get-model", "exit"})
_COMPARISONS = frozenset({"<=", ">=", "<", ">", "="})


class Bound(NamedTuple):
    """A bound of an input, and whether the number itself is outside."""

    number: Fraction
    strict: bool = False


@dataclass(frozen=True)
class Row:
    """``factors . Y + offset <= 0``, or ``< 0``, in exact numbers.

    Attributes:
        factors: (output, factor) for each output that takes part, ascending.
        offset: what is added.
        strict: whether equality is safe.
    """

    factors: tuple[tuple[int, Fraction], ...]
    offset: Fraction
    strict: bool = False

    def met(self, y: Sequence[Fraction]) -> bool:
        """Whether the outputs y meet it, exactly."""
        total = sum((factor * y[j] for j, factor in self.factors), self.offset)
        return total < 0 or (total == 0 and not self.strict)


@dataclass(frozen=True)
class UnsafeBox:
    """Inputs between bounds, with the groups of rows that are unsafe there: all rows of one group at once.

    Attributes:
        lower: of each input.
        upper: of each input.
        groups: at least one, each of at least one row.
    """

    lower: tuple[Bound, ...]
    upper: tuple[Bound, ...]
    groups: tuple[tuple[Row, ...], ...]


Expression = str | list["Expression"]
Terms = dict[tuple[str, int] | None, Fraction]
"""Factors of variables; None is the constant."""


class _Limit(NamedTuple):
    """A bound of one input in a clause."""

    input: int
    upper: bool
    bound: Bound


Clause = tuple[_Limit | Row, ...]
"""Constraints that hold together."""
_Side = tuple[int, bool]
"""An input, and whether its upper bound is meant."""


def parse(text: str, source: str) -> tuple[int, int, tuple[UnsafeBox, ...]]:
    """How many inputs and outputs the text declares, and its boxes, no two of them equal.

    Raises:
        DataError: it is no property; the message has the line, the expression and the fix.
        UnsupportedError: it is one, but not of boxes of inputs with linear rows of outputs.
    """
    return _TextReader(source).read(text)


class _TextReader:
    def __init__(self, source: str) -> None:
        self.source, self.line = source, 0
        self.declared: set[tuple[str, int]] = set()

    def read(self, text: str) -> tuple[int, int, tuple[UnsafeBox, ...]]:
        common: list[_Limit | Row] = []
        factors: list[list[Clause]] = []
        for command in self.commands(text):
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
                    raise self.wrong("VNN-LIB 1.0 is (declare-const X_0 Real) and (assert ...), not", command)
        self.line = 0
        counts = {letter: sum(kind == letter for kind, _ in self.declared) for letter in "XY"}
        for letter, count in counts.items():
            if not count:
                raise self.wrong(f"it declares no {letter}_0; add (declare-const {letter}_0 Real)")
            missing = [i for i in range(count) if (letter, i) not in self.declared]
            if missing:
                raise self.wrong(f"{letter}_{missing[0]} is not declared, but later ones are; number them from 0")
        self.countable(math.prod(map(len, factors)))
        return counts["X"], counts["Y"], self.boxes(counts["X"], common, factors)

    def commands(self, text: str) -> Iterator[Expression]:
        """The lists of the text, with `line` set to where each begins."""
        stack: list[list[Expression]] = []
        counted = 0
        self.line = 1
        for token in _TOKEN.finditer(text):
            word = token.group()
            if word[0] == ";":
                continue
            if not stack:
                self.line += text.count("\n", counted, token.start())
                counted = token.start()
                if word != "(":
                    raise self.wrong("nothing may stand outside of parentheses, but there is", word)
            if word == "(":
                stack.append([])
                if len(stack) > DEPTH:
                    raise self.refused(f"parentheses nested more than {DEPTH} deep; write it flatter")
            elif word == ")":
                done = stack.pop()
                if stack:
                    stack[-1].append(done)
                else:
                    yield done
            else:
                stack[-1].append(word)
        if stack:
            raise self.wrong("a parenthesis opens here and never closes")

    def declare(self, name: str, command: Expression) -> None:
        match = _NAME.fullmatch(name)
        if match is None:
            raise self.wrong("names are X_0, X_1, ... for inputs and Y_0, Y_1, ... for outputs, not", command)
        key = (match[1], int(match[2]))
        if key in self.declared:
            raise self.wrong(f"{name} is declared a second time")
        self.declared.add(key)

    def clauses(self, expression: Expression) -> list[Clause]:
        """The disjunctive normal form: no clause is false, an empty clause true."""
        match expression:
            case ["or", *parts] if parts:
                return [clause for part in parts for clause in self.clauses(part)]
            case ["and", *parts] if parts:
                return self.all_of([self.clauses(part) for part in parts])
            case ["=", left, right]:
                sides = (self.comparison(sign, left, right, expression) for sign in ("<=", ">="))
                return self.all_of(list(sides))
            case [str(sign), left, right] if sign in _COMPARISONS:
                return self.comparison(sign, left, right, expression)
            case _:
                raise self.wrong("a constraint is and, or, <=, >=, <, > or = with its parts, not", expression)

    def all_of(self, found: list[list[Clause]]) -> list[Clause]:
        self.countable(math.prod(map(len, found)))
        return [_joined(chosen) for chosen in product(*found)]

    def comparison(self, sign: str, left: Expression, right: Expression, whole: Expression) -> list[Clause]:
        if sign[0] == ">":
            left, right = right, left
        terms = _total([self.linear(left, whole), _scaled(self.linear(right, whole), Fraction(-1))])
        if any(abs(number) >= _BEYOND for number in terms.values()):
            raise self.refused("a factor or a sum of it is beyond float64", whole)
        constant, strict = terms.pop(None, Fraction(0)), len(sign) == 1
        variables = sorted((key, factor) for key, factor in terms.items() if factor and key is not None)
        if not variables:
            return [()] if constant < 0 or (constant == 0 and not strict) else []
        letters = {letter for (letter, _), _ in variables}
        if letters == {"X", "Y"}:
            raise self.refused("one constraint on inputs and outputs together cannot be served", whole)
        if letters == {"Y"}:
            return [(Row(tuple((j, factor) for (_, j), factor in variables), constant, strict),)]
        if len(variables) > 1:
            raise self.refused("inputs can be bounded one by one only, as in (<= X_0 1.5), not", whole)
        ((_, i), factor) = variables[0]
        return [(self._limit(i, factor, constant, strict, whole),)]

    def _limit(self, i: int, factor: Fraction, constant: Fraction, strict: bool, whole: Expression) -> _Limit:
        """``factor X_i + constant <= 0``, or below 0, as a bound of the input."""
        bound = -constant / factor
        if abs(bound) >= _BEYOND:
            raise self.refused("the bound that it sets is beyond float64", whole)
        return _Limit(i, factor > 0, Bound(bound, strict))

    def linear(self, expression: Expression, whole: Expression) -> Terms:
        match expression:
            case str(word):
                return self.word(word, whole)
            case ["+", *parts] if parts:
                return _total(self.linear(part, whole) for part in parts)
            case ["-", part]:
                return _scaled(self.linear(part, whole), Fraction(-1))
            case ["-", first, *parts] if parts:
                taken = _total(self.linear(part, whole) for part in parts)
                return _total([self.linear(first, whole), _scaled(taken, Fraction(-1))])
            case ["*", *parts] if parts:
                found: Terms = {None: Fraction(1)}
                for terms in (self.linear(part, whole) for part in parts):
                    if found.keys() - {None} and terms.keys() - {None}:
                        raise self.refused("a product of variables is not linear", whole)
                    terms, found = (found, terms) if terms.keys() <= {None} else (terms, found)
                    found = _scaled(terms, found.get(None, Fraction(0)))
                return found
            case ["/", part, divisor]:
                by = self.linear(divisor, whole)
                if by.keys() - {None} or not by.get(None):
                    raise self.refused("only a division by a number other than 0 is linear", whole)
                return _scaled(self.linear(part, whole), 1 / by[None])
            case _:
                raise self.wrong("a term is a number, a name, +, -, * or / with its parts, not", expression)

    def word(self, word: str, whole: Expression) -> Terms:
        name = _NAME.fullmatch(word)
        if name is not None:
            key = (name[1], int(name[2]))
            if key not in self.declared:
                raise self.wrong(f"{word} is used before it is declared, or never is", whole)
            return {key: Fraction(1)}
        if not _NUMBER.fullmatch(word):
            raise self.wrong(f"'{word}' is neither a number nor a name like X_0 or Y_0", whole)
        value = _number(word)
        if abs(value) >= _BEYOND:
            raise self.wrong(f"{word} is beyond float64", whole)
        return {None: value}

    def boxes(self, inputs: int, common: list[_Limit | Row], factors: list[list[Clause]]) -> tuple[UnsafeBox, ...]:
        """Clauses multiplied out, with those of one box together."""
        sides = _tightened({}, common)
        self.not_empty(sides)
        shared = _rows(common)
        found: dict[tuple[tuple[_Side, Bound], ...], dict[tuple[Row, ...], None]] = {}
        for chosen in product(*factors):
            clause = _joined(chosen)
            own = _tightened(sides, clause)
            both = ChainMap(own, sides)
            if not any(_empty(both, i) for i, _ in own):
                rows = tuple(dict.fromkeys([*shared, *_rows(clause)]))
                found.setdefault(tuple(sorted(own.items())), {})[rows] = None
        if not found:
            raise self.wrong("its assertions contradict each other, so that no input and output is unsafe; correct one")
        made: list[UnsafeBox] = []
        for own, groups in found.items():
            box = sides | dict(own)
            for upper, sign, word in ((False, ">=", "lower"), (True, "<=", "upper")):
                free = [i for i in range(inputs) if (i, upper) not in box]
                if free:
                    raise self.wrong(f"X_{free[0]} has no {word} bound; add (assert ({sign} X_{free[0]} NUMBER))")
            if () in groups:
                raise self.wrong("inputs are unsafe whatever the outputs are; add a constraint such as (<= Y_0 0)")
            ends = (tuple(box[i, upper] for i in range(inputs)) for upper in (False, True))
            made.append(UnsafeBox(*ends, groups=tuple(groups)))
        return tuple(made)

    def not_empty(self, sides: Mapping[_Side, Bound]) -> None:
        for i, _ in sides:
            if _empty(sides, i):
                low, high = float(sides[i, False].number), float(sides[i, True].number)
                raise self.wrong(f"the box is empty: X_{i} shall be at least {low!r} and at most {high!r}; correct one")

    def countable(self, count: int) -> None:
        if count > CLAUSES:
            raise self.refused(f"{count} disjuncts once it is multiplied out, more than {CLAUSES}; split the file")

    def wrong(self, what: str, expression: Expression | None = None) -> DataError:
        return DataError(self.message(what, expression))

    def refused(self, what: str, expression: Expression | None = None) -> UnsupportedError:
        return UnsupportedError(self.message(what, expression))

    def message(self, what: str, expression: Expression | None) -> str:
        place = f"{self.source}, line {self.line}" if self.line else self.source
        return f"{place}: {what}" + ("" if expression is None else f": {_shown(expression)}")


@lru_cache(1 << 16)
def _number(word: str) -> Fraction:
    return Fraction(word)


def _shown(expression: Expression, most: int = 120) -> str:
    def flat(part: Expression) -> str:
        return part if isinstance(part, str) else f"({' '.join(map(flat, part))})"

    text = flat(expression)
    return text if len(text) <= most else text[: most - 4] + " ..."


def _total(parts: Iterable[Terms]) -> Terms:
    found: Terms = {}
    for terms in parts:
        for key, factor in terms.items():
            found[key] = found[key] + factor if key in found else factor
    return found


def _scaled(terms: Terms, by: Fraction) -> Terms:
    return {key: factor * by for key, factor in terms.items()}


def _joined(clauses: tuple[Clause, ...]) -> Clause:
    return tuple(part for clause in clauses for part in clause)


def _rows(parts: Iterable[_Limit | Row]) -> list[Row]:
    return [part for part in parts if isinstance(part, Row)]


def _tightened(sides: Mapping[_Side, Bound], parts: Iterable[_Limit | Row]) -> dict[_Side, Bound]:
    """The bounds that ``parts`` make tighter than ``sides``; all of theirs where ``sides`` is empty."""
    found: dict[_Side, Bound] = {}
    for part in parts:
        if isinstance(part, Row):
            continue
        key = (part.input, part.upper)
        known = found.get(key, sides.get(key))
        number, sign = part.bound.number, 1 if part.upper else -1
        if known is None or (sign * number, known.strict) < (sign * known.number, part.bound.strict):
            found[key] = part.bound
    return found


def _empty(sides: Mapping[_Side, Bound], i: int) -> bool:
    low, high = sides.get((i, False)), sides.get((i, True))
    if low is None or high is None:
        return False
    return low.number > high.number or (low.number == high.number and (low.strict or high.strict))
