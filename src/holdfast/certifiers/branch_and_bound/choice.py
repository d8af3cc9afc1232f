"""Which neuron to split: scores from one pass, then bounds of the children."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from holdfast.certifiers.branch_and_bound.passes import Pass, evaluate
from holdfast.certifiers.branch_and_bound.reduced import Cuts, LinearRows, NeuronState, Reduced
from holdfast.graph.operations import compute

__all__ = ["Choice"]


class Choice:
    """Chooses splits.

    Args:
        reduced: what states refer to.
        score: what bounds (n, rows) of a domain's rows say of it.
        count: candidates whose children are bounded.
        batch: rows that are bounded at once.
    """

    def __init__(self, reduced: Reduced, score: Callable[[Tensor], Tensor], *, count: int, batch: int) -> None:
        self._reduced, self._score, self._count, self._batch = reduced, score, count, batch

    def scores(self, state: NeuronState, last: Pass, width: int) -> Tensor:
        """How much each unit seems worth, (n, units); below 0 where there is nothing to split.

        What the relaxation loses at its minimiser, and what its intercepts take away (BaBSR), each as a part of the
        largest in the domain.
        """
        reduced, n = self._reduced, len(state.low) // width
        low, high, lines, a, z = state.low, state.high, last.lines, last.a, last.z
        bent = torch.where(reduced.flat.isnan(), high - low > 1e-4, ~((low >= 0) | (high <= 0)))
        value = torch.where(z > 0, z, reduced.flat * z)
        for layer in reduced.smooth:
            node = reduced.activation(layer)
            value[:, layer.span] = compute(node.op, [z[:, layer.span]], {}, node.attributes)
        lost = (a * (value - last.r)).clamp(min=0)
        taken = a.clamp(max=0) * lines.upper_intercept
        if lines.lower_intercept is not None:
            taken = taken - a.clamp(min=0) * lines.lower_intercept
        total = torch.zeros(n, reduced.units)
        for part in (lost, taken.abs()):
            part = torch.where(bent, part, 0.0).nan_to_num(0.0).view(n, width, -1).sum(1)
            total += part / part.amax(1, keepdim=True).clamp(min=1e-30)
        return torch.where(bent[::width], total + 1e-9, -1.0)

    def candidates(self, linear: LinearRows, state: NeuronState, last: Pass, parent: Tensor, width: int) -> Tensor:
        """The splits that are tried, best first: (n, candidates), -1 where there are no more.

        Those of the best scores are ranked by bounds of both children (FSB), of which the product of the gains counts.

        Args:
            linear: the rows of all domains, ``width`` of each.
            state: of the same.
            last: their last pass.
            parent: the bounds of the domains, (n,).
            width: rows of a domain.
        """
        n, count = len(parent), min(self._count, self._reduced.units)
        if not count:
            return torch.full((n, 1), -1)
        best, unit = self.scores(state, last, width).topk(count, dim=1)
        unit = torch.where(best > 0, unit, -1)
        if count == 1:
            return unit
        gains = torch.full((n, count), -torch.inf)
        for i in torch.split(torch.arange(n), max(self._batch // (count * width), 1)):
            gains[i] = self._gains(linear, state, last, parent[i], unit[i], i, width)
        order = torch.where(unit >= 0, gains, -torch.inf).argsort(dim=1, descending=True)
        return unit.gather(1, order)

    def _gains(
        self, linear: LinearRows, state: NeuronState, last: Pass, parent: Tensor, unit: Tensor, i: Tensor, width: int
    ) -> Tensor:
        """What splitting domains ``i`` at each unit (n, k) would gain, before anything is optimised again."""
        n, count = unit.shape
        each = i.repeat_interleave(count)
        rows = (each.unsqueeze(1) * width + torch.arange(width)).flatten()
        linear, state = linear[rows], state.pick(rows)
        at = unit.clamp(min=0).flatten().repeat_interleave(width).unsqueeze(1)
        point, cuts = self.points(state, at), state.cuts
        a, slope = last.a[rows].gather(1, at), state.slope.gather(1, at)
        children: list[Tensor] = []
        for side in (-1, 1):
            low, high = state.low, state.high
            if side > 0:
                low = low.scatter(1, at, torch.maximum(point, low.gather(1, at)))
            else:
                high = high.scatter(1, at, torch.minimum(point, high.gather(1, at)))
            own = (at, torch.full_like(point, side), point, self.multiplier(a, slope, at, side))
            both = Cuts(*(torch.cat([t, e], 1) for t, e in zip(cuts, own, strict=True)))
            child = NeuronState(low, high, state.slope, state.alphas, both)
            bound = evaluate(self._reduced, linear, child, forth=False).bound
            children.append(self._score(bound.view(-1, width)).view(n, count))
        start = parent.unsqueeze(1)
        one, two = ((c.clamp(max=0) - start).clamp(min=0) + 1e-6 * start.abs() for c in children)
        return one * two

    def multiplier(self, a: Tensor, slope: Tensor, at: Tensor, side: int) -> Tensor:
        """What a new split's multiplier starts from: with it a part is bounded no worse than what it is a part of.

        Where a coefficient is positive the parent used the line below; the multiplier turns the child's exact piece
        back into that line. Where it is negative the piece alone is no worse than the chord. Other activations keep
        the line's slope and start from 0.

        Args:
            a: the coefficients of the activations, (n, k).
            slope: the slopes of their lines below.
            at: which activations, int64.
            side: of the split.
        """
        flat = self._reduced.flat[at]
        start = a.clamp(min=0) * (1 - slope if side > 0 else slope - flat)
        return torch.where(flat.isnan(), 0.0, start).nan_to_num(0.0).clamp(min=0)

    def points(self, state: NeuronState, at: Tensor) -> Tensor:
        """Where units (n, 1) are split: a ReLU at its kink, anything else in the middle of its box."""
        middle = (state.low.gather(1, at) + state.high.gather(1, at)) / 2
        return torch.where(self._reduced.flat[at].isnan(), middle, 0.0)
