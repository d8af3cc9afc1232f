"""The search of neuron splitting: root, queue, splits, proofs of parts, witnesses."""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic

import torch
from torch import Tensor

from holdfast.certifiers.branch_and_bound.cell import cell
from holdfast.certifiers.branch_and_bound.choice import Choice
from holdfast.certifiers.branch_and_bound.pool import Pool
from holdfast.certifiers.branch_and_bound.reduced import Cuts, Layer, Linear, Pass, Reduced, State
from holdfast.certifiers.branch_and_bound.refine import Refinement
from holdfast.certifiers.branch_and_bound.sound import sound_bounds, spread_slopes
from holdfast.certifiers.branch_and_bound.witness import Witnesses
from holdfast.certifiers.propagation.propagation import Propagation
from holdfast.certifiers.propagation.region import Region
from holdfast.certifiers.verification.query import Query
from holdfast.certifiers.verification.solver import Answer, Decision, Progress, SearchLimit
from holdfast.certifiers.verification.tree import Leaf, Tree
from holdfast.graph.model import Graph

__all__ = ["Search", "Settings"]

Rows = dict[str, Tensor]


@dataclass(frozen=True)
class Settings:
    """The parameters of `NeuronSplitting`."""

    iterations: int
    root_iterations: int
    box_iterations: int
    box_share: float
    box_splits: int
    candidates: int
    batch: int
    step: float
    decay: float


