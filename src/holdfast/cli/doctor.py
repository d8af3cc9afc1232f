"""``holdfast doctor``: what is wrong with a model and its data, before an audit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from holdfast.cli import options as o
from holdfast.cli.console import say, say_json
from holdfast.cli.opening import opened
from holdfast.core.errors import HoldfastError

if TYPE_CHECKING:
    from holdfast.audit.context import Context

__all__ = ["doctor"]

_ERRORS = 2
_STYLES = {"error": "red", "warning": "yellow", "note": None}


def doctor(
    model: o.Model = None,
    arch: o.Arch = None,
    trust: o.Trust = None,
    normalise: o.Normalise = None,
    binary: o.Binary = None,
    class_names: o.ClassNames = None,
    table: o.TableFile = None,
    data: o.Data = None,
    samples: o.Samples = None,
    norm: o.NormName = None,
    eps: o.Eps = None,
    answers: o.Answers = None,
    classes: o.Classes = None,
    max_queries: o.MaxQueries = None,
    device: o.Device = None,
    format_: o.Format = o.FormatName.TEXT,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Look at a model and its data together; exits with 2 if an audit would not start. Nothing is changed."""
    from pathlib import Path

    from holdfast.core.findings import Severity
    from holdfast.models.checks import preflight

    context = opened(
        Path(), model=model, arch=arch, trust=trust, normalise=o.normalisation(normalise), binary=binary,
        class_names=o.class_names(class_names), table=o.table(table), data=data, samples=samples,
        norm=norm, eps=eps, answers=answers, classes=classes, max_queries=max_queries, device=device,
    )  # fmt: skip
    found = preflight(context.model, context.data, context.plan.threat, device=context.device)
    errors = [f for f in found if f.severity is Severity.ERROR]
    bounds = _bounds(context) if context.differentiable and not errors else ""
    if format_ is o.FormatName.JSON:
        say_json({"source": context.source, "findings": [f.as_dict() for f in found], "bounds": bounds})
    else:
        say(f"{context.source}")
        say(f"{context.data.name}: {len(context.data)} samples of {'x'.join(map(str, context.data.x.shape[1:]))}")
        for f in found:
            say(f"{f.severity}: {f.title} [{f.code}]. {f.message} {f.remedy}".rstrip(), style=_STYLES[f.severity])
        say(f"certificates: {bounds or 'not looked at'}")
        say("an audit can start" if not errors else f"{len(errors)} error(s) to mend first")
    if errors:
        raise typer.Exit(_ERRORS)


def _bounds(context: Context) -> str:
    """Whether the linear bounds know every operation of the model."""
    from holdfast.certify.bounds.ibp import IBP

    part = context.problem(context.chunks()[0][:1])
    try:
        IBP().margins(context.graph, part.x, part.y, part.set)
    except HoldfastError as fault:
        return f"none by bounds: {fault}; smoothing (--certify smoothing --norm l2) needs no graph"
    return "ibp and crown know every operation of the model"
