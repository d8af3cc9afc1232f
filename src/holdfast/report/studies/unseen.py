"""Known against unseen attacks, beside what is proved."""

from __future__ import annotations

from holdfast.report.template import fill
from holdfast.studies.unseen import UnseenResult

__all__ = ["render"]


def render(result: UnseenResult, about: str, command: str = "") -> str:
    """The page; ``about`` says what was studied."""
    return fill("studies/unseen.html", s=result, about=about, command=command)
