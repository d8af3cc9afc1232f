"""The contract of a shared attack: the paper's loop in steps that `holdfast.attacks.shared.fitting.fit` drives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Generic, TypeVar

from torch import Tensor

from holdfast.attacks.shared.artefact import Applied, Artefact
from holdfast.core.cards import Card, refuse, refuse_below_one
from holdfast.core.draws import SampleDraws
from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.core.problem import Problem
from holdfast.core.threat import Formulation
from holdfast.judge.asks import HardLabelAsk

__all__ = ["SharedAttack", "SharedState"]


@dataclass(frozen=True)
class SharedState:
    """What a shared attack knows between two steps; the fields of a subclass are tensors, all that a checkpoint holds."""

    def tensors(self) -> dict[str, Tensor]:
        """The fields by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


A_contra = TypeVar("A_contra", bound=HardLabelAsk, contravariant=True)
S = TypeVar("S", bound=SharedState)


class SharedAttack(ABC, Generic[A_contra, S]):
    """A frozen dataclass of parameters with the paper's loop in `start`, `step` and `artefact`; `fit` owns the rest.

    ``asks`` holds one ask for each model, narrowed to the card's access and all about the same samples: those of the step,
    which are all, or ``batch`` of them in a keyed order.

    Attributes:
        state: the class of its state, as which a checkpoint is read.
    """

    card: ClassVar[Card]
    state: ClassVar[type[SharedState]]

    @property
    def iterations(self) -> int:
        """Steps of a fit: the field ``steps``.

        Raises:
            UsageError: the attack has no such field and does not override this.
        """
        made = getattr(self, "steps", None)
        if made is None:
            raise UsageError(f"{type(self).__name__} must have a field steps, or say its iterations")
        return int(made)

    @property
    def samples_a_step(self) -> int | None:
        """Samples of a step; None for all of them."""
        return None

    @property
    def draws(self) -> int:
        """Fresh draws of a held-out sample that an evaluation needs; 1 where `apply` leaves nothing to chance."""
        return 1

    @abstractmethod
    def start(self, asks: Sequence[A_contra]) -> S:
        """The state before the first step; the asks are about all samples."""

    @abstractmethod
    def step(self, asks: Sequence[A_contra], state: S, step: int) -> S:
        """One iteration on the step's samples."""

    @abstractmethod
    def artefact(self, state: S) -> Artefact:
        """What was learned so far."""

    def finished(self, state: S) -> bool:
        """The artefact is as good as was asked for, before the steps are up; False if the attack does not look."""
        return False

    @abstractmethod
    def apply(self, artefact: Artefact, x: Tensor, draws: SampleDraws, problem: Problem | None = None) -> Applied:
        """x (n, \\*features) with the artefact on it; ``draws`` decides what chance decides.

        ``problem`` has the set that x' must lie in, where the method has a norm.
        """

    def check(self, problem: Problem, models: int) -> None:
        """Refuses, in words, a problem that the attack cannot have.

        Raises:
            UnsupportedError: norm or goal are not on the card, or there are no samples.
        """
        card = self.card
        if not len(problem):
            raise UsageError(f"{card.title} needs samples to fit on")
        if card.norms and card.formulation is Formulation.BUDGET and not bool(problem.set.eps.isfinite().all()):
            raise UnsupportedError(f"{card.title} searches inside a budget; give a finite eps")
        if problem.criterion.detector and getattr(self, "loss", None) != "joint":
            raise UnsupportedError(
                f"{card.title} knows no detector; attack single inputs, for example by pgd with loss=joint"
            )
        if problem.criterion.domains:
            raise UnsupportedError(f"{card.title} takes several models as they are, not as domains of one")
        refuse(card, problem.set.norm if card.norms else None, problem.goal)
        refuse_below_one(self, "steps", "passes", "batch")
