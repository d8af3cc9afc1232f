"""What a journal certifies, held against the model: radii proved again, and certificates that were there to be had."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from holdfast.audits.context import Context
from holdfast.audits.evidence import Evidence
from holdfast.audits.journal import Records
from holdfast.audits.lower_bound import LowerBound
from holdfast.audits.records import CertificateRecord
from holdfast.audits.rejudge import Notes
from holdfast.audits.units import Layout
from holdfast.audits.workers import Progress
from holdfast.core.errors import UnsupportedError
from holdfast.core.threat import Guarantee
from holdfast.core.verdict import Certificate

__all__ = ["reprove"]

_STAGE = "certificates"


def reprove(
    context: Context, layout: Layout, records: Records, evidence: Evidence, notes: Notes, progress: Progress
) -> None:
    """The certificates of a chunk.

    Args:
        context: the run.
        layout: its units.
        records: its records.
        evidence: what is known of the chunk in the end.
        notes: takes what is found.
        progress: told (what is looked at, samples done, samples).
    """
    bound = context.plan.lower_bound
    for i, c in evidence.certificates.items():
        if c.guarantee is Guarantee.ESTIMATE:
            notes.unread.append(f"sample {i}: its certificate is an estimate")
        elif bound is None:
            notes.sample(i, "it has a certificate, and the plan certifies nothing")
    if bound is None:
        return
    claims = {i: c for i, c in evidence.certificates.items() if c.guarantee is not Guarantee.ESTIMATE}
    mine = [records[key] for key in layout.covering(_STAGE, evidence.ids) if key in records]
    asked = [record for record in mine if isinstance(record, CertificateRecord)]
    if claims:
        _radii(context, layout, bound, claims, notes, progress)
        _forms(context, bound, claims, notes)
        _held_against(context, bound, asked, notes)
    _left_out(context, bound, asked, evidence, notes)


def _radii(
    context: Context,
    layout: Layout,
    bound: LowerBound,
    claims: Mapping[int, Certificate],
    notes: Notes,
    progress: Progress,
) -> None:
    """Each radius is proved again, in the units in which it was proved."""
    for unit in layout.units(_STAGE):
        ids = unit[np.isin(unit, sorted(claims))]
        if not len(ids):
            continue
        radii = np.array([claims[i].radius for i in ids.tolist()], dtype=np.float64)
        held, cost = bound.proves(context, ids, radii)
        notes.cost += cost
        for i, radius, proved in zip(ids.tolist(), radii.tolist(), held, strict=True):
            notes.certificates += 1
            if not proved:
                notes.sample(i, f"its certified radius {radius:.6g} is not proved any more")
        progress("certificates, proved anew", int(ids[-1]) + 1, layout.samples)


def _forms(context: Context, bound: LowerBound, claims: Mapping[int, Certificate], notes: Notes) -> None:
    due = bound.form(context, min(claims))
    if due is None:
        return
    for i, c in claims.items():
        if replace(c, radius=due.radius) != due:
            notes.sample(i, f"its certificate is said to be {c.guarantee} by {c.method}, and is not")
        if c.radius > float(context.plan.largest_radius):
            notes.sample(i, "its radius is larger than any that was searched for")


def _held_against(context: Context, bound: LowerBound, asked: list[CertificateRecord], notes: Notes) -> None:
    """The graph was held against what it is held against here, or that is not to be told any more."""
    if not bound.uses_graph:
        return
    here = context.believed.held_against
    told = {record.held_against for record in asked if record.held_against is not None} - {here}
    notes.unread += [f"that the graph was held against {one}: here it is held against {here}" for one in sorted(told)]


def _left_out(
    context: Context, bound: LowerBound, asked: list[CertificateRecord], evidence: Evidence, notes: Notes
) -> None:
    """Certificates that were there to be had at eps: nobody took them out of the journal."""
    eps = min(evidence.eps, float(context.plan.largest_radius))
    ids = evidence.ids[evidence.correct]
    if any(record.fault is not None for record in asked) or (context.randomised and bound.uses_graph):
        return
    refused = {record.refused for record in asked if record.refused is not None}
    try:
        held = bound.proved_at(context, ids, eps)
    except UnsupportedError as refusal:
        if refused != {str(refusal)}:
            notes.problems.append(f"the journal does not say why there are no certificates: {refusal}")
        return
    if refused and (held is not None or not bound.uses_graph):
        notes.problems.append(f"the journal says that certificates are refused, and they are not: {refused.pop()}")
    if held is None:
        if not bound.uses_graph:
            notes.unread.append("that samples without a certificate have none: smoothing is not drawn again for them")
        return
    notes.unread.append("that no larger radius than the certified one can be proved")
    for i in ids[held].tolist():
        if i not in evidence.certificates or evidence.certificates[i].radius < eps:
            notes.sample(i, f"is proved safe at {eps:.6g}, and the journal has no such certificate")
