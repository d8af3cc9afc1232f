"""What a study is: one question, asked of a session and answered with a result that is written as JSON and as a page."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from torch import nn

from holdfast.core.cards import Card
from holdfast.core.errors import UsageError

if TYPE_CHECKING:
    from holdfast.session.session import Session

__all__ = ["StageProgress", "Study", "StudyResult", "module_of"]

StageProgress = Callable[[str, int, int], None]
"""Told (stage, done, of how many)."""

R = TypeVar("R", bound="StudyResult")


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """The answer of a study: a frozen dataclass. `holdfast.report.studies.page` makes its page."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in its JSON file; properties that are figures of their own are added by the study."""
        return asdict(self)


class Study(ABC, Generic[R]):
    """One question about a model: a frozen dataclass of the parameters that it declares, with a card.

    Commands and documentation are made from both; each parameter has a default. Model, data, threat and seed are the
    session's.
    """

    card: ClassVar[Card]

    @abstractmethod
    def run(self, session: Session, *, progress: StageProgress | None = None) -> R:
        """Answers the question.

        Args:
            session: the model, the samples and the threat.
            progress: told (stage, done, of how many).

        Raises:
            UsageError: the session lacks what the study needs; the message says what.
            UnsupportedError: a method does not serve the model, the norm or the goal.
        """


def module_of(session: Session) -> nn.Module:
    """The model itself, for studies that differentiate it.

    Raises:
        UsageError: it can only be asked.
    """
    if not isinstance(session.base, nn.Module) or not session.differentiable:
        raise UsageError("a study needs the model itself, with its gradient")
    return session.base
