"""Robustness before and after an adjustment."""

from __future__ import annotations

from holdfast.report.template import fill
from holdfast.studies.posthoc import PosthocResult

__all__ = ["render"]


def render(result: PosthocResult, about: str, command: str = "") -> str:
    """The page; ``about`` says what was studied."""
    return fill("studies/posthoc.html", s=result, about=about, command=command)
