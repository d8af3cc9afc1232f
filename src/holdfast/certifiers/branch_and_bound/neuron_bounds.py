"""Bounds of the parts that neuron splitting makes: fast ones on the reduced graph, sound ones on the whole."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from holdfast.certifiers.branch_and_bound.cell import cell
from holdfast.certifiers.branch_and_bound.neurons import NeuronBounded, NeuronDomains, rows_of
from holdfast.certifiers.branch_and_bound.passes import evaluate
from holdfast.certifiers.branch_and_bound.reduced import Cuts, Layer, LinearRows, NeuronState
from holdfast.certifiers.branch_and_bound.reduction import reduce
from holdfast.certifiers.branch_and_bound.sound import sound_bounds, spread_slopes
from holdfast.certifiers.branch_and_bound.witness import Witnesses
from holdfast.certifiers.propagation.propagation import Propagation
from holdfast.certifiers.verification.query import Query
from holdfast.certifiers.verification.tree import Leaf

__all__ = ["NeuronBounds"]


class NeuronBounds:
    """Bounds of a query's rows over parts of its set.

    Args:
        propagation: of the whole set.
        query: the question.
        memory: bytes for all waiting domains and for the maps of the reduced graph.
        together: all groups of rows are one, as a recorded proof has it.

    Attributes:
        table: (groups, width): the rows that are bounded together.
        alphas: what activations that are no ReLUs start from, of each group and row; none until `begin`.

    Raises:
        UnsupportedError: see `reduce`.
    """

    def __init__(self, propagation: Propagation, query: Query, memory: int, *, together: bool) -> None:
        self.propagation, self.query, self.together = propagation, query, together
        self.reduced = reduce(propagation, query, max(memory // 4, 1))
        self.table = torch.arange(len(query.c)).unsqueeze(0) if together else _table(query)
        self.width = self.table.shape[1]
        self.alphas: list[Tensor] = []

    def begin(self, groups: Tensor, state: NeuronState) -> None:
        """Notes what the whole set of some groups ended with, one state for each of their rows."""
        self.alphas = [t.new_zeros(len(self.table), self.width, *t.shape[1:]) for t in state.alphas]
        for whole, t in zip(self.alphas, state.alphas, strict=True):
            whole[groups] = t.view(len(groups), self.width, *t.shape[1:])

    def score(self, rows: Tensor) -> Tensor:
        """What bounds (n, width) of a domain's rows say of it."""
        return self.query.score(rows) if self.together else rows.amax(1)

    def linear(self, groups: Tensor) -> LinearRows:
        """The rows of domains of these groups."""
        return self.reduced.rows[self.table[groups].flatten()]

    def state(self, domains: NeuronDomains) -> NeuronState:
        """The state that a batch of domains starts from, one for each of their rows."""
        width = self.width
        cuts = Cuts(domains.unit.long(), domains.side.float(), domains.point, domains.multiplier.flatten(0, 1))
        low, high = (t.float() for t in self.reduced.cut(cuts))
        if width > 1:
            low, high = low.repeat_interleave(width, 0), high.repeat_interleave(width, 0)
            unit, side, point = (t.repeat_interleave(width, 0) for t in cuts[:3])
            cuts = Cuts(unit, side, point, cuts.multiplier)
        alphas = [t[domains.group].flatten(0, 1) for t in self.alphas]
        return NeuronState(low, high, domains.slope.flatten(0, 1).float(), alphas, cuts)

    def sound(self, groups: Tensor, state: NeuronState) -> Tensor:
        """Sound bounds (n, width) of domains of these groups."""
        members = self.table[groups]
        c, d = self.query.c[members], self.query.d[members]
        return sound_bounds(self.propagation, self.reduced, self.query, c, d, state)

    def bounded(
        self, domains: NeuronDomains, linear: LinearRows, state: NeuronState, sound: Tensor | None = None
    ) -> NeuronBounded:
        """What one more pass says of domains, and sound bounds where it is hopeful, unless they are given."""
        last, n = evaluate(self.reduced, linear, state), len(domains)
        estimate = self.score(last.bound.view(n, self.width))
        if sound is None:
            sound = torch.full((n, self.width), -torch.inf, dtype=torch.float64)
            hopeful = (estimate > 0).nonzero().squeeze(1)
            if len(hopeful):
                sound[hopeful] = self.sound(domains.group[hopeful], state.pick(rows_of(hopeful, self.width)))
        score = self.score(sound)
        return NeuronBounded(
            domains=replace(domains, sound=torch.maximum(domains.sound, score)),
            proved=score > 0,
            linear=linear,
            state=state,
            last=last,
            sound=sound,
            score=score,
            estimate=estimate,
        )

    def program(
        self, linear: LinearRows, state: NeuronState, group: Tensor, witnesses: Witnesses
    ) -> tuple[NeuronState, Tensor, Tensor | None]:
        """One domain in which all neurons are split: it is a linear program.

        Args:
            linear: its rows.
            state: of them.
            group: (1,).
            witnesses: tries the program's minimiser.

        Returns:
            The state with the program's multipliers, sound bounds (1, width), and a witness if one is found.
        """
        reduced, width, members = self.reduced, self.width, self.table[group[0]]
        sound = self.sound(group, state)
        if self.score(sound) > 0 or not reduced.entrance.boxed:
            return state, sound, None
        point, weights, multiplier = cell(reduced, linear, state)
        witness = witnesses.find(reduced.entrance.point(point.unsqueeze(0)))
        if witness is not None:
            return state, sound, witness
        state = state._replace(cuts=Cuts(*state.cuts[:3], multiplier.expand(width, -1)))
        sound = self.sound(group, state)
        if width > 1 and not self.together and not self.score(sound) > 0:  # a mixture of rows may do
            c, d = weights @ self.query.c[members], weights @ self.query.d[members]
            one = state.pick(torch.zeros(1, dtype=torch.int64))
            mixed = sound_bounds(self.propagation, reduced, self.query, c.view(1, 1, -1), d.view(1, 1), one)
            sound = mixed.expand(1, width)
        return state, sound, None

    def leaf(self, state: NeuronState, domain: int, sound: Tensor) -> Leaf:
        """For each group the row that is positive throughout a domain, with its slopes and multipliers."""
        best = self.query.best_rows(sound)
        own = state.pick(torch.tensor([domain * self.width + row for row in best]))
        used = own.cuts.side[0] != 0
        last = len(self.propagation.graph.nodes) - 1
        spread = spread_slopes(self.propagation, self.reduced, own, 1, len(best), last)
        slopes = {k: t.squeeze(1).float().numpy() for k, t in spread.items()}
        return Leaf(best, slopes, own.cuts.multiplier[:, used].numpy())

    def behind(self, layer: Layer) -> bool:
        """Whether a layer's arguments depend on what bends, so that their box may get better."""
        return bool(self.reduced.values.r[layer.span, : layer.start].any())


def _table(query: Query) -> Tensor:
    """(groups, rows): the rows of each group; groups with fewer rows repeat their last one."""
    members = [(query.groups == g).nonzero().squeeze(1) for g in range(int(query.groups[-1]) + 1)]
    most = max(len(m) for m in members)
    return torch.stack([torch.cat([m, m[-1:].expand(most - len(m))]) for m in members])
