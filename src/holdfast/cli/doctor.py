"""``holdfast doctor``: what is wrong with a model and its data, before an audit."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Any

import typer

from holdfast.cli import options as o
from holdfast.cli.asked import first_answers, rows_at_once
from holdfast.cli.console import say, say_json
from holdfast.cli.opening import opened
from holdfast.core.errors import HoldfastError
from holdfast.core.words import counted, numbered, sentences

if TYPE_CHECKING:
    from holdfast.audits.context import Context

__all__ = ["doctor"]

_ERRORS = 2
_ROWS, _BATCH = 200, 64
_OWN = ("--format", "-q", "--quiet", "-v", "--verbose")
_UNASKED = ("model.call", "model.output", "model.one_logit", "model.nan", "labels.range", "labels.negative", "data.nan")
_TABLE = "--table columns.yaml"
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
    scores: o.Scores = None,
    request: o.Request = None,
    answer_path: o.AnswerPath = None,
    output: o.Output = None,
    classes: o.Classes = None,
    max_queries: o.MaxQueries = None,
    device: o.Device = None,
    format_: o.Format = o.FormatName.TEXT,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Look at a model and its data together; exits with 2 if an audit would not start. Nothing is changed.

    It prints the clean accuracy, how the classes are numbered, what is wrong and what mends it, whether the bounds know the
    model, how long an audit would take, and the command that starts it.
    """
    from pathlib import Path

    from holdfast.audits.needs import need
    from holdfast.audits.outlook import outlook
    from holdfast.core.findings import Severity
    from holdfast.models.checks import preflight

    context = opened(
        Path(), looks=False, model=model, arch=arch, trust=trust, normalise=o.normalisation(normalise), binary=binary,
        class_names=o.class_names(class_names), table=o.table(table), data=data, samples=samples,
        norm=norm, eps=eps, answers=answers,
        scores=scores, request=request, answer=answer_path, output=output,
        classes=classes, max_queries=max_queries, device=device,
    )  # fmt: skip
    few = rows_at_once(context)
    found = preflight(context.model, context.data, context.plan.threat, device=context.device, samples=few or _ROWS)
    errors = [f for f in found if f.severity is Severity.ERROR]
    accuracy = None if any(f.code in _UNASKED for f in errors) or not context.differentiable else _accuracy(context)
    asked = {} if errors or context.differentiable else first_answers(context, few or min(_ROWS, len(context.data)))
    accuracy = asked.get("accuracy", accuracy)
    bounds = _bounds(context) if context.differentiable and not errors else ""
    cost = str(outlook(context)) if context.differentiable and not errors else ""
    most = None
    if context.plan.remote and not errors:
        cost = str(needed := need(context.plan, len(context.data)))
        short = needed.finding(context.plan.max_queries)
        found, most = [*found, *short], needed.most if short else None
        errors = [f for f in found if f.severity is Severity.ERROR]
    command = _command(context, [str(f.data["flags"]) for f in found if f.data.get("flags")], most)
    names = dict(enumerate(context.data.classes or ()))
    if format_ is o.FormatName.JSON:
        say_json(
            {
                "source": context.source, "findings": [f.as_dict() for f in found], "clean_accuracy": accuracy,
                "classes": names, "bounds": bounds, "time": cost, "command": command,
                "asked": asked,
            }
        )  # fmt: skip
    else:
        say(f"{context.source}")
        shape = context.data.x.shape[1:]
        of = counted(shape[0], "feature") if len(shape) == 1 else "x".join(map(str, shape))
        say(f"{context.data.name}: {counted(len(context.data), 'sample')} of {of}")
        if names:
            say(f"classes: {numbered(list(names.values()))}")
        if accuracy is not None:
            rows = int(asked.get("rows", min(len(context.data), _ROWS)))
            say(f"clean accuracy: {accuracy:.1%} of {'the first ' if rows > 1 else ''}{counted(rows, 'sample')}")
        if asked:
            say(_answered(asked))
        for f in found:
            say(f"{f.severity}: {f.title} [{f.code}]. {sentences(f.message, f.remedy)}", style=_STYLES[f.severity])
        say(f"certificates: {bounds or ('not looked at' if context.differentiable else f'none, {context.why}')}")
        if cost:
            say(cost if context.plan.remote else f"time of an audit (suite {context.plan.suite}): {cost}")
        say("an audit can start:" if not errors else f"{counted(len(errors), 'error')} to mend first; then:")
        if any(f.data.get("flags") == _TABLE for f in found):
            say(f"  {shlex.join(['holdfast', 'columns', context.plan.data, '--out', 'columns.yaml'])}")
        say(f"  {command}")
    if errors:
        raise typer.Exit(_ERRORS)


def _accuracy(context: Context) -> float:
    """Clean accuracy on the first samples."""
    import numpy as np
    import torch

    from holdfast.numerics.evaluation import evaluating

    ids = np.arange(min(len(context.data), _ROWS))
    with torch.no_grad(), evaluating(context.model):
        out = torch.cat([context.model(part.clone()) for part in context.inputs(ids).split(_BATCH)])
    return float((out.argmax(1) == context.labels(ids)).double().mean())


def _answered(asked: dict[str, Any]) -> str:
    """What a model that can only be asked said."""
    steady = (
        "the same when asked again" if asked["moved"] == 0 else f"moved by up to {asked['moved']:.3g} when asked again"
    )
    sent = (
        f"; {counted(asked['rows_sent'], 'row')} in {counted(asked['requests'], 'request')}"
        if "requests" in asked
        else ""
    )
    took = f"{asked['milliseconds_a_row']:.2g} ms a row"
    return f"answers: {asked['answers']} of {asked['classes']} classes, {steady}, {took}{sent}"


def _command(context: Context, flags: list[str], most: int | None) -> str:
    """The command line of an audit: what was typed, what the findings say is missing, and the budget that it needs."""
    typed = sys.argv[1:]
    typed = typed[typed.index("doctor") + 1 :] if "doctor" in typed else typed
    kept = [t for k, t in enumerate(typed) if t not in _OWN and (k == 0 or typed[k - 1] != "--format")]
    if most is not None:
        kept = _with_budget(kept, most)
    remote = ["--suite", "black-box", "--certify", "none"] if not context.differentiable else []
    named = [] if "--out" in kept else ["--out", "runs/first"]
    return " ".join([shlex.join(["holdfast", "audit", *kept, *remote, *named]), *dict.fromkeys(flags)])


def _with_budget(words: list[str], most: int) -> list[str]:
    """The words with another budget."""
    at = next((k for k, word in enumerate(words) if word.partition("=")[0] == "--max-queries"), len(words))
    after = at + 1 if at < len(words) and "=" in words[at] else at + 2
    return [*words[:at], "--max-queries", str(most), *words[after:]]


def _bounds(context: Context) -> str:
    """Whether the linear bounds know every operation of the model."""
    import numpy as np

    from holdfast.certifiers.bounds.ibp import IBP

    part = context.problem(np.arange(1))
    try:
        IBP().margins(context.graph, part.x, part.y, part.set)
    except HoldfastError as fault:
        return f"none by bounds: {fault}; smoothing (--certify smoothing --norm l2) needs no graph"
    return "ibp and crown know every operation of the model"
