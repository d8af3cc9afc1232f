"""Strict rows at their edge: whether one is at least 0 throughout is decided in exact arithmetic.

Bounds pay for rounding, so none of them ever reaches 0 where the least value of a row is 0. Two exact ones do: the box of
the output, whose ends are the true values of functions such as ReLU and sigmoid, and for small piecewise linear networks
forms in rational numbers, in which what cancels cancels.
"""

from __future__ import annotations

from fractions import Fraction
from math import inf, isfinite, nextafter

import torch
from torch import Tensor

from holdfast.certifiers.propagation.operation import node_size
from holdfast.certifiers.propagation.propagation import Propagation
from holdfast.certifiers.propagation.region import Region
from holdfast.certifiers.verification.query import Query
from holdfast.graph.model import Graph, Node

__all__ = ["exact_rows"]

Form = dict[int, Fraction]
"""An exact affine form: symbol to factor, under -1 the constant."""

_PRODUCTS = 200_000  # of rational numbers: a second or less


def exact_rows(graph: Graph, query: Query) -> Tensor:
    """Lower bounds of the strict rows over the query's set, exact but for the last rounding down.

    Args:
        graph: the model, with a vector as output.
        query: the question.

    Returns:
        (rows,) float64; -inf for rows that are not strict, and where nothing is known.
    """
    found = torch.full_like(query.d, -inf)
    if query.strict is None:
        return found
    rows = [int(k) for k in query.strict.nonzero().flatten().numpy()]
    ends = _box(graph, query)
    forms = None if all(_row(query, k, ends) >= 0 for k in rows) else _forms(graph, query)
    for k in rows:
        exact = _row(query, k, ends)
        if forms is not None:
            exact = max(exact, forms.least(_weights(query, k)))
        found[k] = 0.0 if exact == 0 else nextafter(float(exact), -inf) if 0 < exact < inf else -inf
    return found


def _weights(query: Query, k: int) -> tuple[Form, Fraction]:
    """The factors of a row that are not 0, and its constant."""
    factors = _floats(query.c[k])
    return {j: Fraction(factor) for j, factor in enumerate(factors) if factor}, Fraction(float(query.d[k]))


def _box(graph: Graph, query: Query) -> tuple[list[float], list[float]]:
    """The least and the largest outputs."""
    with torch.no_grad():
        found = Propagation(graph.to(torch.float64), Region(query.ball, query.x))
        found.run(refine=found.affine_in_input, every=True)
    return _floats(found.boxes[-1].lower), _floats(found.boxes[-1].upper)


def _row(query: Query, k: int, box: tuple[list[float], list[float]]) -> Fraction | float:
    factors, total = _weights(query, k)
    for j, factor in factors.items():
        end = box[0][j] if factor > 0 else box[1][j]
        if not isfinite(end):
            return -inf
        total += Fraction(end) * factor
    return total


class _Forms:
    """Values as exact affine forms of symbols, each within its own interval: the inputs, and ReLUs that may bend.

    Attributes:
        ends: the interval of each symbol.
        values: the entries of each node, flattened: dictionaries of symbol to factor, under -1 the constant.
        products: how many were made.
    """

    def __init__(self, ends: list[tuple[Fraction, Fraction]]) -> None:
        self.ends = ends
        self.values: list[list[Form]] = [[{i: Fraction(1)} for i in range(len(ends))]]
        self.products = 0

    def combined(self, parts: list[tuple[Fraction, Form]], constant: Fraction) -> Form:
        """A sum of multiples of forms."""
        total = {-1: constant}
        for factor, form in parts:
            self.products += len(form)
            for symbol, own in form.items():
                total[symbol] = total.get(symbol, Fraction(0)) + factor * own
        return {symbol: own for symbol, own in total.items() if own}

    def range(self, form: Form) -> tuple[Fraction, Fraction]:
        """Between which numbers a form lies."""
        low = high = form.get(-1, Fraction(0))
        for symbol, own in form.items():
            if symbol >= 0:
                least, most = sorted(own * end for end in self.ends[symbol])
                low, high = low + least, high + most
        return low, high

    def least(self, row: tuple[Form, Fraction]) -> Fraction:
        """The least of a row of the last node."""
        factors, constant = row
        return self.range(self.combined([(f, self.values[-1][j]) for j, f in factors.items()], constant))[0]

    def bent(self, form: Form, node: Node) -> Form:
        """The ReLU, or the magnitude, of a form."""
        low, high = self.range(form)
        if low >= 0:
            return form
        if high <= 0:
            return {} if node.op == "relu" else {symbol: -own for symbol, own in form.items()}
        self.ends.append((Fraction(0), high if node.op == "relu" else max(high, -low)))
        return {len(self.ends) - 1: Fraction(1)}


