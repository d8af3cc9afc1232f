"""Pages of the studies: before and after an adjustment, known against unseen attacks."""

from __future__ import annotations

from holdfast.report.page import fill
from holdfast.studies.posthoc import Posthoc
from holdfast.studies.unseen import Unseen

__all__ = ["posthoc_page", "unseen_page"]


def posthoc_page(found: Posthoc, about: str, command: str = "") -> str:
    """The page of robustness before and after; ``about`` says what was studied."""
    return fill("posthoc.html", s=found, about=about, command=command)


def unseen_page(found: Unseen, about: str, command: str = "") -> str:
    """The page of known against unseen attacks; ``about`` says what was studied."""
    return fill("unseen.html", s=found, about=about, command=command)
