"""The engine: a queue of samples, a fixed number of slots, and the attack's step.

A sample leaves its slot once it is settled: at its first witness under the budget formulation, when its own steps are up
under the others, and always when its budget is spent. Others take the slot. Whether a settled sample is noticed at once or
a few steps later changes nothing: what is asked for it in between is neither charged nor kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial
from typing import Any, ParamSpec

import numpy as np
import torch
from torch import Tensor

from holdfast.attacks.attack import Attack, State
from holdfast.core.arrays import outside_inference_mode
from holdfast.core.draws import Draws
from holdfast.core.errors import UsageError
from holdfast.core.problem import Problem
from holdfast.core.registry import name_of
from holdfast.core.threat import Access, Formulation
from holdfast.judge.archive import Archive, Keep, VotingArchive
from holdfast.judge.asking import Model
from holdfast.judge.inquiry import Inquiry
from holdfast.judge.ledger import Budget
from holdfast.judge.oracles import HardLabelOracle
from holdfast.judge.outcome import Outcome
from holdfast.judge.serving import ServedModel
from holdfast.judge.units import ScoreUnits
from holdfast.numerics.evaluation import evaluating

__all__ = ["Run", "Settings", "run"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the engine works; results do not depend on it but for rounding.

    Attributes:
        slots: samples in the batch.
        check_every: steps between two looks at who is settled; each look is a synchronisation with the device. None: 1
            on a CPU, 8 elsewhere.
        precision: autocast dtype for the search, confirmed in full precision; None is full precision.
        micro_batch: rows sent through the model at once, for calls that ask many rows a sample.
        trace: keep the distance of each sample's witness against what it had cost, for anytime curves.
    """

    slots: int = 256
    check_every: int | None = None
    precision: torch.dtype | None = None
    micro_batch: int = 1024
    trace: bool = False


Progress = Callable[[int, int], None]


