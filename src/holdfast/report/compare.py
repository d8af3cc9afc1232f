"""Several audits on one page: a table, the accuracy-robustness trade-off, overlaid security curves, what changed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from holdfast.core.errors import UsageError
from holdfast.core.files import write_whole
from holdfast.report.curves import Labelled, overlay, tradeoff
from holdfast.report.diff import diff
from holdfast.report.page import fill

__all__ = ["render", "write_compare"]

_MOVES = 40


def render(labelled: Sequence[Labelled]) -> str:
    """The page that compares audits, each with its label; differences are told from each to the next.

    Raises:
        UsageError: fewer than two audits, or audits in different norms, whose sizes share no axis.
    """
    if len(labelled) < 2:
        raise UsageError("to compare takes at least two runs")
    norms = sorted({str(d.threat.norm) for _, d in labelled})
    if len(norms) > 1:
        raise UsageError(f"runs in different norms share no axis: {', '.join(norms)}; compare one norm at a time")
    steps = [{"before": a, "after": b, "diff": diff(x, y)} for (a, x), (b, y) in pairwise(labelled)]
    return fill(
        "compare.html",
        runs=labelled,
        curves=overlay(labelled),
        tradeoff=tradeoff(labelled),
        steps=steps,
        comparable=all(diff(labelled[0][1], d).comparable for _, d in labelled[1:]),
        most=_MOVES,
    )


def write_compare(path: Path, labelled: Sequence[Labelled]) -> None:
    """Writes the page, whole or not at all."""
    write_whole(path, render(labelled))