def _forms(graph: Graph, query: Query) -> _Forms | None:
    """The outputs as forms, or None where the network is too large, of another kind, or not exact as it is stored."""
    if graph.deployed is not None or bool(query.ball.eps.isfinite().any()):
        return None
    ends = [
        (Fraction(a), Fraction(b))
        for a, b in zip(_floats(query.lower), _floats(query.upper), strict=True)
        if isfinite(a) and isfinite(b)
    ]
    if len(ends) < query.lower.numel():
        return None
    forms = _Forms(ends)
    for node in graph.nodes[1:]:
        if node.tolerance or node.origin == "folded" or "size" in node.tensors:
            return None
        found = _step(forms, graph, node)
        if found is None or forms.products > _PRODUCTS:
            return None
        forms.values.append(found)
    return forms


def _step(forms: _Forms, graph: Graph, node: Node) -> list[Form] | None:
    """The entries of a node, or None for an operation that is none of these."""
    given = [forms.values[i] for i in node.inputs]
    shapes = [graph.nodes[i].shape for i in node.inputs]
    if node.op in ("relu", "abs"):
        return [forms.bent(form, node) for form in given[0]]
    if node.op in ("add", "sub"):
        sign = Fraction(1 if node.op == "add" else -1)
        return [forms.combined([(Fraction(1), a), (sign, b)], Fraction(0)) for a, b in zip(*given, strict=True)]
    if node.op == "affine":
        return _affine(forms, node, given[0])
    if node.op == "linear":
        return _linear(forms, node, given[0])
    place = _moved(node, shapes)
    whole = [form for entries in given for form in entries]
    return None if place is None else [whole[i] for i in place]


def _affine(forms: _Forms, node: Node, given: list[Form]) -> list[Form]:
    scale, shift = (_numbers(node.tensors.get(key), node.shape) for key in ("scale", "shift"))
    scale, shift = scale or [Fraction(1)] * len(given), shift or [Fraction(0)] * len(given)
    return [forms.combined([(s, form)], t) for s, t, form in zip(scale, shift, given, strict=True)]


def _linear(forms: _Forms, node: Node, given: list[Form]) -> list[Form] | None:
    weight = node.tensors["weight"]
    out, wide = weight.shape
    if len(given) * out > _PRODUCTS:
        return None
    rows = [_floats(row) for row in weight]
    bias = _numbers(node.tensors.get("bias"), (out,)) or [Fraction(0)] * out
    return [
        forms.combined([(Fraction(w), form) for w, form in zip(row, part, strict=True) if w], shift)
        for part in (given[k : k + wide] for k in range(0, len(given), wide))
        for row, shift in zip(rows, bias, strict=True)
    ]


def _moved(node: Node, shapes: list[tuple[int, ...]]) -> list[int] | None:
    """Where each entry comes from, for operations that only move entries."""
    counts = [node_size(shape) for shape in shapes]
    at = [
        torch.arange(n).view(shape) + sum(counts[:k]) for k, (n, shape) in enumerate(zip(counts, shapes, strict=True))
    ]
    attributes = node.attributes
    if node.op == "permute":
        at = [at[0].permute(attributes["dims"])]
    elif node.op == "select":
        at = [at[0].index_select(attributes["dim"], node.tensors["index"].cpu())]
    elif node.op == "concat":
        at = [torch.cat(at, attributes["dim"])]
    elif node.op != "reshape":
        return None
    return [int(i) for i in at[0].flatten().numpy()]


def _numbers(t: Tensor | None, shape: tuple[int, ...]) -> list[Fraction] | None:
    return None if t is None else [Fraction(v) for v in _floats(t.expand(shape))]


def _floats(t: Tensor) -> list[float]:
    return t.detach().double().cpu().flatten().numpy().tolist()
