"""Several audits on one page: a table, the accuracy-robustness trade-off, overlaid security curves, what changed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from holdfast.core.errors import UsageError
from holdfast.core.files import write_whole
from holdfast.report.audits.curves import Labelled, overlay, tradeoff
from holdfast.report.audits.diff import diff
from holdfast.report.template import fill

__all__ = ["render", "write_compare"]

_MOVES = 40


def render(labelled: Sequence[Labelled]) -> str:
    """The page that compares audits, each with its label; differences are told from each to the next.

    Sizes in different norms share no axis, so that each norm has a section of its own.

    Raises:
        UsageError: fewer than two audits.
    """
    if len(labelled) < 2:
        raise UsageError(f"to compare takes at least two finished runs, and there {'is 1' if labelled else 'are none'}")
    norms = dict.fromkeys(str(d.threat.norm) for _, d in labelled)
    groups = [_group([(name, d) for name, d in labelled if str(d.threat.norm) == norm]) for norm in norms]
    return fill("audits/compare.html", runs=labelled, groups=groups, most=_MOVES)


def _group(labelled: Sequence[Labelled]) -> dict[str, object]:
    """What the page says of the audits in one norm."""
    return {
        "norm": labelled[0][1].threat.norm,
        "runs": labelled,
        "curves": overlay(labelled),
        "tradeoff": tradeoff(labelled),
        "steps": [{"before": a, "after": b, "diff": diff(x, y)} for (a, x), (b, y) in pairwise(labelled)],
        "comparable": all(diff(labelled[0][1], d).comparable for _, d in labelled[1:]),
    }


def write_compare(path: Path, labelled: Sequence[Labelled]) -> None:
    """Writes the page, whole or not at all."""
    write_whole(path, render(labelled))
