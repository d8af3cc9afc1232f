"""The contract of an attack: an iterative solver that the engine drives, one step at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from holdfast.core.arrays import on_device
from holdfast.core.cards import Card, refuse, refuse_below_one
from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.core.problem import Problem
from holdfast.core.threat import Formulation, Goal, Norm
from holdfast.judge.asks import HardLabelAsk, WhiteBoxAsk
from holdfast.judge.ledger import Budget

__all__ = ["Attack", "State"]

A_contra = TypeVar("A_contra", bound=HardLabelAsk, contravariant=True)


@dataclass(frozen=True)
class State:
    """What an attack knows of the samples in the slots; every field has the sample as its first dimension.

    Attributes:
        x: (n, \\*features) the current iterate.
        step: (n,) int64 on the host: steps made by each sample. The engine counts them.
    """

    x: Tensor
    step: np.ndarray

    @classmethod
    def at(cls, x: Tensor, **more: Any) -> Self:
        """A state at its first step."""
        return cls(x=x, step=np.zeros(len(x), dtype=np.int64), **more)

    def select(self, rows: np.ndarray) -> Self:
        """The state of the samples at ``rows``."""
        return replace(self, **{f.name: _pick(getattr(self, f.name), rows) for f in fields(self)})

    def join(self, other: Self) -> Self:
        """The samples of both, these first."""
        return replace(self, **{f.name: _join(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)})


def _pick(value: Any, rows: np.ndarray) -> Any:
    if isinstance(value, Tensor):
        return value[on_device(rows, value.device)]
    return value.select(rows) if isinstance(value, State) else value[rows]


def _join(a: Any, b: Any) -> Any:
    if isinstance(a, Tensor):
        return torch.cat([a, b])
    return a.join(b) if isinstance(a, State) else np.concatenate([a, b])


S = TypeVar("S", bound=State)


class Attack(ABC, Generic[A_contra, S]):
    """An attack is a frozen dataclass of its parameters with the paper's loop in `start` and `step`; the engine owns
    everything else: who is in the batch, what is settled, budgets, restarts, witnesses.

    An attack never says that it succeeded: the archive keeps the best feasible row it asked, the referee judges it anew.
    """

    card: ClassVar[Card]
    serves_domains: ClassVar[bool] = False
    reads_margin: ClassVar[bool] = False
    """It searches by the criterion's own margin, whatever the criterion is."""

    @property
    def votes(self) -> int:
        """How often in a row the attack asks each point, for models that answer at random: most answers must be
        adversarial. The clean inputs are asked as often.
        """
        return 1

    @property
    def serves_detectors(self) -> bool:
        """It searches by the criterion's margin, or by a loss that reads a detector's column as what it is."""
        loss = getattr(self, "loss", "") if "loss" in {f.name for f in fields(self)} else ""  # type: ignore[arg-type]
        return self.reads_margin or loss == "joint" or not isinstance(loss, str)

    @property
    def confidence(self) -> float:
        """The margin that a point must have to be a success of this attack: its ``kappa``, if it has one."""
        return float(getattr(self, "kappa", 0.0))

    @property
    def rounds(self) -> int:
        """How often a sample may be started anew: restarts, or targets, or both; the field ``restarts``, if there is one.
        `problem.round` tells which it is.
        """
        return int(getattr(self, "restarts", 1))

    @property
    def iterations(self) -> int:
        """Steps of one round: the field ``steps``, else ``queries``, for a step asks one at least.

        Raises:
            UsageError: the attack has neither field and does not override this.
        """
        made = getattr(self, "steps", getattr(self, "queries", None))
        if made is None:
            raise UsageError(f"{type(self).__name__} must have a field steps or queries, or say its iterations")
        return int(made)

    @property
    def budget(self) -> Budget:
        """The attack's own limits for a sample over all rounds: the field ``queries``, if there is one."""
        return Budget(queries=getattr(self, "queries", None))

    @property
    def passes(self) -> int:
        """Forwards and backwards that a sample costs at most over all rounds, nearly; the ledger counts exactly.

        Attacks whose step asks more than one gradient override it.
        """
        limit = self.budget.queries
        return limit if limit is not None else self.rounds * (2 * self.iterations + 1) + 1

    def within(self, passes: int) -> Self:
        """The same attack with its ``steps`` (or ``queries``) set so that a sample costs about so many passes.

        Raises:
            UnsupportedError: the attack has neither.

        Example:
            >>> from holdfast.core.registry import method
            >>> method("pgd")().within(202).steps
            99
        """
        names = {f.name for f in fields(self)}  # type: ignore[arg-type]
        changed: Any = self
        if "queries" in names:
            return replace(changed, queries=max(1, passes))
        if "steps" not in names:
            raise UnsupportedError(f"{self.card.title} has no steps to spread {passes} passes over")
        for _ in range(3):  # what a step costs is only nearly proportional
            changed = replace(changed, steps=max(1, changed.steps * passes // max(1, changed.passes)))
        return changed

    @abstractmethod
    def start(self, ask: A_contra) -> S:
        """The state of new samples, those of ``ask.problem``, with ``step`` 0."""

    @abstractmethod
    def step(self, ask: A_contra, state: S) -> S:
        """One iteration for the samples in the slots; ``ask.problem`` and ``state`` are aligned row by row."""

    def finalize(self, ask: A_contra, state: S) -> None:
        """Asks what is left to ask when a round is up: the last iterate, which a step has moved since its gradient was
        asked. Nothing where labels or scores lead the search, for what such a search keeps has been asked.
        """
        if isinstance(ask, WhiteBoxAsk):
            ask.scores(state.x)

    def finished(self, state: S) -> Tensor | None:
        """(n,) bool: samples whose round has converged before its steps are up; None if the attack cannot tell."""
        return None

    def check(self, problem: Problem) -> None:
        """Refuses, in words, a problem that the attack cannot have.

        Raises:
            UnsupportedError: norm or goal are not on the card.
        """
        card = self.card
        refuse(card, problem.set.norm, problem.goal)
        if problem.criterion.detector and not self.serves_detectors:
            raise UnsupportedError(
                f"{card.title} knows no detector and would take its score for a class; use an attack that does, for example "
                "pgd with loss=joint"
            )
        if problem.criterion.domains and not self.serves_domains:
            raise UnsupportedError(f"{card.title} attacks one model; to break several with one input use min_max")
        if card.formulation is Formulation.BUDGET and not bool(problem.set.eps.isfinite().all()):
            raise UnsupportedError(f"{card.title} searches inside a budget; give a finite eps")
        refuse_below_one(self, "steps", "restarts", "queries", "targets", "every", "each", "period")

    @staticmethod
    def supports(card: Card, norm: Norm, goal: Goal = Goal.UNTARGETED) -> bool:
        """Whether the card has this norm and goal."""
        return norm in card.norms and goal in card.goals
