"""The JSON that a prediction API wants and gives, declared by who asks it: a request with placeholders, a path in the answer.

Nothing is evaluated. A request is JSON in which a placeholder stands for a value:

- ``$inputs``: the rows as nested lists (n, \\*features); ``$data``: the same numbers in one flat list;
- ``$shape``: the list [n, \\*features]; ``$rows``: n;
- ``$row``: one row (\\*features). The nearest list of one element around it is repeated for each row; where there is no
  such list, a request carries one row.

A placeholder may stand with or without quotes; a text that begins with a dollar is written with two. An answer is found by
a path of names, indices and ``[*]``, which goes through every element of a list: ``predictions[*].scores``. ``$`` is the
whole answer, ``["a name"]`` takes any name. At its end ``{label: score}`` reads an object, or a list of objects, as class
and score by the names of the two fields, and ``{*}`` reads an object as scores by class.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from holdfast.core.arrays import listed
from holdfast.core.errors import ModelError, UsageError, did_you_mean
from holdfast.core.kinds import is_dict, is_list

__all__ = ["AnswerPath", "Pair", "RequestTemplate"]

_MAX = 1 << 16
_BATCH, _ONE, _FACTS = frozenset({"inputs", "data"}), frozenset({"row"}), frozenset({"shape", "rows"})
_NAMES = _BATCH | _ONE | _FACTS
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|\$\w+', re.DOTALL)


@dataclass(frozen=True)
class _Hole:
    """A placeholder in a parsed request."""

    name: str


@dataclass(frozen=True)
class _Each:
    """A list whose one element is repeated for each row."""

    element: Any


@dataclass(frozen=True)
class RequestTemplate:
    """A request with placeholders.

    Attributes:
        text: as it was written.
        tree: parsed, with placeholders in it.
        one_row: a request carries a single row.

    Example:
        >>> import torch
        >>> RequestTemplate.parse('{"instances": [{"x": $row}]}').encode(torch.tensor([[0.5], [1.0]]))
        b'{"instances": [{"x": [0.5]}, {"x": [1.0]}]}'
    """

    text: str
    tree: Any
    one_row: bool

    @classmethod
    def parse(cls, text: str) -> RequestTemplate:
        """A template from its text.

        Raises:
            UsageError: no JSON, an unknown placeholder, or none that carries the rows.
        """
        if len(text) > _MAX:
            raise UsageError(f"the request has {len(text)} characters; at most {_MAX} are read")
        quoted = _TOKEN.sub(lambda m: m[0] if m[0].startswith('"') else f'"{m[0]}"', text)
        try:
            tree = _holes(json.loads(quoted, object_pairs_hook=_once, parse_constant=_no_constant))
        except (ValueError, RecursionError) as fault:
            if isinstance(fault, UsageError):
                raise
            raise UsageError(f'the request is no JSON ({fault}); write for example {{"instances": $inputs}}') from None
        names = set(_names(tree))
        if not names & (_BATCH | _ONE):
            raise UsageError(f"the request '{text[:200]}' holds no rows; put $inputs, $data or $row where they belong")
        if names & _ONE:
            if names & _BATCH:
                raise UsageError("a request holds $row or the whole batch ($inputs, $data), not both")
            tree, repeated = _repeated(tree)
            if repeated > 1:
                raise UsageError(
                    "$row stands in several lists of a request; each row can be repeated in one place only"
                )
            return cls(text, tree, repeated == 0)
        return cls(text, tree, one_row=False)

    def encode(self, rows: Tensor) -> bytes:
        """The request for rows (n, \\*features) float32, whose values survive the trip to the bit."""
        facts: dict[str, Any] = {"shape": list(rows.shape), "rows": len(rows)}
        nested = listed(rows)
        if self.one_row:
            facts["row"] = nested[0]
        else:
            facts |= {"inputs": nested, "data": listed(rows.flatten())}
        return json.dumps(_filled(self.tree, facts, nested), allow_nan=False).encode()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise UsageError(f"the request names a field twice: {', '.join(k for k, _ in pairs)}")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _holes(tree: Any) -> Any:
    if is_dict(tree):
        return {k: _holes(v) for k, v in tree.items()}
    if is_list(tree):
        return [_holes(v) for v in tree]
    if not isinstance(tree, str) or not tree.startswith("$"):
        return tree
    if tree.startswith("$$"):
        return tree[1:]
    if tree[1:] not in _NAMES:
        raise UsageError(
            f"'{tree}' is no placeholder of a request; a text with a dollar in front is written $$. "
            f"{did_you_mean(tree, [f'${name}' for name in _NAMES])}"
        )
    return _Hole(tree[1:])


def _names(tree: Any) -> Iterator[str]:
    if isinstance(tree, _Hole):
        yield tree.name
    elif is_dict(tree):
        for value in tree.values():
            yield from _names(value)
    elif is_list(tree):
        for value in tree:
            yield from _names(value)


def _repeated(tree: Any) -> tuple[Any, int]:
    """The tree with the nearest list of one element around each ``$row`` marked, and how many such lists there are."""
    if is_dict(tree):
        parts = {k: _repeated(v) for k, v in tree.items()}
        return {k: part for k, (part, _) in parts.items()}, sum(n for _, n in parts.values())
    if is_list(tree):
        made = [_repeated(v) for v in tree]
        count = sum(n for _, n in made)
        if len(tree) == 1 and not count and "row" in _names(tree):
            return _Each(tree[0]), 1
        return [part for part, _ in made], count
    return tree, 0


def _filled(tree: Any, facts: dict[str, Any], rows: list[Any]) -> Any:
    if isinstance(tree, _Hole):
        return facts[tree.name]
    if isinstance(tree, _Each):
        return [_filled(tree.element, facts | {"row": row}, rows) for row in rows]
    if is_dict(tree):
        return {k: _filled(v, facts, rows) for k, v in tree.items()}
    if is_list(tree):
        return [_filled(v, facts, rows) for v in tree]
    return tree


@dataclass(frozen=True)
class Pair:
    """A class, by index or name, and its score."""

    label: Any
    score: Any


_STEP = re.compile(r'\.?([^\s.\[\]{}"*$][^\s.\[\]{}"]*)|\[(-?\d{1,9})\]|\[(\*)\]|\.?\[("(?:[^"\\]|\\.)*")\]')
_TAIL = re.compile(r"\{\s*(?:(\*)|([^\s:{}]+)\s*:\s*([^\s:{}]+))\s*\}")


@dataclass(frozen=True)
class AnswerPath:
    """Where in an answer the rows are.

    Attributes:
        text: as it was written.
        steps: names, indices, and None for every element of a list.
        fields: the names of class and score in an object; ``("*",)`` for an object of scores by class; empty otherwise.

    Example:
        >>> AnswerPath.parse("predictions[*].scores").find({"predictions": [{"scores": [0.2, 0.8]}]})
        [[0.2, 0.8]]
    """

    text: str
    steps: tuple[str | int | None, ...]
    fields: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> AnswerPath:
        """A path from its text.

        Raises:
            UsageError: not of that form; the message shows where.
        """
        steps: list[str | int | None] = []
        fields: tuple[str, ...] = ()
        at = 1 if text.startswith("$") else 0
        while at < len(text) and not fields:
            step, tail = _STEP.match(text, at), _TAIL.match(text, at)
            if step:
                name, index, every, quoted = step.groups()
                if name and at > 0 and text[at] != ".":
                    break
                try:
                    steps.append(int(index) if index else None if every else json.loads(quoted) if quoted else name)
                except ValueError:  # an escape that JSON does not have
                    break
                at = step.end()
            elif tail:
                fields = (tail[1],) if tail[1] else (tail[2], tail[3])
                at = tail.end()
            else:
                break
        if not text or at < len(text) or len(text) > _MAX:
            raise UsageError(
                f"'{text[:100]}' is no path in an answer (read up to '{text[:at][:100]}'); write names, [0], [*] and at the "
                "end {label: score} or {*}, as in predictions[*].scores"
            )
        return cls(text, tuple(steps), fields)

    def find(self, answer: Any) -> Any:
        """What lies at the path; under ``[*]`` a list.

        Raises:
            ModelError: the answer has no such place.
        """
        return self._walk(answer, 0, "")

    def _walk(self, value: Any, at: int, where: str) -> Any:
        if at == len(self.steps):
            return self._paired(value, where) if self.fields else value
        step = self.steps[at]
        if isinstance(step, str):
            if not is_dict(value) or step not in value:
                raise ModelError(f"the API's answer has no {_kind(self, at)}'{step}'{_at(where)} ({_has(value)})")
            return self._walk(value[step], at + 1, f"{where}.{step}" if where else step)
        if not is_list(value):
            raise ModelError(f"the API's answer has no list{_at(where)} ({_has(value)})")
        if step is None:
            return [self._walk(element, at + 1, f"{where}[{k}]") for k, element in enumerate(value)]
        if not -len(value) <= step < len(value):
            raise ModelError(f"the API's answer has no element {step}{_at(where)}, where {len(value)} are")
        return self._walk(value[step], at + 1, f"{where}[{step}]")

    def _paired(self, value: Any, where: str) -> Any:
        if is_list(value):
            return [self._paired(element, f"{where}[{k}]") for k, element in enumerate(value)]
        if not is_dict(value):
            raise ModelError(f"the API's answer has no object{_at(where)} ({_has(value)})")
        if self.fields == ("*",):
            return value
        for name in self.fields:
            if name not in value:
                raise ModelError(f"the API's answer has no '{name}'{_at(where)} ({_has(value)})")
        return Pair(value[self.fields[0]], value[self.fields[1]])


def _kind(path: AnswerPath, at: int) -> str:
    return "list " if at + 1 == len(path.steps) and not path.fields else ""


def _at(where: str) -> str:
    return f" at '{where[:100]}'" if where else ""


def _has(value: Any) -> str:
    if is_dict(value):
        return f"it has: {', '.join(map(str, value))}"[:120]
    return f"it is a {'list of ' + str(len(value)) if is_list(value) else type(value).__name__}"
