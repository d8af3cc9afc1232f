"""The page of a study's result, whichever study it is."""

from __future__ import annotations

from holdfast.report.studies import comparison, manifold, plain, posthoc, radii, scalability, transfer, unseen
from holdfast.studies.comparison import ComparisonResult
from holdfast.studies.manifold import ManifoldResult
from holdfast.studies.posthoc import PosthocResult
from holdfast.studies.radii import RadiiResult
from holdfast.studies.scalability import ScalabilityResult
from holdfast.studies.study import StudyResult
from holdfast.studies.transfer import TransferResult
from holdfast.studies.unseen import UnseenResult

__all__ = ["page"]


def page(result: StudyResult, about: str = "", command: str = "") -> str:
    """One HTML file that opens offline and loads nothing.

    Args:
        result: of a study.
        about: what was studied, for people.
        command: that repeats it.

    The answer of a study that brings no page of its own, as a plug-in's, is shown as it is written in JSON.
    """
    match result:
        case ComparisonResult():
            return comparison.render(result, about)
        case ManifoldResult():
            return manifold.render(result, about, command)
        case PosthocResult():
            return posthoc.render(result, about, command)
        case RadiiResult():
            return radii.render(result, about, command)
        case ScalabilityResult():
            return scalability.render(result, command)
        case TransferResult():
            return transfer.render(result, about, command)
        case UnseenResult():
            return unseen.render(result, about, command)
        case _:
            return plain.render(result, about, command)
