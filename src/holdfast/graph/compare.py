"""Holds a graph against the thing itself before anybody believes it: no verdict is better than the reading it rests on.

The graph runs in float64, the truth in its own type, at points that `probes` chooses. They may differ by what the truth's
arithmetic rounds, which `rounding` says. What lies beyond that is another function, and the first operation that differs
is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.core.arrays import listed
from holdfast.core.errors import ModelError
from holdfast.graph.model import Graph
from holdfast.graph.probes import Probes
from holdfast.graph.rounding import difference, differing, rounded, values

__all__ = ["Recording", "compare"]

Truth = Callable[[Tensor], Tensor]
"""The thing itself: outputs (n, ...) for inputs (n, \\*features) in the graph's type."""

_LOOKED_AT = 2  # of the points of a batch, those that lie apart most, for which rounding is worked out; by two measures


@dataclass(frozen=True)
class Recording:
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
    recording: Callable[[], Recording] | None = None,
) -> None:
    """Holds that the graph computes what the truth does on points of a box.

    The points are its centre, corners and uniform draws, the corners towards which activations inside and outputs grow or
    shrink most, both sides of thresholds of activations, what an ascent on the difference steps through where the truth
    has gradients, and points near the one that differs most; they are the same at every call.

    Args:
        graph: what is to be believed.
        truth: what it must equal; it gets inputs in the graph's type, or int64 where ``whole``.
        low: (\\*features), the smallest inputs; where they are infinite, numbers are taken instead.
        high: (\\*features), the largest.
        whole: the inputs are whole numbers.
        recording: gives what finds the first operation that differs, asked only where something does.

    Raises:
        ModelError: the two differ by more than rounding; the message names where.
    """
    search = _Search(graph, truth, whole, *_finite(low, high, whole))
    for x in search.points():
        worst = search.worst(x)
        if worst is not None:
            raise ModelError(_told(search, worst, recording))


def _finite(low: Tensor, high: Tensor, whole: bool) -> tuple[Tensor, Tensor]:
    """The box in float64 with numbers where it has no end."""
    low, high = low.detach().double(), high.detach().double()
    low = torch.where(low.isfinite(), low, torch.minimum(high, torch.full_like(low, 10.0)) - 20.0)
    high = torch.where(high.isfinite(), high, torch.maximum(low, torch.full_like(low, -10.0)) + 20.0)
    return (low.ceil(), high.floor()) if whole else (low, high)


class _Search:
    """How far graph and truth lie apart, and where they lie apart most so far."""

    def __init__(self, graph: Graph, truth: Truth, whole: bool, low: Tensor, high: Tensor) -> None:
        self.graph, self.dtype, self.truth, self.whole = graph.to(torch.float64), graph.dtype, truth, whole
        self.probes = Probes(self.graph, self.dtype, low, high, whole)
        self.best, self.largest = low.reshape(graph.input_shape), -1.0

    def points(self) -> Iterator[Tensor]:
        """Batches of points, later ones by what the earlier ones showed."""
        first = self.probes.first()
        yield first
        with torch.no_grad():
            bends = self.probes.bends(first)
        if bends is not None:
            yield bends
        uphill = self.probes.uphill(self.best, self.truth)
        if uphill is not None:
            yield uphill
        for _ in range(2 if uphill is None else 1):
            yield self.probes.near(self.best)

    def given(self, x: Tensor) -> Tensor:
        """Points as the truth takes them."""
        return x.long() if self.whole else x.to(self.dtype, copy=True)

    def worst(self, x: Tensor) -> Tensor | None:
        """The first of the points at which graph and truth differ by more than rounding, (1, \\*features), or None."""
        with torch.no_grad():
            expected = self.truth(self.given(x)).detach().to(x.device, torch.float64)
            found = values(self.graph, x, last=True)[-1]
            if expected.numel() != found.numel():
                raise ModelError(
                    f"the model's output for {len(x)} inputs has shape {tuple(expected.shape)}, the graph read from it "
                    f"gives {tuple(found.shape)}"
                )
            expected = expected.reshape(found.shape)
            for i in self._suspects(x, difference(found, expected).flatten(1), expected.flatten(1)):
                if differing(self.graph, self.dtype, x[i : i + 1], [(len(self.graph.nodes) - 1, expected[i : i + 1])]):
                    return x[i : i + 1]
        return None

    def _suspects(self, x: Tensor, distance: Tensor, expected: Tensor) -> list[int]:
        """The points that lie apart most, measured by their own values and by the largest ones of the batch."""
        if not distance.shape[1]:
            return []
        size = expected.nan_to_num(0.0, 0.0, 0.0).abs()
        unit = 8 * torch.finfo(self.dtype).eps
        found: dict[int, None] = {}
        for scale in (size, size.amax(0, keepdim=True)):
            roundings = (distance / (unit * scale + 1e-30)).amax(1)
            order: list[int] = listed(roundings.argsort(descending=True))
            found |= dict.fromkeys(i for i in order[:_LOOKED_AT] if float(roundings[i]) > 1)
        first = int(roundings.argmax())
        if float(roundings[first]) > self.largest:
            self.best, self.largest = x[first], float(roundings[first])
        return list(found)


