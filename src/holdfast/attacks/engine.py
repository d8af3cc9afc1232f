"""The engine: a queue of samples, a fixed number of slots, and the attack's step.

A sample leaves its slot once it is settled: at its first witness under the budget formulation, when its own steps are up
under the others, and always when its budget is spent. Others take the slot. Whether a settled sample is noticed at once or
a few steps later changes nothing: the desk neither charges nor records what is asked for it in between.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast.attacks.attack import Attack, State
from holdfast.core.arrays import outside_inference_mode
from holdfast.core.draws import Draws
from holdfast.core.problem import Problem
from holdfast.core.registry import name_of
from holdfast.core.threat import Access, Formulation
from holdfast.judge.desk import Desk, Model
from holdfast.judge.ledger import Budget
from holdfast.judge.outcome import Outcome
from holdfast.numerics.evaluation import evaluating

__all__ = ["Run", "Settings", "run"]


@dataclass(frozen=True)
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


class Run:
    """One attack on one chunk, which can be interrupted between two steps and continued."""

    def __init__(
        self,
        attack: Attack[Any, Any],
        problem: Problem,
        model: Model,
        *,
        judge: Model | None = None,
        seed: int = 0,
        budget: Budget | None = None,
        first: bool | None = None,
        top_k: int | None = None,
        clean: Tensor | None = None,
        settings: Settings | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Prepares a run; see `run` for the arguments."""
        with outside_inference_mode():  # what is made here must be fit for autograd
            self._prepare(attack, problem, model, judge, seed, budget, first, top_k, clean, settings, progress)

    def _prepare(
        self,
        attack: Attack[Any, Any],
        problem: Problem,
        model: Model,
        judge: Model | None,
        seed: int,
        budget: Budget | None,
        first: bool | None,
        top_k: int | None,
        clean: Tensor | None,
        settings: Settings | None,
        progress: Progress | None,
    ) -> None:
        given, problem = problem, problem.in_units()
        attack.check(problem)
        self.attack, self.settings, self.progress = attack, settings or Settings(), progress
        draws = Draws(seed, name_of(attack), problem.x.device)
        self.problem = replace(problem, draws=draws.of(problem.ids, problem.round))
        self._draws = draws
        self.first = attack.card.formulation is Formulation.BUDGET if first is None else first
        self.transfer = judge is not None and judge is not model
        limit = attack.budget.within(budget or Budget())
        self.models = (model,) if judge is None else (model, judge)
        self.judge = Desk(
            judge or model, given, budget=limit, first=self.first, top_k=top_k, clean=clean,
            micro_batch=self.settings.micro_batch, precision=self.settings.precision, trace=self.settings.trace,
            votes=attack.votes, confidence=attack.confidence, unit=problem.unit, scales=True,
        )  # fmt: skip
        self.desk = self.judge
        if self.transfer:
            self.desk = Desk(
                model, given, budget=Budget(passes=limit.passes), first=False, judges=False,
                micro_batch=self.settings.micro_batch, unit=problem.unit, scales=True,
            )  # fmt: skip
        access = attack.card.access or Access.WHITE_BOX
        self.oracle = self.desk.oracle(Access.WHITE_BOX if access is Access.TRANSFER else access)
        self._every = self.settings.check_every or (1 if problem.x.device.type == "cpu" else 8)
        self._state: State | None = None
        self._view: Problem | None = None
        self._queue: deque[tuple[int, int]] = deque()
        self._opened = False
        self._tick = 0

    def advance(self, steps: int | None = None) -> bool:
        """Makes at most ``steps`` engine steps (all, if None); True when nothing is left to do."""
        if not len(self.problem):
            return True  # no model need take an empty batch
        with evaluating(*self.models):
            if not self._opened:
                self._open()
            made = 0
            while self._fill():
                if steps is not None and made >= steps:
                    return False
                self._step()
                made += 1
            self.judge.confirm()
        return True

    def outcome(self) -> Outcome:
        """What is known so far."""
        outcome = self.judge.outcome(self.settings.slots)
        if not self.transfer:
            return outcome
        return replace(
            outcome, ledger=self.judge.ledger + self.desk.ledger, gradients=self.desk.gradients,
            failed=self.judge.failed | self.desk.failed, fault=self.judge.fault or self.desk.fault,
        )  # fmt: skip

    def _open(self) -> None:
        self.judge.settle_clean()
        self._queue.extend((row, 0) for row in _numbers((~self._settled()).nonzero()))
        self._opened = True
        self._report()

    def _settled(self) -> Tensor:
        """(n,) bool over the chunk: nothing more is to be done for the sample."""
        at_clean = self.judge.distance == 0
        done = self.judge.spent | self.desk.failed | at_clean
        return done | self.judge.settled if self.first else done

    def _fill(self) -> bool:
        """Starts queued samples in free slots; False when there is nothing left."""
        used = 0 if self._state is None else len(self._state.step)
        free = self.settings.slots - used
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
            self._conclude(state.select(last), view.select(last))
        settled = self._settled()[view.rows].cpu().numpy()
        for k in np.flatnonzero(up & ~settled).tolist():
            again = int(view.round[k]) + 1
            if again < self.attack.rounds:
                self._queue.append((int(view.rows[k]), again))
        gone = up | settled
        if gone.any():
            stay = np.flatnonzero(~gone)
            self._state, self._view = state.select(stay), view.select(stay)
            self._report()

    def _conclude(self, state: State, view: Problem) -> None:
        """The end of a round. Transfer: the attacked model is asked once about the final iterate."""
        if self.transfer:
            self.judge.logits(state.x, view.rows)
        else:
            self.attack.finalize(self.oracle.on(view), state)

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
            a.draws, ids=np.concatenate([a.draws.ids, b.draws.ids]), rounds=np.concatenate([a.draws.rounds, b.draws.rounds])
        )  # fmt: skip
    return replace(
        a, x=torch.cat([a.x, b.x]), y=torch.cat([a.y, b.y]), target=torch.cat([a.target, b.target]),
        set=a.set.join(b.set), ids=np.concatenate([a.ids, b.ids]), rows=torch.cat([a.rows, b.rows]),
        round=np.concatenate([a.round, b.round]), draws=draws,
    )  # fmt: skip


