"""``holdfast audit``, ``resume`` and ``recheck``: the main job."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from holdfast.cli import options as o
from holdfast.cli.console import note, out, progress, say, say_json
from holdfast.cli.opening import device_named, given
from holdfast.core.errors import UsageError

if TYPE_CHECKING:
    from holdfast.audits.document import Document, Side
    from holdfast.audits.places import Places
    from holdfast.audits.plan import Plan

__all__ = ["audit", "finish", "recheck", "resume"]

_FAILS = 3

FailUnder = Annotated[
    str | None,
    typer.Option(
        help="Exit with 1 if robust accuracy is below this, or its upper bound is weak: 0.4 or 40%.",
        metavar="SHARE",
        rich_help_panel="Answer",
    ),
]
FailOn = Annotated[
    Literal["empirical", "certified"] | None,
    typer.Option(
        "--fail-on", help="The bound that --fail-under holds.", show_default="empirical", rich_help_panel="Answer"
    ),
]
AllowWeak = Annotated[
    bool,
    typer.Option(
        "--allow-weak", help="Let --fail-under pass on a weak upper bound too.", show_default=False,
        rich_help_panel="Answer",
    ),
]  # fmt: skip
_MOVED = "Files that moved"
MovedModel = Annotated[
    str | None,
    typer.Option(
        "--model", help="Where the model is now; an API's URL, to ask it.", metavar="FILE|URL", rich_help_panel=_MOVED
    ),
]
MovedArch = Annotated[
    str | None,
    typer.Option("--arch", help="What builds it now.", metavar="MODULE:FUNCTION", rich_help_panel=_MOVED),
]
MovedData = Annotated[
    str | None, typer.Option("--data", help="Where the data are now.", metavar="FILE", rich_help_panel=_MOVED)
]
MovedTraining = Annotated[
    str | None,
    typer.Option("--train-data", help="Where the training set is now.", metavar="FILE", rich_help_panel=_MOVED),
]
MovedSurrogate = Annotated[
    list[str] | None,
    typer.Option("--surrogate", help="Where the surrogates are now.", metavar="FILE,...", rich_help_panel=_MOVED),
]
MovedSurrogateArch = Annotated[
    list[str] | None,
    typer.Option(
        "--surrogate-arch", help="What builds them now.", metavar="MODULE:FUNCTION,...", rich_help_panel=_MOVED
    ),
]
Workers = Annotated[int, typer.Option(help="Processes.", min=1, metavar="K", rich_help_panel="Run")]


def audit(
    out: Annotated[Path, typer.Option(help="The run's folder; a run of the same plan is continued.", metavar="RUN")],
    model: o.Model = None,
    arch: o.Arch = None,
    trust: o.Trust = None,
    anyway: o.Anyway = False,
    normalise: o.Normalise = None,
    binary: o.Binary = None,
    class_names: o.ClassNames = None,
    table: o.TableFile = None,
    data: o.Data = None,
    train_data: Annotated[
        str | None,
        typer.Option(help="The training set, where the attacker knows it.", metavar="FILE", rich_help_panel="Threat"),
    ] = None,
    samples: o.Samples = None,
    norm: o.NormName = None,
    eps: o.Eps = None,
    eps_grid: Annotated[
        str | None,
        typer.Option(
            help="Attack at these sizes too, for the security curve: 0.02,0.05.", metavar="SIZES", rich_help_panel="Run"
        ),
    ] = None,
    grid: o.Grid = None,
    goal: o.GoalName = None,
    suite: o.Suite = None,
    certify: o.Certify = None,
    radius_max: o.RadiusMax = None,
    sigma: o.Sigma = None,
    queries: o.Queries = None,
    top_k: o.TopK = None,
    surrogate: o.Surrogate = None,
    surrogate_arch: o.SurrogateArch = None,
    answers: o.Answers = None,
    scores: o.Scores = None,
    request: o.Request = None,
    answer_path: o.AnswerPath = None,
    output: o.Output = None,
    classes: o.Classes = None,
    max_queries: o.MaxQueries = None,
    seed: o.Seed = None,
    device: o.Device = None,
    workers: Workers = 1,
    plan_file: Annotated[
        Path | None,
        typer.Option("--plan", help="A plan in YAML; flags override it.", metavar="FILE", rich_help_panel="Run"),
    ] = None,
    fail_under: FailUnder = None,
    fail_on: FailOn = None,
    allow_weak: AllowWeak = False,
    format_: o.Format = o.FormatName.TEXT,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Attack and certify a model, sample by sample, and write a report that anyone can recheck.

    Example: holdfast audit --model model.safetensors --arch holdfast.models.zoo:digits_cnn
    --data digits:test --norm linf --eps 0.1 --out runs/first
    """
    gate = _gate(fail_under, fail_on, allow_weak)
    from holdfast.audits.plan import Plan
    from holdfast.audits.run import audit as run

    if model is not None and model.startswith(("http://", "https://")) and plan_file is None:
        suite, certify = suite or "black-box", certify or "none"  # all that can be had of an API
    values = given(
            model=model, arch=arch, trust=trust, normalise=o.normalisation(normalise), binary=binary,
        class_names=o.class_names(class_names), table=o.table(table), data=data, train_data=train_data,
            samples=samples, norm=norm, eps=eps, eps_grid=None if eps_grid is None else tuple(eps_grid.split(",")),
            grid=grid, goal=goal, suite=suite, certify=certify, radius_max=radius_max, sigma=sigma, queries=queries,
            top_k=top_k, surrogate=o.several(surrogate), surrogate_arch=o.several(surrogate_arch), answers=answers,
            scores=scores, request=request, answer=answer_path, output=output, classes=classes, max_queries=max_queries,
            seed=seed, device=device_named(device),
        )  # fmt: skip
    plan = Plan.of(**values) if plan_file is None else Plan.read(plan_file, **values)
    plan = _agreed(plan)
    if plan.model is None:
        raise UsageError("what model? give --model FILE with --arch MODULE:FUNCTION, or --plan FILE")
    if plan.stepped_down:
        note(plan.stepped_down)
    if plan.remote:
        note(_need(plan))
    if data is None and plan_file is None:
        note(f"no --data: the audit takes the embedded digits, {plan.data}")
    if plan.eps == 0:
        note(
            "--eps 0: no change is allowed, so nothing but clean accuracy is measured; give a size such as --eps 8/255"
        )
    with progress(f"continue with: {_resuming(out, plan)}") as tell:
        document = run(
            plan, out, workers=workers, command=shlex.join(["holdfast", *sys.argv[1:]]), progress=tell, anyway=anyway
        )
    finish(out, document, gate, format_, at=plan)