class Search:
    """One query, from the root's bounds on.

    A domain is a part of the set together with what is to be proved there: one group of the query, or, where a proof is
    recorded, all groups at once (a leaf of the tree proves everything about its part).

    Args:
        graph: the model, on which witnesses are tried.
        query: the question.
        found: the root's propagation, of the model or of a graph that computes the same.
        rows: sound bounds of the query's rows at the root.
        limit: what may be spent.
        settings: how.
        tree: where the proof is recorded, if one is wanted.
        progress: told how far it is.

    Raises:
        UnsupportedError: see `Reduced`.
    """

    def __init__(
        self,
        graph: Graph,
        query: Query,
        found: Propagation,
        rows: Tensor,
        limit: SearchLimit,
        settings: Settings,
        tree: Tree | None,
        progress: Progress | None,
    ) -> None:
        self.graph, self.query, self.found, self.limit, self.settings = graph, query, found, limit, settings
        self.tree, self.progress, self.rows = tree, progress, rows.clone()
        self.rough = Region(query.ball, query.x, torch.float32)
        self.reduced = self._reduce()
        self._choice = self._chooser()
        self.witnesses = Witnesses(graph, query)
        count = int(query.groups[-1]) + 1
        if tree is None:
            members = [(query.groups == g).nonzero().squeeze(1) for g in range(count)]
            most = max(len(m) for m in members)
            # groups with fewer rows repeat their last one
            self.table = torch.stack([torch.cat([m, m[-1:].expand(most - len(m))]) for m in members])
        else:
            self.table = torch.arange(len(query.c)).unsqueeze(0)
        self.width = self.table.shape[1]
        self.pool = Pool()
        self.done = 0
        self.start = monotonic()
        # the least sound bound of a closed part of each group
        self.closed = torch.full((len(self.table),), torch.inf, dtype=torch.float64)
        self.rounds = self.rounds_split = 0
        self.lower = torch.full_like(self.closed, -torch.inf)
        self.choices: list[Tensor] = []

    def _reduce(self) -> Reduced:
        return Reduced(self.found, self.rough, self.query.c, self.query.d, max(self.limit.memory // 4, 1))

    def score(self, rows: Tensor) -> Tensor:
        """What bounds (n, width) of a domain's rows say of it."""
        return self.query.score(rows) if self.tree is not None else rows.amax(1)

    def run(self, arithmetic: str) -> Answer:
        """Decides the query or stops at the end of its time."""
        decision, reason, method, witness = Decision.UNKNOWN, "", "neuron_splitting", None
        boxes = self.tree is None and any(map(self._behind, self.reduced.layers))
        try:
            witness = self._root()
            splits, start = 0, monotonic()
            while witness is None and len(self.pool):
                if boxes and monotonic() < start + self.settings.box_share * (self.limit.deadline - start):
                    # better boxes, a new start, and as much time for splits as the boxes took
                    before = monotonic()
                    self._restart(splits, start)
                    splits = max(3 * splits, self.settings.box_splits)
                    witness = self._root()
                    until = 2 * monotonic() - before
                else:
                    until = torch.inf
                while witness is None and len(self.pool) and monotonic() < until:
                    if self.limit.left <= self._reserve():
                        decision, reason = Decision.TIMEOUT, "time is up"
                        break
                    if self.done >= self.limit.domains:
                        reason = "as many domains as allowed are not enough"
                        break
                    witness = self._round()
                if reason:
                    break
            if not self.rounds_split:
                method = "alpha_crown"
        except _StuckError as stuck:
            reason = str(stuck)
        if witness is not None:
            decision = Decision.BROKEN
            self.pool, self.closed = Pool(), torch.full_like(self.closed, torch.inf)  # some domains were under way
        holds = witness is None and not len(self.pool) and not reason
        if reason and self.tree is not None:  # see `NeuronSplitting`: with a tree less is done
            reason += "; without --proof it may be decided: boxes are then refined, groups of rows bounded one by one"
        bound = self._finish()
        if holds:
            decision = Decision.HOLDS if bound > 0 else Decision.UNKNOWN
        return Answer(
            decision=decision,
            bound=bound,
            rows=self.rows,
            witness=witness,
            domains=self.done,
            method=method,
            arithmetic=arithmetic,
            reason=reason,
        )

    def _reserve(self) -> float:
        """Seconds that are kept for the last sound passes."""
        return 0.2 + 0.02 * (monotonic() - self.start)

    def _until(self) -> float:
        return self.limit.deadline - self._reserve()

    def _root(self) -> Tensor | None:
        """Bounds the whole set with optimised slopes; what stays open waits. A witness, if one is found."""
        settings, reduced, width = self.settings, self.reduced, self.width
        lower = self.score(self.rows[self.table])
        groups = (~(torch.maximum(lower, self.lower) > 0)).nonzero().squeeze(1)
        if not len(groups):  # better boxes have proved all that was open
            return None
        linear = reduced.rows[self.table[groups].flatten()]
        target = 0.0 if width == 1 else torch.inf
        _, state = reduced.ascend(
            linear,
            reduced.state(len(groups) * width),
            settings.root_iterations,
            step=settings.step,
            decay=settings.decay**0.5,
            target=target,
            until=self._until(),
        )
        found = reduced.evaluate(linear, state)
        sound = self._sound(groups, state)
        flat = self.table[groups].flatten()
        self.rows[flat] = torch.maximum(self.rows[flat], sound.flatten())
        self.choices = [t.new_zeros(len(self.table), width, *t.shape[1:]) for t in state.choices]
        for whole, t in zip(self.choices, state.choices, strict=True):
            whole[groups] = t.view(len(groups), width, *t.shape[1:])
        empty = torch.zeros(len(groups), 0)
        rows: Rows = {
            "group": groups,
            "vertex": torch.zeros_like(groups),
            "unit": empty.int(),
            "side": empty.to(torch.int8),
            "point": empty,
            "sound": self.score(self.rows[self.table[groups]]),
        }
        self.done += len(groups)
        return self._sort(rows, linear, state, found, sound)

    def _sound(self, groups: Tensor, state: State) -> Tensor:
        """Sound bounds (n, width) of domains of these groups."""
        members = self.table[groups]
        return sound_bounds(self.found, self.reduced, self.query, self.query.c[members], self.query.d[members], state)

    def _chooser(self) -> Choice:
        return Choice(self.found.graph, self.reduced, self.score, self.settings.candidates, self.settings.batch)

    def _restart(self, splits: int, start: float) -> None:
        """Forgets the domains and tightens the boxes behind them, with so many splits for each end."""
        self._settle()
        until = start + self.settings.box_share * (self.limit.deadline - start)
        self._tighten(splits, until)

    def _behind(self, layer: Layer) -> bool:
        """Whether a layer's arguments depend on what bends, so that their box may get better."""
        return bool(self.reduced.values.r[layer.span, : layer.start].any())

    def _tighten(self, splits: int, until: float) -> None:
        """Tightens the boxes of activations' arguments, front to back, with so many splits for each end."""
        settings = self.settings
        for depth, layer in enumerate(self.reduced.layers):
            if monotonic() > until:
                break
            if self._behind(layer):
                refined = Refinement(
                    self.found, self.reduced, self.query, self._choice, depth, settings.step, settings.decay, until
                )
                box = refined.run(settings.box_iterations, splits, settings.iterations, 2 * settings.batch)
                self.found = self.found.parts(self.found.region, {layer.source: box})
                self.reduced.narrow(layer, box)
        self.reduced = self._reduce()
        self._choice = self._chooser()

    def _state(self, rows: Rows) -> State:
        """The state that a batch of domains starts from, one for each of their rows."""
        reduced, width = self.reduced, self.width
        cuts = Cuts(rows["unit"].long(), rows["side"].float(), rows["point"], rows["multiplier"].flatten(0, 1))
        low, high = (t.float() for t in reduced.cut(cuts))
        if width > 1:
            low, high = low.repeat_interleave(width, 0), high.repeat_interleave(width, 0)
            unit, side, point = (t.repeat_interleave(width, 0) for t in cuts[:3])
            cuts = Cuts(unit, side, point, cuts.multiplier)
        choices = [t[rows["group"]].flatten(0, 1) for t in self.choices]
        return State(low, high, rows["slope"].flatten(0, 1).float(), choices, cuts)

    def _round(self) -> Tensor | None:
        """Splits the worst domains and bounds their parts. A witness, if one is found."""
        self.rounds_split += 1
        batch = self.settings.batch
        crowded = self.pool.bytes > self.limit.memory // 2
        rows = self.pool.take(max(batch // 2, 1), best=crowded)
        stuck = rows["candidates"][:, 0] < 0
        if stuck.any():
            self.pool.add({k: t[~stuck] for k, t in rows.items()})
            return self._finish_linear({k: t[stuck] for k, t in rows.items()})
        level = 0
        while level < rows["candidates"].shape[1] and (not level or 2 * len(rows["bound"]) <= batch):
            rows = self._divide(rows, level)
            level += 1
        linear = self.reduced.rows[self.table[rows["group"]].flatten()]
        _, state = self.reduced.ascend(
            linear,
            self._state(rows),
            self.settings.iterations,
            step=self.settings.step,
            decay=self.settings.decay,
            target=0.0 if self.width == 1 else torch.inf,
            until=self._until(),
        )
        found = self.reduced.evaluate(linear, state)
        n = len(rows["bound"])
        self.done += n
        sound = torch.full((n, self.width), -torch.inf, dtype=torch.float64)
        hopeful = (self.score(found.bound.view(n, -1)) > 0).nonzero().squeeze(1)
        if len(hopeful):
            index = (hopeful.unsqueeze(1) * self.width + torch.arange(self.width)).flatten()
            sound[hopeful] = self._sound(rows["group"][hopeful], state.pick(index))
        witness = self._sort(rows, linear, state, found, sound)
        if self.progress is not None:
            self.progress(self.done, len(self.pool), self.pool.worst)
        return witness

    def _sort(self, rows: Rows, linear: Linear, state: State, found: Pass, sound: Tensor) -> Tensor | None:
        """Closes what is proved, lets the rest wait, and tries the minimisers on the model."""
        n, width = len(rows["group"]), self.width
        score, bound = self.score(sound), self.score(found.bound.view(n, width))
        rows = {**rows, "sound": torch.maximum(rows["sound"], score)}
        proved = score > 0
        for i in map(int, proved.nonzero().flatten()):
            group = int(rows["group"][i])
            self.closed[group] = torch.minimum(self.closed[group], score[i])
            if self.tree is not None:
                self._record(self.tree, int(rows["vertex"][i]), state, i, sound[i])
        left = (~proved).nonzero().squeeze(1)
        if not len(left):
            return None
        index = (left.unsqueeze(1) * width + torch.arange(width)).flatten()
        linear, state = linear[index], state.pick(index)
        found, bound = found.pick(index), bound[left]
        waiting = {k: rows[k][left] for k in ("group", "vertex", "unit", "side", "point", "sound")}
        waiting["bound"] = torch.where(bound.isnan(), -torch.inf, bound)
        waiting["slope"] = state.slope.view(len(left), width, -1).half()
        waiting["multiplier"] = state.cuts.multiplier.view(len(left), width, -1)
        unit = self._choice.candidates(linear, state, found, waiting["bound"], width)
        waiting["candidates"] = unit.int()
        each = unit.clamp(min=0).unsqueeze(1).expand(-1, width, -1)
        a = found.a if self.reduced.units else found.a.new_zeros(len(found.a), 1)
        waiting["coefficient"] = a.view(len(left), width, -1).gather(2, each)
        self.pool.add(waiting)
        worst = bound.topk(min(8, len(bound)), largest=False).indices
        steps = 10 if self.rounds % 8 == 0 else 0
        self.rounds += 1
        return self.witnesses.find(self.reduced.point(found.x[worst * width]), steps)

    def _divide(self, rows: Rows, level: int) -> Rows:
        """Splits each domain at its candidate of this level, if it has one."""
        unit = rows["candidates"][:, level].long()
        keep = {k: t[unit < 0] for k, t in rows.items()}
        rows = {k: t[unit >= 0] for k, t in rows.items()}
        unit = unit[unit >= 0].unsqueeze(1)
        point = torch.zeros(len(unit), 1)
        if self.reduced.smooth:
            state = self._state(rows)
            point = self._choice.points(state.pick(torch.arange(len(unit)) * self.width), unit)
        vertices = rows["vertex"].unsqueeze(1).expand(-1, 2)
        if self.tree is not None:
            source, entry = self.reduced.source[unit[:, 0]], self.reduced.entry[unit[:, 0]]
            split = self.tree.split(
                [*map(int, rows["vertex"])], [*map(int, source)], [*map(int, entry)], [*map(float, point[:, 0])]
            )
            vertices = torch.from_numpy(split)  # pyright: ignore[reportUnknownMemberType]
        at = unit.unsqueeze(1).expand(-1, self.width, -1)
        slope, a = rows["slope"].gather(2, at).float(), rows["coefficient"][..., level : level + 1]
        children: list[Rows] = []
        for k, side in enumerate((-1, 1)):
            child = dict(rows)
            child["vertex"] = vertices[:, k]
            child["unit"] = torch.cat([rows["unit"], unit.int()], 1)
            child["side"] = torch.cat([rows["side"], torch.full_like(unit, side).to(torch.int8)], 1)
            child["point"] = torch.cat([rows["point"], point], 1)
            child["multiplier"] = torch.cat([rows["multiplier"], self._choice.multiplier(a, slope, at, side)], 2)
            children.append(child)
        if len(keep["unit"]):
            for name in ("unit", "side", "point", "multiplier"):
                keep[name] = torch.cat([keep[name], torch.zeros_like(keep[name][..., :1])], -1)
            children.append(keep)
        return {k: torch.cat([c[k] for c in children]) for k in rows}

    def _record(self, tree: Tree, vertex: int, state: State, domain: int, sound: Tensor) -> None:
        """Writes a leaf: for each group the row that is positive throughout."""
        best: list[int] = []
        for group in range(int(self.query.groups[-1]) + 1):
            best.append(int(torch.where(self.query.groups == group, sound, -torch.inf).argmax()))
        rows = torch.tensor([domain * self.width + row for row in best])
        own = state.pick(rows)
        used = own.cuts.side[0] != 0
        slopes = {
            k: t.squeeze(1).float().numpy()
            for k, t in spread_slopes(
                self.found, self.reduced, own, 1, len(rows), len(self.found.graph.nodes) - 1
            ).items()
        }
        tree.close(vertex, Leaf(tuple(best), slopes, own.cuts.multiplier[:, used].numpy()))

    def _settle(self, spend: float = 0.0) -> None:
        """Empties the queue; what was proved of each group so far is kept.

        Args:
            spend: seconds for sound passes over domains that wait, worst first.
        """
        until, least = monotonic() + spend, self.closed
        if len(self.pool):
            rows = self.pool.take(len(self.pool))
            for i in torch.split(rows["bound"].argsort(), 4 * self.settings.batch):
                if monotonic() >= until:
                    break
                part = {k: t[i] for k, t in rows.items()}
                score = self.score(self._sound(part["group"], self._state(part)))
                rows["sound"][i] = torch.maximum(rows["sound"][i], score)
            least = least.scatter_reduce(0, rows["group"], rows["sound"], "amin")
        self.lower = torch.where(least == torch.inf, self.lower, torch.maximum(self.lower, least))
        self.pool, self.closed = Pool(), torch.full_like(self.closed, torch.inf)

    def _finish(self) -> float:
        """Sound bounds of what is still open, as far as time allows; the bound of the query."""
        self._settle(self.limit.left - 0.05)
        lower = torch.maximum(self.lower, self.score(self.rows[self.table]))
        if self.tree is None:
            for group, bound in enumerate(lower):
                members = (self.query.groups == group).nonzero().squeeze(1)
                if len(members) == 1:
                    self.rows[members] = torch.maximum(self.rows[members], bound)
        return float(lower.amin())

    def _finish_linear(self, rows: Rows) -> Tensor | None:
        """Domains in which nothing bends any more: each is a linear program. A witness, if one is found."""
        reduced, width = self.reduced, self.width
        linear = reduced.rows[self.table[rows["group"]].flatten()]
        _, state = reduced.ascend(
            linear, self._state(rows), 200, step=self.settings.step, decay=0.98, until=self._until()
        )
        for i in range(len(rows["group"])):
            members = self.table[rows["group"][i]]
            own = state.pick(i * width + torch.arange(width))
            sound = self._sound(rows["group"][i : i + 1], own)
            if not self.score(sound) > 0 and reduced.boxed:
                point, weights, multiplier = cell(reduced, linear[i * width + torch.arange(width)], own)
                witness = self.witnesses.find(reduced.point(point.unsqueeze(0)))
                if witness is not None:
                    return witness
                cuts = Cuts(*own.cuts[:3], multiplier.expand(width, -1))
                own = State(own.low, own.high, own.slope, own.choices, cuts)
                sound = self._sound(rows["group"][i : i + 1], own)
                if width > 1 and self.tree is None and not self.score(sound) > 0:  # a mixture of rows may do
                    c, d = weights @ self.query.c[members], weights @ self.query.d[members]
                    one = own.pick(torch.zeros(1, dtype=torch.int64))
                    sound = sound_bounds(self.found, reduced, self.query, c.view(1, 1, -1), d.view(1, 1), one)
                    sound = sound.expand(1, width)
            score = self.score(sound)[0]
            group = int(rows["group"][i])
            if not score > 0:
                kept = {k: t[i:] for k, t in rows.items()}
                self.pool.add(kept)
                raise _StuckError("a part in which all neurons are split is neither proved nor broken")
            self.closed[group] = torch.minimum(self.closed[group], score)
            if self.tree is not None:
                self._record(self.tree, int(rows["vertex"][i]), own, 0, sound[0])
        return None


class _StuckError(Exception):
    """Nothing is left to split."""