@dataclass(eq=False)
class Run:
    """One attack on one chunk, which can be interrupted between two steps and continued.

    Attributes:
        attack: the method with its parameters.
        problem: the samples; their sets say where a witness may lie. Here in the attack's units, and with draws.
        model: x (m, \\*features) -> scores (m, K); what the attack searches on.
        judge: the attacked model, where it is another one (transfer): it is asked once a sample and round.
        seed: keys all draws.
        budget: the most that may be asked for one sample, beside the attack's own limit.
        keep: which witness is kept, and whether a first one settles its sample; None: what the attack's formulation says.
        top_k: for soft-label access, the number of classes that the deployment shows.
        clean: (n, K) scores of the clean inputs if they are known; otherwise they are asked and charged.
        settings: how the engine works; None: as it does by default.
        progress: called with (samples done, samples).
        oracle: what the attack asks.
        search: what is asked about the model that is searched on.
        attacked: what is asked about the attacked model: the same but for a transfer; None where only the last iterate is
            kept.
        archive: the witnesses so far; None where only the last iterate is kept.
    """

    attack: Attack[Any, Any]
    problem: Problem
    model: Model
    _: KW_ONLY
    judge: Model | None = None
    seed: int = 0
    budget: Budget | None = None
    keep: Keep | None = None
    top_k: int | None = None
    clean: Tensor | None = None
    settings: Settings | None = None
    progress: Progress | None = None
    oracle: HardLabelOracle = field(init=False)
    search: Inquiry = field(init=False)
    attacked: Inquiry | None = field(init=False)
    archive: Archive | None = field(init=False)

    def __post_init__(self) -> None:
        self._given, self._how = self.problem, self.settings or Settings()
        with outside_inference_mode():  # what is made here must be fit for autograd
            self._prepare()

    def _prepare(self) -> None:
        posed, attack = self._given.in_units(), self.attack
        attack.check(posed)
        self._draws = Draws(self.seed, name_of(attack), posed.x.device)
        self.problem = replace(posed, draws=self._draws.of(posed.ids, posed.round))
        usual = Keep.FIRST if attack.card.formulation is Formulation.BUDGET else Keep.NEAREST
        self._keep = self.keep or usual
        limit = attack.budget.within(self.budget or Budget())
        self.archive, self.attacked = self._opened(posed.unit, limit)
        if self.attacked is None or self.transfers:
            served = ServedModel(self.model, posed.criterion, micro_batch=self._how.micro_batch)
            units, passes = ScoreUnits(self._given, None), Budget(passes=limit.passes)
            self.search = Inquiry(served, self._given, None, budget=passes, units=units, unit=posed.unit)
        else:
            self.search = self.attacked
        access = attack.card.access or Access.WHITE_BOX
        self.oracle = self.search.oracle(Access.WHITE_BOX if access is Access.TRANSFER else access)
        self._every = self._how.check_every or (1 if posed.x.device.type == "cpu" else 8)
        self._state: State | None = None
        self._view: Problem | None = None
        self._queue: deque[tuple[int, int]] = deque()
        self._begun = False
        self._tick = 0

    def _opened(self, unit: float, budget: Budget) -> tuple[Archive | None, Inquiry | None]:
        """Where witnesses are kept, and what is asked about the attacked model; nothing where the last iterate is kept."""
        attack, how = self.attack, self._how
        if self._keep is Keep.LAST:
            if budget.queries is not None:
                raise UsageError(
                    "the last iterate is kept of a search on a model of one's own, where nothing is a query; limit its passes"
                )
            self._last = self._given.x.clone()
            return None, None
        served = ServedModel(
            self.judge or self.model, self._given.criterion, micro_batch=how.micro_batch, precision=how.precision
        )
        kind = Archive if attack.votes == 1 else partial(VotingArchive, votes=attack.votes)
        exact = None if how.precision is None else served.exact_scores
        archive = kind(self._given, self._keep, confidence=attack.confidence, exact=exact, trace=how.trace)
        # a confidence is asked for in the scores as they are
        units = ScoreUnits(self._given, self.top_k, needed=not attack.confidence)
        inquiry = Inquiry(served, self._given, archive, budget=budget, units=units, clean=self.clean, unit=unit)
        return archive, inquiry

    @property
    def transfers(self) -> bool:
        """The attacked model is another one than the one that is searched on."""
        return self.judge is not None and self.judge is not self.model

    def advance(self, steps: int | None = None) -> bool:
        """Makes at most ``steps`` engine steps (all, if None); True when nothing is left to do."""
        if not len(self.problem):
            return True  # no model need take an empty batch
        with evaluating(self.model, self.judge):
            if not self._begun:
                self._begin()
            made = 0
            while self._fill():
                if steps is not None and made >= steps:
                    return False
                self._step()
                made += 1
            if self.attacked is not None:
                self.attacked.confirm()
        return True

    def narrowed(self) -> Run | None:
        """The same run from its beginning with half the slots, for want of memory; None where there is one slot."""
        if self._how.slots == 1:
            return None
        half = self._how.slots // 2
        settings = replace(self._how, slots=half, micro_batch=min(half, self._how.micro_batch))
        return replace(self, problem=self._given, settings=settings)

    def outcome(self) -> Outcome:
        """What is known so far."""
        searched = self.search.outcome(self._how.slots)
        if self.attacked is None:
            return replace(searched, x=self._last)
        if not self.transfers:
            return searched
        outcome = self.attacked.outcome(self._how.slots)
        return replace(
            outcome,
            ledger=self.attacked.ledger + self.search.ledger,
            gradients=self.search.gradients,
            failed=self.attacked.failed | self.search.failed,
            fault=outcome.fault or searched.fault,
        )

    def _begin(self) -> None:
        if self.attacked is not None:
            self.attacked.settle_clean()
        self._queue.extend((row, 0) for row in _numbers((~self._settled()).nonzero()))
        self._begun = True
        self._report()

    def _settled(self) -> Tensor:
        """(n,) bool over the chunk: nothing more is to be done for the sample."""
        if self.attacked is None or self.archive is None:
            return self.search.spent
        at_clean = self.archive.distance == 0
        done = self.attacked.spent | self.search.failed | at_clean
        return done | self.archive.settled if self._keep is Keep.FIRST else done

    def _fill(self) -> bool:
        """Starts queued samples in free slots; False when there is nothing left."""
        used = 0 if self._state is None else len(self._state.step)
        free = self._how.slots - used
        if free <= 0 or not self._queue:
            return used > 0
        rows, rounds = np.array([self._queue.popleft() for _ in range(min(free, len(self._queue)))]).T
        fresh = self.problem.select(rows)
        fresh = replace(fresh, round=rounds, draws=self._draws.of(fresh.ids, rounds))
        state = self.attack.start(self.oracle.on(fresh))
        if self._state is None or self._view is None or used == 0:
            self._view, self._state = fresh, state
        else:
            self._view, self._state = _join_problems(self._view, fresh), self._state.join(state)
        self._leave(force=True)
        return True

    def _step(self) -> None:
        if self._state is None or self._view is None or not len(self._state.step):
            return
        state = self.attack.step(self.oracle.on(self._view), self._state)
        self._state = replace(state, step=self._state.step + 1)
        self._tick += 1
        self._leave(force=self._tick % self._every == 0)

    def _leave(self, *, force: bool) -> None:
        """Takes samples out of their slots; looks at the device only if forced or if a round is up."""
        state, view = self._state, self._view
        if state is None or view is None:
            return
        up = state.step >= self.attack.iterations
        if not force and not up.any():
            return
        converged = self.attack.finished(state)
        if converged is not None:
            up = up | converged.cpu().numpy()
        if up.any():
            last = np.flatnonzero(up)
            self._finalize(state.select(last), view.select(last))
        settled = self._settled()[view.rows].cpu().numpy()
        for k in np.flatnonzero(up & ~settled).tolist():
            again = int(view.round[k]) + 1
            if again < self.attack.rounds:
                self._queue.append((int(view.rows[k]), again))
        gone = up | settled
        if gone.any():
            self._keep_last(state, view, np.flatnonzero(gone))
            stay = np.flatnonzero(~gone)
            self._state, self._view = state.select(stay), view.select(stay)
            self._report()

    def _finalize(self, state: State, view: Problem) -> None:
        """The end of a round. Transfer: the attacked model is asked once about the final iterate."""
        if self.attacked is None:
            return
        if self.transfers:
            self.attacked.logits(state.x, view.rows)
        else:
            self.attack.finalize(self.oracle.on(view), state)

    def _keep_last(self, state: State, view: Problem, rows: np.ndarray) -> None:
        """Where the last iterates are kept, those of samples that leave their slots."""
        if self.attacked is None:
            self._last[view.rows[rows]] = state.select(rows).x * self.problem.unit

    def _report(self) -> None:
        if self.progress is not None:
            held = [] if self._view is None else _numbers(self._view.rows)
            waiting = {row for row, _ in self._queue} | set(held)
            self.progress(len(self.problem) - len(waiting), len(self.problem))


