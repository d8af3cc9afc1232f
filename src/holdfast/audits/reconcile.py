"""From the journal to the document: both sides of each sample held against each other."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from datetime import UTC, datetime

import torch
from torch import nn

from holdfast.audits.clashes import contradictions, settled
from holdfast.audits.context import Context
from holdfast.audits.curves import curves, grid
from holdfast.audits.document import Document
from holdfast.audits.figures import cost, headline, held_against, is_complete, stage_rows
from holdfast.audits.journal import Records
from holdfast.audits.noticed import noticed
from holdfast.audits.plan import Plan
from holdfast.audits.sections import Data, Environment, FindingEntry, Hashes, Model, Sample, SubjectEntry, Threat
from holdfast.audits.tested import methods, not_tested, suite_of
from holdfast.audits.verdicts import RunResults
from holdfast.core.files import read_json
from holdfast.core.version import __version__

__all__ = ["compose", "environment"]


def compose(
    context: Context,
    records: Records,
    seconds: Mapping[str, float],
    *,
    facts: Mapping[str, str],
    journal: str | None,
) -> Document:
    """The document of a run as far as it got.

    Args:
        context: the run's plan, model and data.
        records: of the finished units.
        seconds: working seconds by stage.
        facts: the journal's: the ``command`` and the ``environment`` of the run, as JSON.
        journal: hash of the journal's file.
    """
    run, plan = RunResults.of(context, records, seconds), context.plan
    held = settled(context, run.verdicts)
    findings = [FindingEntry.model_validate(finding) for finding in noticed(run, held)]
    clashes = contradictions(held)
    return Document(
        headline=headline(run, findings),
        complete=is_complete(run) and not clashes,
        contradictions=clashes,
        threat=_threat(plan),
        subject=SubjectEntry.model_validate(context.subject),
        model=_model(run),
        data=_data(run),
        suite=suite_of(run),
        cost=cost(run),
        samples=[Sample.model_validate(verdict.as_dict()) for verdict in run.verdicts],
        findings=findings,
        curves=curves(run),
        grid=grid(run),
        methods=methods(run),
        not_tested=not_tested(plan),
        stages=stage_rows(run),
        seed=plan.seed,
        command=facts["command"],
        environment=Environment.model_validate(read_json(facts["environment"])),
        hashes=Hashes(plan=plan.sha256, model=context.subject.sha256, data=context.data.sha256, journal=journal),
    )


def _threat(plan: Plan) -> Threat:
    return Threat(
        norm=plan.norm,
        eps=plan.eps_text,
        eps_value=float(plan.eps),
        goal=plan.goal,
        access=plan.access.label,
        low=plan.low,
        high=plan.high,
        grid=plan.grid_text,
        known=list(plan.threat.known),
    )


def _model(run: RunResults) -> Model:
    base = run.context.base
    parameters = sum(p.numel() for p in base.parameters()) if isinstance(base, nn.Module) else None
    return Model(source=run.context.source, parameters=parameters, held_against=held_against(run))


def _data(run: RunResults) -> Data:
    data = run.context.data
    return Data(
        source=data.name,
        sha256=data.sha256,
        samples=len(data.x),
        shape=list(data.x.shape[1:]),
        classes=run.parts[0].scores.shape[1] if run.parts else 0,
        class_names=list(data.classes or ()),
    )


def environment(device: str) -> Environment:
    """Where and when this is."""
    return Environment(
        python=sys.version.split()[0],
        torch=torch.__version__,
        holdfast=__version__,
        device=device,
        threads=torch.get_num_threads(),
        platform=platform.platform(),
        when=datetime.now(UTC).isoformat(timespec="seconds"),
    )
