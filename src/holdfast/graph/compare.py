"""Holds a graph against the thing itself before anybody believes it: no verdict is better than the reading it rests on.

The graph runs in float64, the truth in its own type. They may differ by what the truth's arithmetic rounds, which is
found by stochastic arithmetic (Parker 1997; CADNA): the graph runs again with each operation's value moved by as much
as its rounding may be, gamma_k times the magnitudes that it adds up, by normal draws. What lies beyond that is
another function, and the first operation that differs is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.core.errors import ModelError
from holdfast.graph.model import Graph, Node
from holdfast.graph.ops import compute

__all__ = ["Trace", "compare"]

Truth = Callable[[Tensor], Tensor]
"""The thing itself: outputs (n, ...) for inputs (n, \\*features) in the graph's type."""

_EXACT = frozenset(("relu", "reshape", "permute", "select", "pad", "concat", "max_pool", "abs", "sign", "embedding"))
_SUMS = frozenset(("affine", "add", "sub", "mul", "leaky_relu", "linear", "conv", "conv_transpose", "mean", "matmul"))
_FOLDED = 8  # roundings of what the graph does in one operation and the truth in several
_ULPS = 16  # of exp, tanh and the like
_FEW_ULPS = 4
_DRAWS = 4
_SAFETY = 4.0  # times the deviation of the draws, each of which already moves every value as far as it may round
_LOOKED_AT = 3  # of the points of a step, those that lie apart most, for which rounding is worked out
_WORK = 2e9  # multiplications of all points together, beyond which there are fewer


@dataclass(frozen=True)
class Trace:
    """What finds the operation at which a graph and the truth part.

    Attributes:
        graph: the graph before it was made smaller, so that the model's own operations are among its nodes.
        steps: for inputs (n, \\*features), each operation's name, its position in ``graph`` and the truth's value, in
            the order of the model.
    """

    graph: Graph
    steps: Callable[[Tensor], Iterable[tuple[str, int, Tensor]]]


def compare(
    graph: Graph,
    truth: Truth,
    low: Tensor,
    high: Tensor,
    *,
    whole: bool = False,
    trace: Callable[[], Trace] | None = None,
) -> None:
    """Holds that the graph computes what the truth does on points of a box.

    The points are its centre, corners, uniform draws, the corners towards which activations inside grow or shrink
    most, and what a search for a larger difference steps through; they are the same at every call.

    Args:
        graph: what is to be believed.
        truth: what it must equal; it gets inputs in the graph's type, or int64 where ``whole``.
        low: (\\*features), the smallest inputs; where they are infinite, numbers are taken instead.
        high: (\\*features), the largest.
        whole: the inputs are whole numbers.
        trace: gives what finds the first operation that differs, asked only where something does.

    Raises:
        ModelError: the two differ by more than rounding; the message names where.
    """
    exact = graph.to(torch.float64)
    search = _Search(exact, graph.dtype, truth, whole, *_finite(low, high, whole))
    x = search.points()
    for _ in range(3):
        worst = search.worst(x)
        if worst is not None:
            raise ModelError(_told(graph, search, worst, trace))
        x = search.near()


def _finite(low: Tensor, high: Tensor, whole: bool) -> tuple[Tensor, Tensor]:
    """The box in float64 with numbers where it has no end."""
    low, high = low.detach().double(), high.detach().double()
    low = torch.where(low.isfinite(), low, torch.minimum(high, torch.full_like(low, 10.0)) - 20.0)
    high = torch.where(high.isfinite(), high, torch.maximum(low, torch.full_like(low, -10.0)) + 20.0)
    return (low.ceil(), high.floor()) if whole else (low, high)


