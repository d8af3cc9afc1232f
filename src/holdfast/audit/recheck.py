"""Recheck: judge a finished run anew, years later, from its folder and the model alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from holdfast.audit.certificates import prove
from holdfast.audit.context import Context
from holdfast.audit.document import Document
from holdfast.audit.folder import RunFolder
from holdfast.audit.journal import Journal
from holdfast.audit.places import Places
from holdfast.audit.reconcile import compose, standings
from holdfast.audit.standing import Claim
from holdfast.core.errors import DataError, JournalError
from holdfast.core.threat import Guarantee
from holdfast.judge.referee import Ruling

__all__ = ["Recheck", "recheck"]


@dataclass
class Recheck:
    """What a recheck found.

    Attributes:
        witnesses: how many were judged anew.
        certificates: how many were proved anew.
        marginal: ids whose witness flips within the rounding that was stored with it.
        problems: what does not hold; empty if the run stands.
    """

    witnesses: int = 0
    certificates: int = 0
    marginal: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Every witness and certificate holds."""
        return not self.problems


def recheck(out: Path | str, *, model: nn.Module | None = None, places: Places | None = None) -> Recheck:
    """Judges every witness and certificate of a run anew, and the report against the journal.

    Args:
        out: the run's folder.
        model: the module, where the plan names no file.
        places: where files are that moved since, and what the plan may do that only its file says.

    Raises:
        JournalError: the folder belongs to another plan, model or data, or the run is unfinished.
        UnsafeFileError: the plan names code to run, and nobody said that it may.
        BudgetError: the plan names a prediction API, and nobody said that it may be asked.
    """
    folder = RunFolder(Path(out))
    plan = folder.plan()
    result = Recheck()
    context = Context.open(plan, folder, model, at=(places or Places()).located(plan, folder))
    _refuse_unfinished(folder)
    try:
        report = Document.load(folder.report_file)
    except DataError as error:
        result.problems.append(str(error))
        return result
    if report.hashes.journal != hashlib.sha256(folder.journal_file.read_bytes()).hexdigest():
        result.problems.append("the journal was altered: its hash is not the one in report.json")
    try:
        journal = Journal(folder.journal_file, context.identity, read_only=True)
        result.problems += [f"the journal's unit {stage} of chunk {k} was altered" for stage, k in journal.altered()]
        units = journal.units()
        context.randomised = bool(units.get(("preflight", -1), {}).get("randomised", False))
    except JournalError as error:
        result.problems.append(str(error))
        return result
    _compare(context, report, units, journal, result)
    parts = standings(context, units)
    for standing in parts:
        _witnesses(context, standing.nearest, float("inf"), result)
        _witnesses(context, standing.broken, float(plan.exact_eps), result)
        _certificates(context, standing.certificates.items(), result)
    return result


def _refuse_unfinished(folder: RunFolder) -> None:
    """A run without a report is no altered run, but one that has not come to its end."""
    if folder.report_file.exists():
        return
    done = len(Journal.finished(folder.journal_file))
    raise JournalError(
        f"{folder.path} is unfinished: it has no report, and {done} units of its work are done; go on with: holdfast resume "
        f"{folder.path}"
    )


def _compare(context: Context, report: Document, units: object, journal: Journal, result: Recheck) -> None:
    """The report must be what the journal gives."""
    again = compose(
        context, units, journal.seconds(), facts=journal.facts(), journal=report.hashes.journal,  # type: ignore[arg-type]
    )  # fmt: skip
    for name in ("headline", "samples", "findings", "threat", "subject", "curves", "cost", "hashes", "suite", "grid"):
        if getattr(again, name) != getattr(report, name):
            result.problems.append(f"report.json says something else than the journal about '{name}'")


def _witnesses(context: Context, claims: dict[int, Claim], eps: float, result: Recheck) -> None:
    kept, tensors = [], []
    for i, claim in sorted(claims.items()):
        try:
            tensors.append(context.folder.witness(claim.witness.sha256).to(context.device))
            kept.append(i)
        except JournalError as error:
            result.problems.append(f"sample {i}: {error}")
    if not kept:
        return
    problem = context.problem(np.array(kept), eps)
    ruling = context.referee().judge(problem, torch.stack(tensors))
    result.witnesses += len(kept)
    for k, i in enumerate(kept):
        claim = claims[i]
        moved = abs(float(ruling.distance[k]) - claim.witness.distance) > 1e-9 * max(1.0, claim.witness.distance)
        if ruling.ruling[k] is Ruling.HOLDS and not moved:
            continue
        if ruling.ruling[k] is Ruling.REJECTED:
            result.problems.append(f"sample {i}: its witness does not lie in the set")
            continue
        # where the referee had to move it, it did not hold where it was stored: the margin there was at least 0
        flip = max(float(ruling.margin[k]), 0.0) - claim.witness.margin
        if flip <= claim.rounding:
            result.marginal.append(i)
        else:
            result.problems.append(
                f"sample {i}: its witness does not break the model any more (margin {ruling.margin[k]:.3g})"
            )


def _certificates(context: Context, claims: Iterable[tuple[int, object]], result: Recheck) -> None:
    proved = [(i, c) for i, c in claims if getattr(c, "guarantee", None) is not Guarantee.ESTIMATE]
    if not proved:
        return
    ids = np.array([i for i, _ in proved])
    radii = np.array([c.radius for _, c in proved], dtype=np.float64)  # type: ignore[attr-defined]
    for i, r, held in zip(ids.tolist(), radii.tolist(), prove(context, ids, radii), strict=True):
        result.certificates += 1
        if not held:
            result.problems.append(f"sample {i}: its certified radius {r:.6g} is not proved any more")