def resume(
    run: Annotated[Path, typer.Argument(help="Folder of a run.", metavar="RUN")],
    model: MovedModel = None,
    arch: MovedArch = None,
    trust: o.Trust = None,
    data: MovedData = None,
    train_data: MovedTraining = None,
    surrogate: MovedSurrogate = None,
    surrogate_arch: MovedSurrogateArch = None,
    max_queries: o.MaxQueries = None,
    workers: Workers = 1,
    fail_under: FailUnder = None,
    fail_on: FailOn = None,
    allow_weak: AllowWeak = False,
    format_: o.Format = o.FormatName.TEXT,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Continue an interrupted audit; gives what an uninterrupted one gives."""
    gate = _gate(fail_under, fail_on, allow_weak)
    from holdfast.audits.folder import RunFolder
    from holdfast.audits.run import resume as again

    moved = replace(
        _places(run, model, arch, trust, data, train_data, surrogate, surrogate_arch), max_queries=max_queries
    )
    at = moved.located(RunFolder(run).plan(), RunFolder(run))
    with progress(f"continue with: {_resuming(run, at)}") as tell:
        document = again(run, places=moved, workers=workers, progress=tell)
    finish(run, document, gate, format_, at=at)


def recheck(
    run: Annotated[Path, typer.Argument(help="Folder of a run.", metavar="RUN")],
    model: MovedModel = None,
    arch: MovedArch = None,
    trust: o.Trust = None,
    data: MovedData = None,
    train_data: MovedTraining = None,
    surrogate: MovedSurrogate = None,
    surrogate_arch: MovedSurrogateArch = None,
    format_: o.Format = o.FormatName.TEXT,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Judge every witness and certificate of a run anew; exits with 0 only if all hold.

    Files that moved since are named with --model, --arch and --data; their hashes decide whether they are the run's.
    """
    from holdfast.audits.recheck import recheck as again

    places = _places(run, model, arch, trust, data, train_data, surrogate, surrogate_arch)
    with progress("nothing was changed; the same command begins again") as tell:
        found = again(run, places=places, progress=tell)
    if format_ is o.FormatName.JSON:
        say_json(
            {k: getattr(found, k) for k in ("ok", "witnesses", "certificates", "marginal", "problems", "not_rederived")}
        )
    else:
        for problem in found.problems:
            say(f"FAILS: {problem}", style="red")
        for sample in found.marginal:
            say(f"marginal: the witness of sample {sample} flips within its rounding", style="yellow")
        for what in dict.fromkeys(found.not_rederived):
            say(f"not re-derived: {what}")
        verdict = "all hold" if found.ok else f"{len(found.problems)} fail"
        say(f"{found.witnesses} witnesses and {found.certificates} certificates judged anew: {verdict}")
    if not found.ok:
        raise typer.Exit(_FAILS)


def _places(
    run: Path, model: str | None, arch: str | None, trust: bool | None, data: str | None, train_data: str | None,
    surrogate: list[str] | None, surrogate_arch: list[str] | None,
) -> Places:  # fmt: skip
    from holdfast.audits.folder import RunFolder
    from holdfast.audits.places import Places

    plan = RunFolder(run).plan()
    return Places(
        model, arch, data, train_data, o.several(surrogate), o.several(surrogate_arch), trust=bool(trust),
        may_ask=plan.remote and model is None and _agreed(plan).may_ask,
    )  # fmt: skip


def _agreed(plan: Plan) -> Plan:
    """The plan, with a person's consent where only its file names an API; off a terminal nobody is asked."""
    if not (plan.remote and "model" in plan.theirs and sys.stdin.isatty()):
        return plan
    budget = "no budget" if plan.max_queries is None else f"at most {plan.max_queries} rows"
    question = f"The plan's file names an API. Send data to {plan.model} ({budget}; no token, for that give --model)?"
    return plan.confirmed(may_ask=typer.confirm(question))


def _resuming(run: Path, plan: Plan) -> str:
    """The command that goes on with a run, with the consent that it will need."""
    from holdfast.audits.consent import needs_trust

    words = ["holdfast", "resume", str(run)]
    words += ["--model", str(plan.model)] if plan.remote else ["--trust"] if plan.trust or needs_trust(plan) else []
    return shlex.join(words)


def finish(run: Path, document: Document, gate: Gate | None, format_: o.FormatName, *, at: Plan | None = None) -> None:
    """Writes the report files, prints the summary and ends with the exit code that the document asks for."""
    from holdfast.cli.rendering import render
    from holdfast.report.text import show

    if gate is not None:
        document = document.gated(gate.threshold, gate.side, allow_weak=gate.allow_weak)
    render(run, document, at=at)
    if format_ is o.FormatName.JSON:
        say_json(document.model_dump(mode="json"))
    else:
        show(document, out())
        note(f"report: {run / 'report.html'}")
    if document.exit_code:
        raise typer.Exit(document.exit_code)


def _need(plan: Plan) -> str:
    """How many rows an API may be sent, before anything is."""
    from holdfast.audits.needs import need
    from holdfast.data.load import load_data

    data = load_data(plan.data, classes=plan.class_names)
    return need(plan, len(data) if plan.samples is None else min(plan.samples, len(data))).told(plan.max_queries)


@dataclass(frozen=True)
class Gate:
    """What --fail-under, --fail-on and --allow-weak ask for."""

    threshold: float
    side: Side
    allow_weak: bool


def _gate(fail_under: str | None, side: Side | None, allow_weak: bool) -> Gate | None:
    share = _share(fail_under)
    if share is None:
        for given, flag in ((allow_weak, "--allow-weak"), (side is not None, f"--fail-on {side}")):
            if given:
                raise UsageError(f"{flag} is about a threshold, and there is none; give --fail-under SHARE with it")
        return None
    return Gate(share, side or "empirical", allow_weak)


def _share(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        value = float(text.rstrip("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise UsageError(f"--fail-under {text} is no share; write 0.4 or 40%")
    return value
