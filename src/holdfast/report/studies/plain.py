"""The answer of a study without a page of its own."""

from __future__ import annotations

import json

from holdfast.report.template import fill
from holdfast.studies.study import StudyResult

__all__ = ["render"]


def render(result: StudyResult, about: str, command: str = "") -> str:
    """The page; ``about`` says what was studied."""
    told = result.to_dict()
    figures = {name: value for name, value in told.items() if isinstance(value, str | int | float | None)}
    rest = {name: json.dumps(value, indent=1) for name, value in told.items() if name not in figures}
    title = type(result).__name__.removesuffix("Result")
    return fill("studies/plain.html", title=title, figures=figures, rest=rest, about=about, command=command)
