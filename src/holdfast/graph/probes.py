"""Points of a box at which a graph and the thing itself might part; the same at every call.

Corners and draws find what differs widely. What differs in a corner that draws never reach, or in a slice of the box, is
sought where the graph bends (points at both sides of a threshold of its activations) and uphill (along the gradient of
the difference, where the thing itself has one).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from holdfast.core.arrays import listed
from holdfast.graph.model import Graph, Node
from holdfast.graph.operations import OPERATIONS
from holdfast.graph.rounding import difference, values, work

__all__ = ["Probes"]

_HEAVY = 1.25e8  # multiplications of one point, from which on there are as few points as possible
_DRAWS = 5e7  # multiplications that are spent on draws where points are light
_MOST = 96  # draws


class Probes:
    """Points in batches of (n, \\*features) float64, each a number of the type in which the model runs.

    Args:
        graph: in float64.
        dtype: the type in which the model runs.
        low: (\\*features) float64, finite.
        high: the same.
        whole: inputs are whole numbers.
    """

    def __init__(self, graph: Graph, dtype: torch.dtype, low: Tensor, high: Tensor, whole: bool) -> None:
        self.graph, self.dtype, self.whole = graph, dtype, whole
        self.low, self.high = low.reshape(graph.input_shape), high.reshape(graph.input_shape)
        self.generator = torch.Generator().manual_seed(20261130)
        self.cost = max(work(graph), 1)
        self.few = self.cost > _HEAVY

    def first(self) -> Tensor:
        """Centre, corners, those of single activations and outputs, uniform draws, and draws between centre and corners."""
        count = 1 if self.few else max(3, min(_MOST, int(_DRAWS / self.cost)))
        ends = torch.stack([torch.full(self.graph.input_shape, v, dtype=torch.float64) for v in (0.5, 0.0, 1.0)])
        corners = torch.cat([ends.to(self.low.device), self._draw(1 if self.few else 2).round(), *self._corners()])
        towards = corners[1 + torch.arange(count // 2) % (len(corners) - 1)]
        far = torch.rand(count // 2, *(1,) * (towards.ndim - 1), generator=self.generator, dtype=torch.float64)
        between = 0.5 + far.to(towards.device) * (towards - 0.5)
        return self._mixed(torch.cat([corners, self._draw(count - count // 2), between]))

    def near(self, best: Tensor) -> Tensor:
        """Points that differ from a point (\\*features) in a part of their entries."""
        n = 1 if self.few else 3
        drawn = self._mixed(torch.cat([self._draw(n).round(), self._draw(n)]))
        return torch.where(self._draw(2 * n) < 0.5, best, drawn)

    def bends(self, x: Tensor) -> Tensor | None:
        """Points at both sides of thresholds of activations, on lines between points of ``x``; None: it crosses none."""
        bend = [None, *(OPERATIONS[n.op].bend for n in self.graph.nodes[1:])]
        places = [i for i, at in enumerate(bend) if at is not None]
        if self.whole or not places:
            return None
        x = x[:3] if self.few else x[:12]
        reached = values(self.graph, x, upto=places[-1])
        targets: list[tuple[int, int, float]] = []
        ends: list[tuple[int, int]] = []
        for i in self._some(places, 1 if self.few else 6):
            node = self.graph.nodes[i]
            level = float(node.attributes.get("threshold", bend[i]))
            source = reached[node.inputs[0]].flatten(1)
            crossed = listed(((source <= level).any(0) & (source > level).any(0)).nonzero().flatten())
            for unit in self._some(crossed, 2):
                targets.append((node.inputs[0], unit, level))
                ends.append((int(source[:, unit].argmin()), int(source[:, unit].argmax())))
        if not targets:
            return None
        below, above = (x[[pair[side] for pair in ends]] for side in (0, 1))
        return self._both_sides(below, above, targets)

    def _both_sides(self, below: Tensor, above: Tensor, targets: list[tuple[int, int, float]]) -> Tensor:
        """The ends of brackets around where a unit's argument crosses its threshold.

        Steps of false position, and every other one halves: a curve that is flat at one end does not stall it.
        """
        last, rows = max(i for i, _, _ in targets), range(len(targets))
        level = torch.tensor([t for _, _, t in targets], dtype=torch.float64, device=below.device)

        def excess(x: Tensor) -> Tensor:
            reached = values(self.graph, x, upto=last)
            return (
                torch.stack([reached[i].flatten(1)[r, unit] for r, (i, unit, _) in zip(rows, targets, strict=True)])
                - level
            )

        least, most, wide = excess(below), excess(above), (-1,) + (1,) * (below.ndim - 1)
        for k in range(3 if self.few else 8):
            share = (least / (least - most)).nan_to_num(0.5).clamp(0.01, 0.99) if k % 2 else torch.full_like(level, 0.5)
            middle = below + share.view(wide) * (above - below)
            found = excess(middle)
            up = found > 0
            above, most = torch.where(up.view(wide), middle, above), torch.where(up, found, most)
            below, least = torch.where(up.view(wide), below, middle), torch.where(up, least, found)
        return self._held(torch.cat([below, above]))

    def uphill(self, best: Tensor, truth: Callable[[Tensor], Tensor]) -> Tensor | None:
        """Points of an ascent on the difference from a point (\\*features) and from draws; None: no gradient leads there.

        Args:
            best: where the largest difference was found so far.
            truth: the thing itself, for (n, \\*features) in its own type.
        """
        if self.whole:
            return None
        x, found = torch.cat([best[None], self._mixed(self._draw(0 if self.few else 2))]), list[Tensor]()
        for step in (1.0, 0.5) if self.few else (1.0, 0.5, 0.25, 0.1):
            pull = self._pull(x, truth)
            if pull is None:
                break
            x = self._held(torch.clamp(x + step * (self.high - self.low) * pull.sign(), self.low, self.high))
            found.append(x)
        return torch.cat(found) if found else None

    def _pull(self, x: Tensor, truth: Callable[[Tensor], Tensor]) -> Tensor | None:
        """The gradient of the distance of the graph's outputs from the truth's, or None where the truth gives none."""
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            try:
                given = truth(x.to(self.dtype, copy=True))
                if not given.requires_grad:
                    return None
                mine = values(self.graph, x)[-1]
                distance = difference(mine, given.to(mine).reshape(mine.shape))
                return torch.autograd.grad(distance.where(distance.isfinite(), 0.0).sum(), x)[0].nan_to_num(0.0)
            except Exception:  # whatever the model's code raises where gradients are asked of it; compared without
                return None

    def _corners(self) -> list[Tensor]:
        """For some activations and outputs, the corners of the box towards which one of their entries grows or shrinks."""
        bent = [i for i, n in enumerate(self.graph.nodes) if i and not _adds_up(n)]
        places = self._some(bent, 1 if self.few else 3)
        if self.whole:
            return []
        x = self._mixed(torch.full((1, *self.graph.input_shape), 0.5, device=self.low.device)).requires_grad_()
        with torch.enable_grad():
            reached = values(self.graph, x)
            aims = [reached[self.graph.nodes[i].inputs[0]].flatten() for i in places] + [reached[-1].flatten()]
            picks = [int(torch.randint(len(a), (1,), generator=self.generator)) for a in aims]
            pulls = [
                torch.autograd.grad(a[p], x, retain_graph=True, allow_unused=True)[0]
                for a, p in zip(aims, picks, strict=True)
                if a.requires_grad
            ]
        towards = [(g >= 0).double() for g in pulls if g is not None]  # pyright: ignore[reportUnnecessaryComparison]
        return towards + [1 - t for t in (towards[:1] if self.few else towards)]

    def _some(self, given: list[int], count: int) -> list[int]:
        """A few of a list, drawn."""
        order: list[int] = listed(torch.randperm(len(given), generator=self.generator)[:count])
        return [given[i] for i in sorted(order)]

    def _draw(self, n: int) -> Tensor:
        shape = (n, *self.graph.input_shape)
        return torch.rand(shape, generator=self.generator, dtype=torch.float64).to(self.low.device)

    def _mixed(self, share: Tensor) -> Tensor:
        """Points between the two ends."""
        return self._held(self.low + share * (self.high - self.low))

    def _held(self, x: Tensor) -> Tensor:
        """The nearest points that the truth's type can hold."""
        if not self.whole:
            return x.to(self.dtype).double()
        return torch.minimum(torch.maximum(x.round(), self.low), self.high)


def _adds_up(node: Node) -> bool:
    """A linear operation other than a convolution: no corner is sought for what it reads.

    What a convolution reads counts as an activation does, so that networks of few activations get corners too.
    """
    return OPERATIONS[node.op].linear and "stride" not in node.attributes