def _told(search: _Search, x: Tensor, recording: Callable[[], Recording] | None) -> str:
    """What is said of a difference at a point."""
    with torch.no_grad():
        mine = values(search.graph, x)[-1].flatten()
        real, again = (search.truth(search.given(x)).detach().double().flatten().to(mine.device) for _ in range(2))
        changed = difference(real, again)
        if (
            float(changed.max()) > float(difference(mine, real).max()) / 100
        ):  # and not what an accelerator adds up in another order
            at = int(changed.argmax())
            return (
                f"the model is random or keeps a state: asked twice at the same input, its output {at} is "
                f"{float(real[at]):.9g} and then {float(again[at]):.9g}; bounds are about models that answer alike each time: "
                "take the draws and the counters out (attacks and smoothing serve random models)"
            )
        if not differing(search.graph, search.dtype, x, [(len(search.graph.nodes) - 1, real)]):
            return (
                "the model's answer for one input depends on the others in the batch: alone it is what the graph gives, "
                "among others it is not; bounds are about models that answer each input by itself"
            )
        _, spread = rounded(search.graph, search.dtype, x)
    at = int((difference(mine, real) / (spread[-1].flatten() + torch.finfo(torch.float64).tiny)).argmax())
    said = f"output {at} is {float(real[at]):.9g}, the graph gives {float(mine[at]):.9g}"
    where = "" if recording is None else _first(search, x, recording(), real)
    return (
        f"the graph that was read is not the model: at an input of the set {said}, more than rounding explains{where}; "
        "nothing is said about a model that was read wrongly"
    )


def _first(search: _Search, x: Tensor, recording: Recording, real: Tensor) -> str:
    """The first operation whose value differs."""
    steps = list(recording.steps(search.given(x)))
    fine = recording.graph.to(torch.float64)
    shapes = [fine.nodes[i].shape for _, i, _ in steps]
    for (name, _, value), shape in zip(steps, shapes, strict=True):
        if value.numel() != torch.Size(shape).numel():
            return f"; the first operation that differs is {name}, by its shape"
    wrong = differing(fine, search.dtype, x, [(i, value) for _, i, value in steps])
    if wrong:
        return f"; the first operation that differs is {steps[wrong[0]][0]}"
    ends = steps[-1][2].to(real).flatten() if steps else real
    if ends.numel() == real.numel() and bool((difference(ends, real) > 0).any()):
        return (
            "; each operation of what was recorded agrees, so the model itself runs otherwise than it was recorded: by the "
            "moment, the size of the batch or a flag"
        )
    return "; each operation by itself agrees, so it is their simplification that differs"
