"""Better boxes of activations' arguments: slopes of their own for each end, then splits of the neurons before them."""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic

import torch
from torch import Tensor

from holdfast.certifiers.branch_and_bound.ascent import Climb, ascend
from holdfast.certifiers.branch_and_bound.choice import Choice
from holdfast.certifiers.branch_and_bound.passes import evaluate
from holdfast.certifiers.branch_and_bound.reduced import Cuts, LinearRows, NeuronState, Reduced
from holdfast.certifiers.branch_and_bound.sound import sound_units
from holdfast.certifiers.propagation.propagation import Propagation
from holdfast.certifiers.propagation.region import Box
from holdfast.certifiers.verification.query import Query

__all__ = ["Refinement"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Refinement:
    """The box of one layer's arguments.

    Each end of each entry is a small branch and bound of its own, all of them side by side: in each round every end
    splits its worst part. An entry that is found to be stable is left alone.

    Attributes:
        propagation: of the whole region.
        reduced: the same, reduced.
        query: whose set the region is.
        choice: of splits.
        depth: which layer.
        step: Adam's learning rate.
        decay: what it is multiplied by at each step.
        until: on the clock of `time.monotonic`.
        iterations: on the slopes of each end.
        splits: of each end.
        split_iterations: on what a split made.
        batch: ends at a time.
    """

    propagation: Propagation
    reduced: Reduced
    query: Query
    choice: Choice
    depth: int
    step: float
    decay: float
    until: float
    iterations: int
    splits: int
    split_iterations: int
    batch: int

    def run(self) -> Box:
        """The box, (1, \\*shape), sound."""
        layer = self.reduced.layers[self.depth]
        own = LinearRows(*(t[layer.span] for t in self.reduced.values))
        box = self.propagation.boxes[layer.source]
        low, high = box.lower.flatten().clone(), box.upper.flatten().clone()
        for i in torch.split(torch.arange(len(layer.index)), max(self.batch // 2, 1)):
            if monotonic() > self.until:
                break
            rows = LinearRows(*(torch.cat([t[i], -t[i]]) for t in own))
            least, negated = self._ends(rows, layer.index[i]).chunk(2)
            index = layer.index[i]
            low[index] = torch.fmax(low[index], least)
            high[index] = torch.fmin(high[index], -negated)
        return Box(low.view_as(box.lower), high.view_as(box.upper))

    def _ends(self, rows: LinearRows, index: Tensor) -> Tensor:
        """Sound lower bounds of the rows: first those of the entries, then those of their negatives."""
        count = len(index)
        bound, state = self._ascend(rows, self.reduced.state(len(rows.c)), self.iterations)
        owner = torch.arange(len(rows.c))
        for _ in range(self.splits):
            settled = torch.full((2 * count,), torch.inf).scatter_reduce_(0, owner, bound, "amin") > 0
            settled = (settled[:count] | settled[count:]).repeat(2)
            chosen = self._worst(bound, owner, 2 * count)
            chosen = chosen[~settled[owner[chosen]]]
            if not len(chosen) or monotonic() > self.until:
                break
            last = evaluate(self.reduced, rows[owner[chosen]], state.pick(chosen), depth=self.depth)
            best, unit = self.choice.scores(state.pick(chosen), last, 1).max(1)
            useful, unit = best > 1e-6, unit.unsqueeze(1)
            chosen, unit, a = chosen[useful], unit[useful], last.a.gather(1, unit)[useful]
            if not len(chosen):
                break
            owners = owner[chosen].repeat(2)
            halves = self._split(state.pick(chosen), unit, a)
            more, children = self._ascend(rows[owners], halves, self.split_iterations)
            # nothing that is found below a part is worse than what is known of it
            more = torch.maximum(more, bound[chosen].repeat(2))
            kept = torch.ones(len(bound), dtype=torch.bool).index_fill_(0, chosen, False)
            keep = kept.nonzero().squeeze(1)
            state = NeuronState.join([_widened(state.pick(keep)), children])
            bound, owner = torch.cat([bound[keep], more]), torch.cat([owner[keep], owners])
        sign = torch.where(owner < count, 1.0, -1.0).double()
        source = self.reduced.layers[self.depth].source
        sound = sound_units(self.propagation, self.reduced, self.query, source, index[owner % count], sign, state)
        return torch.full((2 * count,), torch.inf, dtype=torch.float64).scatter_reduce_(0, owner, sound, "amin")

    def _ascend(self, rows: LinearRows, state: NeuronState, iterations: int) -> tuple[Tensor, NeuronState]:
        climb = Climb(
            iterations=iterations, step=self.step, decay=self.decay, depth=self.depth, target=0.0, until=self.until
        )
        return ascend(self.reduced, rows, state, climb)

    def _worst(self, bound: Tensor, owner: Tensor, count: int) -> Tensor:
        """The part of the least bound of each end."""
        order = bound.argsort(descending=True)
        last = torch.full((count,), -1, dtype=torch.int64)
        last[owner[order]] = order  # the last one written stays: on a CPU that is the least
        least = torch.full((count,), torch.inf).scatter_reduce_(0, owner, bound, "amin")
        return last[(bound[last] <= least) & (last >= 0)]

    def _split(self, state: NeuronState, unit: Tensor, a: Tensor) -> NeuronState:
        """Both children of each part, first all lower ones, at units with these coefficients."""
        point = self.choice.points(state, unit)
        low, high, cuts, slope = state.low, state.high, state.cuts, state.slope.gather(1, unit)
        sides = [
            Cuts(
                torch.cat([cuts.unit, unit], 1),
                torch.cat([cuts.side, torch.full_like(point, side)], 1),
                torch.cat([cuts.point, point], 1),
                torch.cat([cuts.multiplier, self.choice.multiplier(a, slope, unit, side)], 1),
            )
            for side in (-1, 1)
        ]
        below = NeuronState(low, high.scatter(1, unit, point), state.slope, state.alphas, sides[0])
        above = NeuronState(low.scatter(1, unit, point), high, state.slope, state.alphas, sides[1])
        return NeuronState.join([below, above])


def _widened(state: NeuronState) -> NeuronState:
    """With one more place for a cut, which is empty."""
    empty = state.low.new_zeros(len(state.low), 1)
    fill = (empty.long(), empty, empty, empty)
    cuts = Cuts(*(torch.cat([t, e], 1) for t, e in zip(state.cuts, fill, strict=True)))
    return NeuronState(state.low, state.high, state.slope, state.alphas, cuts)