def _numbers(values: Tensor) -> list[int]:
    return [int(v) for v in values.flatten().cpu().numpy()]


def _join_problems(a: Problem, b: Problem) -> Problem:
    draws = None
    if a.draws is not None and b.draws is not None:
        draws = replace(
            a.draws,
            ids=np.concatenate([a.draws.ids, b.draws.ids]),
            rounds=np.concatenate([a.draws.rounds, b.draws.rounds]),
        )
    return replace(
        a,
        x=torch.cat([a.x, b.x]),
        y=torch.cat([a.y, b.y]),
        target=torch.cat([a.target, b.target]),
        set=a.set.join(b.set),
        ids=np.concatenate([a.ids, b.ids]),
        rows=torch.cat([a.rows, b.rows]),
        round=np.concatenate([a.round, b.round]),
        draws=draws,
    )


P = ParamSpec("P")


def _to_its_end(make: Callable[P, Run]) -> Callable[P, Outcome]:
    def run(*args: P.args, **options: P.kwargs) -> Outcome:
        """Runs an attack on a problem to its end; takes what `Run` takes. Where memory runs out, with fewer slots.

        Returns:
            The best feasible witness of each sample among all rows that the attack asked. A sample that is adversarial as it
            is has its clean input as witness, at distance 0.

        Raises:
            UnsupportedError: the attack has no such norm, goal or access.

        Example:
            >>> from holdfast.attacks.evasion.white.pgd import PGD
            >>> from holdfast.core.sets import LpBall
            >>> from holdfast.core.threat import Norm
            >>> model = torch.nn.Linear(2, 2)
            >>> _ = model.load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
            >>> x = torch.tensor([[0.6, 0.5]])
            >>> outcome = run(PGD(), Problem.of(x, torch.tensor([0]), LpBall.uniform(Norm.LINF, 0.1, 1)), model)
            >>> bool(outcome.found[0])
            True
        """
        job = make(*args, **options)
        while True:
            try:
                job.advance()
                return job.outcome()
            except torch.OutOfMemoryError:
                narrower = job.narrowed()
                if narrower is None:
                    raise
                job = narrower

    return run


run = _to_its_end(Run)