class _Search:
    """Points of the box, and how far graph and truth lie apart there."""

    def __init__(self, graph: Graph, dtype: torch.dtype, truth: Truth, whole: bool, low: Tensor, high: Tensor) -> None:
        self.graph, self.dtype, self.truth, self.whole = graph, dtype, truth, whole
        self.low, self.high = low.reshape(graph.input_shape), high.reshape(graph.input_shape)
        self.generator = torch.Generator().manual_seed(20261130)
        self.few = 16 * _work(graph) > _WORK
        self.best = (-1.0, self.low)  # the largest difference so far, in roundings, and where

    def _draw(self, n: int) -> Tensor:
        shape = (n, *self.graph.input_shape)
        return torch.rand(shape, generator=self.generator, dtype=torch.float64).to(self.low.device)

    def _mixed(self, share: Tensor) -> Tensor:
        """Points between the two ends that the truth's type can hold."""
        x = self.low + share * (self.high - self.low)
        x = x.round() if self.whole else x.to(self.dtype).double()
        return torch.minimum(torch.maximum(x, self.low), self.high) if self.whole else x

    def points(self) -> Tensor:
        """Centre, corners, uniform draws and the corners of single activations."""
        ends = torch.stack([torch.full(self.graph.input_shape, v, dtype=torch.float64) for v in (0.5, 0.0, 1.0)])
        parts = [ends.to(self.low.device), self._draw(1 if self.few else 2).round(), self._draw(1 if self.few else 3)]
        return self._mixed(torch.cat([*parts, *self._corners()]))

    def _corners(self) -> list[Tensor]:
        """For some activations, the corners of the box towards which one of their entries grows and shrinks most."""
        places = [i for i, n in enumerate(self.graph.nodes) if n.op not in _SUMS and n.op not in _EXACT | {"input"}]
        places += [i for i, n in enumerate(self.graph.nodes) if n.op in ("relu", "max_pool", "sign", "abs")]
        places = places[:: max(len(places) // (1 if self.few else 3), 1)][:3]
        if self.whole or not places:
            return []
        x = self._mixed(torch.full((1, *self.graph.input_shape), 0.5, device=self.low.device)).requires_grad_()
        with torch.enable_grad():
            values = _values(self.graph, x)
            aims = [values[self.graph.nodes[i].inputs[0]].flatten() for i in places]
            picks = [int(torch.randint(len(a), (1,), generator=self.generator)) for a in aims]
            pulls = [
                torch.autograd.grad(a[p], x, retain_graph=True, allow_unused=True)[0]
                for a, p in zip(aims, picks, strict=True)
                if a.requires_grad
            ]
        towards = [(g >= 0).double() for g in pulls if g is not None]
        return list(towards) + [1 - t for t in towards[:1]]

    def near(self) -> Tensor:
        """Points that differ from the worst one so far in a part of their entries."""
        n = 1 if self.few else 3
        drawn = self._mixed(torch.cat([self._draw(n).round(), self._draw(n)]))
        return torch.where(self._draw(2 * n) < 0.5, self.best[1], drawn)

    def given(self, x: Tensor) -> Tensor:
        """Points as the truth takes them."""
        return x.long() if self.whole else x.to(self.dtype, copy=True)

    def worst(self, x: Tensor) -> Tensor | None:
        """The first of the points at which graph and truth differ by more than rounding, (1, \\*features), or None."""
        with torch.no_grad():
            expected = self.truth(self.given(x)).detach().to(self.low.device, torch.float64)
            found = _values(self.graph, x, last=True)[-1]
            if expected.numel() != found.numel():
                raise ModelError(
                    f"the model's output for {len(x)} inputs has shape {tuple(expected.shape)}, the graph read from it "
                    f"gives {tuple(found.shape)}"
                )
            expected = expected.reshape(found.shape)
            apart = _apart(found, expected)
            scale = 8 * torch.finfo(self.dtype).eps * expected.nan_to_num(0.0, 0.0, 0.0).abs() + 1e-30
            roundings = (apart / scale).flatten(1).amax(1) if found[0].numel() else apart.flatten(1).sum(1)
            first = int(roundings.argmax())
            if float(roundings[first]) > self.best[0]:
                self.best = (float(roundings[first]), x[first])
            order = roundings.argsort(descending=True).tolist()
            for i in [i for i in order if float(roundings[i]) > 1][:_LOOKED_AT]:
                if _differing(self.graph, self.dtype, x[i : i + 1], [(len(self.graph.nodes) - 1, expected[i : i + 1])]):
                    return x[i : i + 1]
        return None


def _apart(found: Tensor, expected: Tensor) -> Tensor:
    """Distances, 0 where both are the same infinity or no number."""
    same = (found == expected) | (found.isnan() & expected.isnan())
    return torch.where(same, 0.0, (found - expected).abs().nan_to_num(torch.inf, torch.inf, torch.inf))


def _differing(graph: Graph, dtype: torch.dtype, x: Tensor, values: Sequence[tuple[int, Tensor]]) -> list[int]:
    """Which of the truth's values differ from the graph's by more than rounding.

    Args:
        graph: in float64.
        dtype: the type in which the truth runs.
        x: (1, \\*features), in float64.
        values: a position in the graph and the truth's value there, each.

    Returns:
        Positions in ``values``.
    """
    with torch.no_grad():
        found, spread = _rounded(graph, dtype, x)
    highest = float(torch.finfo(dtype).max)
    wrong: list[int] = []
    for k, (i, expected) in enumerate(values):
        expected = expected.to(x.device, torch.float64).reshape(found[i].shape)
        allowed = (_SAFETY * spread[i]).nan_to_num(torch.inf, torch.inf, torch.inf)
        beyond = _apart(found[i], expected) > allowed
        # what the type cannot hold, the truth has as an infinity
        beyond &= ~((found[i].abs() > highest / 2) & ~(expected.abs() <= highest))
        if bool(beyond.any()):
            wrong.append(k)
    return wrong


def _values(graph: Graph, x: Tensor, last: bool = False) -> list[Tensor]:
    """Every node's value; ``last`` keeps only what is still read."""
    consumers = graph.consumers()
    values: list[Tensor] = [x]
    for i, node in enumerate(graph.nodes[1:], 1):
        values.append(compute(node.op, [values[j] for j in node.inputs], node.tensors, node.attributes))
        for j in node.inputs if last else ():
            if consumers[j][-1] == i:
                values[j] = values[j].new_empty(0)
    return values


def _rounded(graph: Graph, dtype: torch.dtype, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Every node's value for one input, and how far rounding in a type spreads it (the root of the mean square)."""
    generator = torch.Generator().manual_seed(1130)

    def moved(value: Tensor, by: Tensor) -> Tensor:
        return value + torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value) * by

    clean: list[Tensor] = [x]
    noisy: list[Tensor] = [x.repeat(_DRAWS, *(1,) * (x.ndim - 1))]
    floor = float(torch.finfo(dtype).tiny)
    u = torch.finfo(dtype).eps / 2
    for node in graph.nodes[1:]:
        given, turned = [clean[j] for j in node.inputs], [noisy[j] for j in node.inputs]
        clean.append(compute(node.op, given, node.tensors, node.attributes))
        if node.op not in _SUMS and node.op not in _EXACT:
            # a few roundings of what goes in: 1 - x, x - max(x), k x of the composite functions
            turned = [moved(t, 4 * u * _reach(node, t)) for t in turned]
        value = compute(node.op, turned, node.tensors, node.attributes)
        if node.op not in _EXACT:
            value = moved(value, _rounding(node, given, clean[-1], dtype) + floor)
        noisy.append(value)
    spread = [
        (n - c).square().mean(0, keepdim=True).sqrt() if n is not c else torch.zeros_like(c)
        for n, c in zip(noisy, clean, strict=True)
    ]
    return clean, spread


def _reach(node: Node, value: Tensor) -> Tensor:
    """The magnitude that rounds where a value enters: a softmax takes the largest off all others first."""
    if node.op == "softmax":
        return value.abs().amax(node.attributes["dim"] + 1, keepdim=True)
    return value.abs()


def _rounding(node: Node, inputs: Sequence[Tensor], value: Tensor, dtype: torch.dtype) -> Tensor:
    """How far one operation may be from what it computes, for one input."""
    u = torch.finfo(dtype).eps / 2
    if node.op == "gelu":  # x / 2 (1 + erf(x / sqrt 2)) cancels for negative x
        return _ULPS * u * (value.abs() + inputs[0].abs())
    if node.op not in _SUMS:
        return _ULPS * u * value.abs() + _FEW_ULPS * u * _inner(node, inputs[0])
    tensors = {k: t.abs() for k, t in node.tensors.items() if k != "size"}
    if "size" in node.tensors:
        key = "shift" if node.op == "affine" else "bias"
        tensors[key] = node.tensors["size"].to(value).expand_as(tensors[key])
    op = "add" if node.op == "sub" else node.op
    size = compute(op, [t.abs() for t in inputs], tensors, node.attributes)
    # types narrower than float32 are summed in float32 and rounded at the end
    return (_terms(node) + _FOLDED) * min(u, 2.0**-24) * size + (2 * _FOLDED * u * size if u > 2.0**-24 else 0.0)


def _inner(node: Node, x: Tensor) -> Tensor:
    """The magnitude of what a function takes the difference of, or of the quotient of polynomials that stands for it."""
    if node.op == "elu":
        return (x < 0) * abs(node.attributes["alpha"])
    if node.op in ("silu", "gelu"):
        return x.abs()
    return torch.ones_like(x) if node.op in ("sigmoid", "tanh", "erf", "softplus", "softmax") else torch.zeros_like(x)


def _terms(node: Node) -> int:
    """How many products are added up to one entry, at most."""
    weight = node.tensors.get("weight")
    if weight is None:
        return 2
    return torch.Size(weight.shape[1:]).numel() if node.op != "conv_transpose" else weight[:, 0].numel()


def _work(graph: Graph) -> int:
    """Multiplications for one sample."""
    return sum(
        torch.Size(n.shape).numel() * (_terms(n) if "weight" in n.tensors and n.op != "embedding" else 1)
        for n in graph.nodes
    )


def _told(graph: Graph, search: _Search, x: Tensor, trace: Callable[[], Trace] | None) -> str:
    """What is said of a difference at a point."""
    with torch.no_grad():
        mine = _values(search.graph, x)[-1].flatten()
        real = search.truth(search.given(x)).detach().double().flatten().to(mine.device)
        _, spread = _rounded(search.graph, search.dtype, x)
    at = int((_apart(mine, real) / (spread[-1].flatten() + torch.finfo(torch.float64).tiny)).argmax())
    said = f"output {at} is {float(real[at]):.9g}, the graph gives {float(mine[at]):.9g}"
    where = "" if trace is None else _first(search, x, trace())
    return (
        f"the graph that was read is not the model: at an input of the set {said}, more than rounding explains{where}; "
        "nothing is said about a model that was read wrongly (is it random, or does it keep a state?)"
    )


def _first(search: _Search, x: Tensor, trace: Trace) -> str:
    """The first operation whose value differs."""
    steps = list(trace.steps(search.given(x)))
    fine = trace.graph.to(torch.float64)
    shapes = [fine.nodes[i].shape for _, i, _ in steps]
    for (name, _, value), shape in zip(steps, shapes, strict=True):
        if value.numel() != torch.Size(shape).numel():
            return f"; the first operation that differs is {name}, by its shape"
    wrong = _differing(fine, search.dtype, x, [(i, value) for _, i, value in steps])
    if wrong:
        return f"; the first operation that differs is {steps[wrong[0]][0]}"
    return "; each operation by itself agrees, so it is their simplification that differs"
