"""Neuron splitting: branch and bound over the pieces of activations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from time import monotonic
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.certifiers.branch_and_bound.cell import cell
from holdfast.certifiers.branch_and_bound.choice import Choice
from holdfast.certifiers.branch_and_bound.neurons import NeuronBounded, NeuronDomains, rows_of
from holdfast.certifiers.branch_and_bound.pool import Pool
from holdfast.certifiers.branch_and_bound.reduced import Cuts, Layer, Linear, Reduced, State
from holdfast.certifiers.branch_and_bound.refine import Refinement
from holdfast.certifiers.branch_and_bound.search import (
    BranchAndBound,
    Ending,
    Settled,
    Stop,
    StuckError,
    WhenFull,
    search,
)
from holdfast.certifiers.branch_and_bound.sound import sound_bounds, spread_slopes
from holdfast.certifiers.propagation.propagation import Propagation, specification
from holdfast.certifiers.propagation.region import Region
from holdfast.certifiers.relaxation.relaxation import lower_max_pools
from holdfast.certifiers.verification.query import Query
from holdfast.certifiers.verification.solver import Answer, Decision, Progress, SearchLimit, Solver
from holdfast.certifiers.verification.tree import Leaf, Tree
from holdfast.core.cards import Card, parameter
from holdfast.core.errors import UnsupportedError
from holdfast.core.threat import Guarantee, Norm
from holdfast.graph.model import Graph

__all__ = ["NeuronSplitting"]


@dataclass(frozen=True)
class NeuronSplitting(Solver):
    """Branch and bound that splits activations (Wang et al. 2021, beta-CROWN).

    A ReLU whose argument may have either sign is split at 0, any other activation in the middle of its box. Each part is
    bounded by CROWN with its own slopes and a multiplier for each split, both optimised together, many parts at once.
    The bound grows as long as time is given and is sound at any time.

    The search runs in float32 on what is left of the network where nothing bends (`branch_and_bound.reduced`); a part is closed
    only by a sound float64 pass over the whole network. Before it starts, the boxes of activations' arguments are
    tightened with slopes of their own.
    """

    card: ClassVar[Card] = Card(
        title="Neuron splitting (beta-CROWN)",
        rows=("V02",),
        paper="Wang et al. 2021, Beta-CROWN: Efficient Bound Propagation with Per-neuron Split Constraints, arXiv "
        "2103.06624; Bunel et al. 2020, Branch and Bound for Piecewise Linear Neural Network Verification, arXiv "
        "1909.06588; De Palma et al. 2021, Improved Branch and Bound, arXiv 2104.06718; Shi et al. 2024, GenBaB, "
        "arXiv 2405.21063",
        section="3.3",
        summary="Splits neurons and bounds all parts with optimised slopes and split multipliers, until all are proved.",
        norms=(Norm.LINF, Norm.L2, Norm.L1, Norm.L0),
        guarantee=Guarantee.SOUND,
        failure_modes=(
            "exponential in the worst case",
            "needs activations of one argument: products of values and softmax are not split; max pools are, as ReLUs of "
            "differences, but not with a proof to record",
            "with a proof to record, all groups of a query are split together and boxes are not refined, which takes longer; "
            "groups of several rows may then stay open",
            "smooth activations converge slowly: their lines are found anew in each pass",
        ),
        checked_by="exact optima of small networks by mixed-integer programming; sampled points; planted counterexamples; "
        "verdicts of the verification competition",
    )

    deployable: ClassVar[bool] = True

    iterations: int = parameter(
        12,
        "steps on slopes and multipliers of a new part, at least 0",
        "ours: worked on the competition's networks, not swept",
    )
    root_iterations: int = parameter(
        60, "steps on the slopes of the whole set, at least 0", "ours: worked on the competition's networks, not swept"
    )
    box_iterations: int = parameter(
        30, "steps on the slopes behind boxes, at least 0", "ours: worked on the competition's networks, not swept"
    )
    box_share: float = parameter(
        0.7, "of the time that may go into boxes, in [0, 1]", "ours: worked on the competition's networks, not swept"
    )
    box_splits: int = parameter(
        8, "splits for each end of a box, at least 0", "ours: worked on the competition's networks, not swept"
    )
    candidates: int = parameter(
        6,
        "splits whose children are bounded before one is chosen, at least 1",
        "ours: worked on the competition's networks, not swept",
    )
    batch: int = parameter(
        256, "parts that are bounded at once, at least 2", "ours: fills a CPU's cache, more where networks are small"
    )
    step: float = parameter(0.1, "Adam's learning rate, above 0", "auto_LiRPA: 0.1")
    decay: float = parameter(
        0.97,
        "what the rate is multiplied by at each step, in (0, 1]",
        "ours: worked on the competition's networks, not swept",
    )

    @override
    def solve(
        self,
        graph: Graph,
        query: Query,
        limit: SearchLimit,
        *,
        tree: Tree | None = None,
        progress: Progress | None = None,
    ) -> Answer:
        """See `Solver.solve`."""
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=False):
            region = Region(query.ball, query.x)
            propagation, rows = _whole(graph, region, query, limit, plain=tree is not None)
            bound = float(query.score(rows.unsqueeze(0)))
            by_crown = Answer(
                decision=Decision.HOLDS if bound > 0 else Decision.UNKNOWN,
                bound=bound,
                rows=rows,
                domains=1,
                method="crown",
                arithmetic=self.arithmetic(graph),
            )
            if bound > 0:
                if tree is not None:
                    tree.close(0, Leaf(query.best_rows(rows)))
                return by_crown
            alike = lower_max_pools(graph)
            if alike is not graph and tree is not None:
                reason = "a proof with splits of max pools is not recorded; without --proof it may be decided"
                return replace(by_crown, reason=reason)
            try:
                if alike is not graph:
                    propagation, more = _whole(alike, region, query, limit)
                    rows = torch.maximum(rows, more)
                neurons = _Neurons(self, graph, query, limit, tree, propagation, rows)
            except UnsupportedError as error:
                return replace(by_crown, reason=str(error))
            return search(neurons, progress)


def _whole(
    graph: Graph, region: Region, query: Query, limit: SearchLimit, *, plain: bool = False
) -> tuple[Propagation, Tensor]:
    """CROWN over the whole set, and what it says of the rows, (rows,); unless ``plain``, intervals have a say."""
    propagation = Propagation(graph.to(torch.float64), region, memory=max(limit.memory // 8, 1 << 24))
    propagation.run(refine=lambda _: True)
    c, d = query.c.unsqueeze(0), query.d.unsqueeze(0)
    rows = specification(propagation, c, d)
    if not plain:
        rows = torch.maximum(rows, specification(propagation, c, d, at_boxes=True))
    return propagation, rows[0]


class _Neurons(BranchAndBound[NeuronDomains, NeuronBounded]):
    """The search of one query.

    A domain is a part of the set together with what is to be proved there: one group of the query, or, where a proof is
    recorded, all groups at once (a leaf of the tree proves everything about its part).

    Args:
        method: the parameters.
        graph: the model, on which witnesses are tried.
        query: the question.
        limit: what may be spent.
        tree: where the proof is recorded, if one is wanted.
        propagation: of the whole set through the model, or through a graph that computes the same.
        row_bounds: sound bounds of the query's rows over the whole set.

    Raises:
        UnsupportedError: see `Reduced`.
    """

    when_full = WhenFull.DEEPEN

    def __init__(
        self,
        method: NeuronSplitting,
        graph: Graph,
        query: Query,
        limit: SearchLimit,
        tree: Tree | None,
        propagation: Propagation,
        row_bounds: Tensor,
    ) -> None:
        super().__init__(graph, query, limit, tree)
        self.method, self.propagation, self.row_bounds = method, propagation, row_bounds.clone()
        self.batch = max(method.batch // 2, 1)
        self._reduce()
        self.table = _table(query) if tree is None else torch.arange(len(query.c)).unsqueeze(0)
        self.width = self.table.shape[1]
        self.start = monotonic()
        # of each group the least sound bound of a closed part since the last start, and what earlier starts proved
        self.closed = torch.full((len(self.table),), torch.inf, dtype=torch.float64)
        self.proved_before = torch.full_like(self.closed, -torch.inf)
        self.alphas: list[Tensor] = []  # of activations that are no ReLUs, of each group and row
        self.tried = 0
        # boxes: whether better ones may help, how often each end was split, and until when domains are split first
        self.boxes_help = tree is None and any(map(self._behind, self.reduced.layers))
        self.box_splits, self.boxes_from, self.split_until = 0, torch.inf, -torch.inf
        self.restarted: float | None = None

    def _reduce(self) -> None:
        query, method = self.query, self.method
        rough = Region(query.ball, query.x, torch.float32)
        self.reduced = Reduced(self.propagation, rough, query.c, query.d, max(self.limit.memory // 4, 1))
        self.choice = Choice(self.propagation.graph, self.reduced, self.score, method.candidates, method.batch)

    def score(self, rows: Tensor) -> Tensor:
        """What bounds (n, width) of a domain's rows say of it."""
        return self.query.score(rows) if self.tree is not None else rows.amax(1)

    @property
    @override
    def reserve(self) -> float:
        """Kept for the last sound passes."""
        return 0.2 + 0.02 * (monotonic() - self.start)

    @property
    def _until(self) -> float:
        return self.limit.deadline - self.reserve

    @property
    def _target(self) -> float:
        """Rows beyond it need no better slopes; where a part has several rows, which of them counts is not known."""
        return 0.0 if self.width == 1 else torch.inf

    # the four operations

    @override
    def root(self) -> NeuronBounded | Settled:
        """Groups that are not proved yet, with optimised slopes."""
        method, reduced, width = self.method, self.reduced, self.width
        lower = self.score(self.row_bounds[self.table])
        groups = (~(torch.maximum(lower, self.proved_before) > 0)).nonzero().squeeze(1)
        if not len(groups):  # better boxes have proved all that was open
            return Settled()
        linear = reduced.rows[self.table[groups].flatten()]
        _, state = reduced.ascend(
            linear,
            reduced.state(len(groups) * width),
            method.root_iterations,
            step=method.step,
            decay=method.decay**0.5,
            target=self._target,
            until=self._until,
        )
        self.alphas = [t.new_zeros(len(self.table), width, *t.shape[1:]) for t in state.alphas]
        for whole, t in zip(self.alphas, state.alphas, strict=True):
            whole[groups] = t.view(len(groups), width, *t.shape[1:])
        sound = self._sound(groups, state)
        flat = self.table[groups].flatten()
        self.row_bounds[flat] = torch.maximum(self.row_bounds[flat], sound.flatten())
        domains = NeuronDomains.whole(groups, self.score(self.row_bounds[self.table[groups]]), width)
        self.domains += len(groups)
        return self._bounded(domains, linear, state, sound)

    @override
    def split(self, domains: NeuronDomains) -> NeuronDomains:
        """The parts of each domain, split at several candidates while the batch has room; the exhausted ones alone."""
        exhausted = domains.exhausted
        if exhausted.any():
            self.queue.add(domains.select(~exhausted))
            return domains.select(exhausted)
        level, count = 0, domains.candidates.shape[1]
        while level < count and (not level or 2 * len(domains) <= self.method.batch):
            domains = self._divide(domains, level)
            level += 1
        return domains

    def _divide(self, domains: NeuronDomains, level: int) -> NeuronDomains:
        """Splits each domain at its candidate of this level, if it has one."""
        unit = domains.candidates[:, level].long()
        whole, domains = domains.select(unit < 0), domains.select(unit >= 0)
        unit = unit[unit >= 0].unsqueeze(1)
        point = torch.zeros(len(unit), 1)
        if self.reduced.smooth:
            state = self._state(domains)
            point = self.choice.points(state.pick(torch.arange(len(unit)) * self.width), unit)
        source, entry = self.reduced.source[unit[:, 0]], self.reduced.entry[unit[:, 0]]
        vertices = self.split_vertices(domains.vertex, source, entry, point[:, 0])
        at = unit.unsqueeze(1).expand(-1, self.width, -1)
        slope, a = domains.slope.gather(2, at).float(), domains.coefficient[..., level : level + 1]
        below, above = (self.choice.multiplier(a, slope, at, side) for side in (-1, 1))
        halves = domains.halves(unit, point, (below, above), vertices)
        return NeuronDomains.join([*halves, whole] if len(whole) else halves)

    @override
    def bound(self, domains: NeuronDomains) -> NeuronBounded | Settled:
        """Bounds by optimised slopes and multipliers; sound ones where these look like a proof."""
        if bool(domains.exhausted[0]):
            return self._decide_exhausted(domains)
        method, n = self.method, len(domains)
        linear = self.reduced.rows[self.table[domains.group].flatten()]
        _, state = self.reduced.ascend(
            linear,
            self._state(domains),
            method.iterations,
            step=method.step,
            decay=method.decay,
            target=self._target,
            until=self._until,
        )
        self.domains += n
        return self._bounded(domains, linear, state, None)

    def _bounded(self, domains: NeuronDomains, linear: Linear, state: State, sound: Tensor | None) -> NeuronBounded:
        """What one more pass says; sound bounds where it is hopeful, unless they are known."""
        last = self.reduced.evaluate(linear, state)
        n = len(domains)
        estimate = self.score(last.bound.view(n, self.width))
        if sound is None:
            sound = torch.full((n, self.width), -torch.inf, dtype=torch.float64)
            hopeful = (estimate > 0).nonzero().squeeze(1)
            if len(hopeful):
                index = rows_of(hopeful, self.width)
                sound[hopeful] = self._sound(domains.group[hopeful], state.pick(index))
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

    @override
    def choose(self, open_: NeuronBounded) -> NeuronDomains:
        """The domains with what their last pass ended with, and the candidates of their next splits."""
        n, width = len(open_.domains), self.width
        bound = torch.where(open_.estimate.isnan(), -torch.inf, open_.estimate)
        unit = self.choice.candidates(open_.linear, open_.state, open_.last, bound, width)
        each = unit.clamp(min=0).unsqueeze(1).expand(-1, width, -1)
        a = open_.last.a if self.reduced.units else open_.last.a.new_zeros(len(open_.last.a), 1)
        return replace(
            open_.domains,
            bound=bound,
            slope=open_.state.slope.view(n, width, -1).half(),
            multiplier=open_.state.cuts.multiplier.view(n, width, -1),
            candidates=unit.int(),
            coefficient=a.view(n, width, -1).gather(2, each),
        )

    # what they need

    def _state(self, domains: NeuronDomains) -> State:
        """The state that a batch of domains starts from, one for each of their rows."""
        reduced, width = self.reduced, self.width
        cuts = Cuts(domains.unit.long(), domains.side.float(), domains.point, domains.multiplier.flatten(0, 1))
        low, high = (t.float() for t in reduced.cut(cuts))
        if width > 1:
            low, high = low.repeat_interleave(width, 0), high.repeat_interleave(width, 0)
            unit, side, point = (t.repeat_interleave(width, 0) for t in cuts[:3])
            cuts = Cuts(unit, side, point, cuts.multiplier)
        alphas = [t[domains.group].flatten(0, 1) for t in self.alphas]
        return State(low, high, domains.slope.flatten(0, 1).float(), alphas, cuts)

    def _sound(self, groups: Tensor, state: State) -> Tensor:
        """Sound bounds (n, width) of domains of these groups."""
        members = self.table[groups]
        c, d = self.query.c[members], self.query.d[members]
        return sound_bounds(self.propagation, self.reduced, self.query, c, d, state)

    @override
    def suspects(self, open_: NeuronBounded) -> tuple[Tensor, int]:
        """Where the relaxation is least, in the worst domains."""
        worst = open_.estimate.topk(min(8, len(open_.estimate)), largest=False).indices
        steps = 10 if self.tried % 8 == 0 else 0
        self.tried += 1
        return self.reduced.point(open_.last.x[worst * self.width]), steps

    @override
    def close(self, bounded: NeuronBounded) -> None:
        """Keeps the least bound of each group."""
        group, score = bounded.domains.group[bounded.proved], bounded.score[bounded.proved]
        self.closed = self.closed.scatter_reduce(0, group, score, "amin")

    @override
    def leaf(self, bounded: NeuronBounded, i: int) -> Leaf:
        """For each group the row that is positive throughout, with its slopes and multipliers."""
        return self._leaf(bounded.state, i, bounded.sound[i])

    def _leaf(self, state: State, domain: int, sound: Tensor) -> Leaf:
        best = self.query.best_rows(sound)
        rows = torch.tensor([domain * self.width + row for row in best])
        own = state.pick(rows)
        used = own.cuts.side[0] != 0
        last = len(self.propagation.graph.nodes) - 1
        slopes = {
            k: t.squeeze(1).float().numpy()
            for k, t in spread_slopes(self.propagation, self.reduced, own, 1, len(rows), last).items()
        }
        return Leaf(best, slopes, own.cuts.multiplier[:, used].numpy())

    # domains in which nothing bends any more

    def _decide_exhausted(self, domains: NeuronDomains) -> Settled:
        """Domains in which all neurons are split: each is a linear program."""
        width = self.width
        linear = self.reduced.rows[self.table[domains.group].flatten()]
        _, state = self.reduced.ascend(
            linear, self._state(domains), 200, step=self.method.step, decay=0.98, until=self._until
        )
        for i in range(len(domains)):
            rows = i * width + torch.arange(width)
            own, sound, witness = self._program(linear[rows], state.pick(rows), domains.group[i : i + 1])
            if witness is not None:
                return Settled(witness)
            score = self.score(sound)
            if not score > 0:
                self.queue.add(domains.select(slice(i, None)))
                raise StuckError("a part in which all neurons are split is neither proved nor broken")
            self.closed = self.closed.scatter_reduce(0, domains.group[i : i + 1], score, "amin")
            if self.tree is not None:
                self.tree.close(int(domains.vertex[i]), self._leaf(own, 0, sound[0]))
        return Settled()

    def _program(self, linear: Linear, state: State, group: Tensor) -> tuple[State, Tensor, Tensor | None]:
        """Sound bounds (1, width) of one exhausted domain and the state behind them, or a witness."""
        reduced, width, members = self.reduced, self.width, self.table[group[0]]
        sound = self._sound(group, state)
        if self.score(sound) > 0 or not reduced.boxed:
            return state, sound, None
        point, weights, multiplier = cell(reduced, linear, state)
        witness = self.witnesses.find(reduced.point(point.unsqueeze(0)))
        if witness is not None:
            return state, sound, witness
        state = state._replace(cuts=Cuts(*state.cuts[:3], multiplier.expand(width, -1)))
        sound = self._sound(group, state)
        if width > 1 and self.tree is None and not self.score(sound) > 0:  # a mixture of rows may do
            c, d = weights @ self.query.c[members], weights @ self.query.d[members]
            one = state.pick(torch.zeros(1, dtype=torch.int64))
            mixed = sound_bounds(self.propagation, reduced, self.query, c.view(1, 1, -1), d.view(1, 1), one)
            sound = mixed.expand(1, width)
        return state, sound, None

    # better boxes, and a new start

    def _behind(self, layer: Layer) -> bool:
        """Whether a layer's arguments depend on what bends, so that their box may get better."""
        return bool(self.reduced.values.r[layer.span, : layer.start].any())

    @override
    def restarts(self) -> bool:
        """Whether it is time for better boxes: after as much time for splits as the last ones took."""
        now = monotonic()
        if self.boxes_from == torch.inf:
            self.boxes_from = now
        if self.restarted is not None:
            self.split_until, self.restarted = 2 * now - self.restarted, None
        if now < self.split_until:
            return False
        if self.boxes_help and now < self._boxes_until:
            return True
        self.split_until = torch.inf
        return False

    @property
    def _boxes_until(self) -> float:
        return self.boxes_from + self.method.box_share * (self.limit.deadline - self.boxes_from)

    @override
    def restart(self) -> None:
        """Tightens the boxes of activations' arguments, front to back, with more splits for each end each time."""
        method, until = self.method, self._boxes_until
        self.restarted = monotonic()
        self._settle()
        for depth, layer in enumerate(self.reduced.layers):
            if monotonic() > until:
                break
            if self._behind(layer):
                refinement = Refinement(
                    propagation=self.propagation,
                    reduced=self.reduced,
                    query=self.query,
                    choice=self.choice,
                    depth=depth,
                    step=method.step,
                    decay=method.decay,
                    until=until,
                    iterations=method.box_iterations,
                    splits=self.box_splits,
                    split_iterations=method.iterations,
                    batch=2 * method.batch,
                )
                box = refinement.run()
                self.propagation = self.propagation.parts(self.propagation.region, {layer.source: box})
                self.reduced.narrow(layer, box)
        self._reduce()
        self.box_splits = max(3 * self.box_splits, method.box_splits)

    # the end

    def _settle(self, spend: float = 0.0) -> None:
        """Empties the queue; what was proved of each group so far is kept.

        Args:
            spend: seconds for sound passes over domains that wait, worst first.
        """
        until, least = monotonic() + spend, self.closed
        if len(self.queue):
            waiting = self.queue.take(len(self.queue))
            for i in torch.split(waiting.bound.argsort(), 4 * self.method.batch):
                if monotonic() >= until:
                    break
                part = waiting.select(i)
                score = self.score(self._sound(part.group, self._state(part)))
                waiting.sound[i] = torch.maximum(waiting.sound[i], score)
            least = least.scatter_reduce(0, waiting.group, waiting.sound, "amin")
        self.proved_before = torch.where(
            least == torch.inf, self.proved_before, torch.maximum(self.proved_before, least)
        )
        self._forget()

    def _forget(self) -> None:
        self.queue, self.closed = Pool(), torch.full_like(self.closed, torch.inf)

    @override
    def answer(self, ending: Ending) -> Answer:
        """The decision; of what is still open sound bounds, as far as time allows."""
        decision, reason = Decision.UNKNOWN, ending.stuck
        if ending.stop is Stop.TIME:
            decision, reason = Decision.TIMEOUT, "time is up"
        elif ending.stop is Stop.DOMAINS:
            reason = "as many domains as allowed are not enough"
        if ending.witness is not None:
            decision = Decision.BROKEN
            self._forget()  # some domains were under way
        holds = ending.witness is None and not len(self.queue) and not reason
        if reason and self.tree is not None:  # see `NeuronSplitting`: with a tree less is done
            reason += "; without --proof it may be decided: boxes are then refined, groups of rows bounded one by one"
        bound = self._bound_at_end()
        if holds:
            decision = Decision.HOLDS if bound > 0 else Decision.UNKNOWN
        return Answer(
            decision=decision,
            bound=bound,
            rows=self.row_bounds,
            witness=ending.witness,
            domains=self.domains,
            method="neuron_splitting" if self.rounds else "alpha_crown",
            arithmetic=self.method.arithmetic(self.graph),
            reason=reason,
        )

    def _bound_at_end(self) -> float:
        """The bound of the query, with sound bounds of what is still open as far as time allows."""
        self._settle(self.limit.left - 0.05)
        lower = torch.maximum(self.proved_before, self.score(self.row_bounds[self.table]))
        if self.tree is None:
            for group, bound in enumerate(lower):
                members = (self.query.groups == group).nonzero().squeeze(1)
                if len(members) == 1:
                    self.row_bounds[members] = torch.maximum(self.row_bounds[members], bound)
        return float(lower.amin())


def _table(query: Query) -> Tensor:
    """(groups, rows): the rows of each group; groups with fewer rows repeat their last one."""
    members = [(query.groups == g).nonzero().squeeze(1) for g in range(int(query.groups[-1]) + 1)]
    most = max(len(m) for m in members)
    return torch.stack([torch.cat([m, m[-1:].expand(most - len(m))]) for m in members])