def run(
    attack: Attack[Any, Any],
    problem: Problem,
    model: Model,
    *,
    judge: Model | None = None,
    seed: int = 0,
    budget: Budget | None = None,
    first: bool | None = None,
    top_k: int | None = None,
    clean: Tensor | None = None,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Runs an attack on a problem.

    Args:
        attack: the method with its parameters.
        problem: the samples; their sets say where a witness may lie.
        model: x (m, \\*features) -> scores (m, K); what the attack searches on.
        judge: the attacked model, where it is another one (transfer): it is asked once a sample and round.
        seed: keys all draws.
        budget: the most that may be asked for one sample, beside the attack's own limit.
        first: settle a sample at its first witness; default: what the attack's formulation says.
        top_k: for soft-label access, the number of classes that the deployment shows.
        clean: (n, K) scores of the clean inputs if they are known; otherwise they are asked and charged.
        settings: how the engine works.
        progress: called with (samples done, samples).

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
        >>> found = run(PGD(), Problem.of(x, torch.tensor([0]), LpBall.uniform(Norm.LINF, 0.1, 1)), model)
        >>> bool(found.found[0])
        True
    """
    settings = settings or Settings()
    while True:
        job = Run(
            attack, problem, model, judge=judge, seed=seed, budget=budget, first=first, top_k=top_k, clean=clean,
            settings=settings, progress=progress,
        )  # fmt: skip
        try:
            job.advance()
        except torch.OutOfMemoryError:
            if settings.slots == 1:
                raise
            half = settings.slots // 2
            settings = replace(settings, slots=half, micro_batch=min(half, settings.micro_batch))
            continue
        return job.outcome()
