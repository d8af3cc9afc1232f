"""The contract of an application: what the methods are good for beside attack and defence."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from holdfast.core.cards import Card
from holdfast.core.cost import Cost
from holdfast.core.manifest import Samples
from holdfast.session.session import Session

__all__ = ["Application", "ApplicationResult"]


@dataclass(frozen=True, eq=False, kw_only=True)
class ApplicationResult:
    """What an application gave, beside what its control gave.

    Attributes:
        name: of the application.
        figures: what was measured, by name.
        control: the same figure for a random perturbation, an unmarked or unrelated model, a frozen random source: at
            least one, for a figure without its control says nothing.
        artefact: the samples that were made, with their labels; None if none were.
        cost: of all that was asked of the model.
        notes: what a reader has to know, in sentences.
    """

    name: str
    figures: Mapping[str, float]
    control: Mapping[str, float]
    artefact: Samples | None = None
    cost: Cost = field(default_factory=Cost)
    notes: tuple[str, ...] = ()


class Application(ABC):
    """A frozen dataclass with a card and parameters.

    It embeds an attack by its name and writes none of its own. The contract, which `holdfast.testing.check_application`
    checks: every result has its control, the model and its data are left as they are, and what it asks of the model it tells.
    """

    card: ClassVar[Card]

    @abstractmethod
    def run(self, session: Session) -> ApplicationResult:
        """What it gives for a model, its data and a threat model.

        Raises:
            UsageError: the session lacks what it needs.
        """
