"""Reads a VNN-LIB property in exact rational numbers, as a union of cases: a box of inputs and rows of outputs.

The property holds if in no case there is an input in the box whose outputs satisfy ``C y + d <= 0`` in all rows.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from math import prod
from typing import Any, cast

import numpy as np

from holdfast.checker.rounding import Rejected, outward

__all__ = ["Row", "UnsafeCase", "read_property"]

Sum = dict[str, Fraction]  # a linear sum by variable; the constant is under ""
Row = tuple[tuple[Fraction, ...], Fraction]  # c and d
_MOST = 100_000


@dataclass(eq=False)
class UnsafeCase:
    """One disjunct; lower and upper are rounded outwards."""

    lower: Any
    upper: Any
    rows: list[Row]

    def has(self, c: list[float], d: float) -> bool:
        """Whether ``c y + d`` positive makes one of the rows positive: it is that row times a positive number, or less."""
        wanted = [Fraction(v) for v in c]
        for row, constant in self.rows:
            scale = next((w / v for v, w in zip(row, wanted, strict=True) if v), Fraction(0))
            same = scale > 0 and all(scale * v == w for v, w in zip(row, wanted, strict=True))
            if same and Fraction(d) <= scale * constant:
                return True
        return False


def read_property(text: str, inputs: int, outputs: int) -> list[UnsafeCase]:
    """The cases of a property.

    Raises:
        Rejected: it cannot be read, or has a constraint that is neither a bound of an input nor linear in the outputs.
    """
    declared, conjunctions = set[str](), [list[Sum]()]
    for command in _expressions(text):
        if command[0] in ("declare-const", "declare-fun") and command[2:] in (["Real"], [[], "Real"]):
            declared.add(command[1])
        elif command[0] == "assert" and len(command) == 2:
            conjunctions = _both(conjunctions, _disjuncts(command[1]))
        else:
            raise Rejected(f"'{command[0]}' in the property cannot be checked")
    if declared != {f"X_{i}" for i in range(inputs)} | {f"Y_{i}" for i in range(outputs)}:
        raise Rejected(f"the property is not about {inputs} inputs and {outputs} outputs")
    return [case for parts in conjunctions if (case := _case(parts, inputs, outputs))]


def _expressions(text: str) -> Iterator[Any]:
    """The expressions at the top, as nested lists of words."""
    stack: list[list[Any]] = [[]]
    for word in re.findall(r"[()]|[^\s()]+", re.sub(r";[^\n]*", "", text)):
        if word == "(":
            stack.append([])
        elif word == ")" and len(stack) > 1:
            done = stack.pop()
            stack[-1].append(done)
        else:
            stack[-1].append(word)
    if len(stack) != 1 or not all(isinstance(e, list) and len(cast("list[Any]", e)) > 1 for e in stack[0]):
        raise Rejected("the property's brackets do not match")
    yield from stack[0]


def _both(one: list[list[Sum]], other: list[list[Sum]]) -> list[list[Sum]]:
    if len(one) * len(other) > _MOST:
        raise Rejected("the property has too many cases")
    if len(one) == len(other) == 1:  # most are bounds: no list of thousands is copied for each
        one[0].extend(other[0])
        return one
    return [a + b for a, b in product(one, other)]


def _disjuncts(formula: Any) -> list[list[Sum]]:
    """A formula as a union of conjunctions of ``sum <= 0``."""
    if formula[0] == "or":
        return [part for f in formula[1:] for part in _disjuncts(f)]
    if formula[0] == "and":
        found: list[list[Sum]] = [[]]
        for f in formula[1:]:
            found = _both(found, _disjuncts(f))
        return found
    if formula[0] in ("<=", ">=", "<", ">", "=") and len(formula) == 3:
        one, other = _sum(formula[1]), _sum(formula[2])
        less, more = _plus(one, other, -1), _plus(other, one, -1)
        return [[less, more] if formula[0] == "=" else [less] if formula[0][0] == "<" else [more]]  # < counts as <=
    raise Rejected(f"'{formula[0]}' in the property cannot be checked")


def _plus(one: Sum, other: Sum, factor: Fraction | int) -> Sum:
    return {v: one.get(v, Fraction(0)) + factor * other.get(v, Fraction(0)) for v in {**one, **other}}


def _sum(term: Any) -> Sum:
    if isinstance(term, str):
        return {term: Fraction(1)} if term[0] in "XY" else {"": Fraction(term)}
    parts = [_sum(t) for t in term[1:]]
    if term[0] == "*":
        variable = [p for p in parts if set(p) != {""}]
        if len(variable) < 2:
            factor = prod((p[""] for p in parts if set(p) == {""}), start=Fraction(1))
            return _plus({}, variable[0] if variable else {"": Fraction(1)}, factor)
    if term[0] == "-" and len(parts) == 1:
        return _plus({}, parts[0], -1)
    if term[0] in "+-":
        found = parts[0]
        for p in parts[1:]:
            found = _plus(found, p, 1 if term[0] == "+" else -1)
        return found
    raise Rejected(f"'{term[0]}' in the property cannot be checked")


def _case(parts: list[Sum], inputs: int, outputs: int) -> UnsafeCase | None:
    """The case of a conjunction, or None if it is empty."""
    lower: dict[str, Fraction] = {}
    upper: dict[str, Fraction] = {}
    rows: list[Row] = []
    for part in parts:
        names, constant = [v for v in part if v and part[v]], part.get("", Fraction(0))
        if not names:
            if constant > 0:
                return None
        elif names[0][0] == "X" and len(names) == 1:
            name = names[0]
            bound = -constant / part[name]
            if part[name] > 0:
                upper[name] = min(upper.get(name, bound), bound)
            else:
                lower[name] = max(lower.get(name, bound), bound)
        elif all(name[0] == "Y" for name in names):
            rows.append((tuple(part.get(f"Y_{i}", Fraction(0)) for i in range(outputs)), constant))
        else:
            raise Rejected("a constraint between several inputs, or inputs and outputs, cannot be checked")
    return _boxed(lower, upper, rows, inputs)


def _boxed(lower: dict[str, Fraction], upper: dict[str, Fraction], rows: list[Row], inputs: int) -> UnsafeCase | None:
    """The case of bounds of each input and rows of outputs, or None if its box is empty."""
    every = [f"X_{i}" for i in range(inputs)]
    if not all(name in lower and name in upper for name in every):
        raise Rejected("the property leaves an input without bounds")
    if any(lower[name] > upper[name] for name in every):
        return None
    ends = [np.array([outward(end[name], side) for name in every]) for end, side in ((lower, -1), (upper, 1))]
    return UnsafeCase(ends[0], ends[1], rows)
