"""``holdfast audit``, ``resume`` and ``recheck``: the main job."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from holdfast.cli import options as o
from holdfast.cli import single_options as one
from holdfast.cli.console import Spoken, note, out, say, say_json
from holdfast.cli.saving import typed
from holdfast.cli.spread import spread
from holdfast.core.errors import UsageError

if TYPE_CHECKING:
    from holdfast.api.report import Report
    from holdfast.audits.places import Places
    from holdfast.audits.plan import Plan
    from holdfast.audits.sections import Side

__all__ = ["audit", "finish", "recheck", "resume"]

_FAILS = 3
_STYLES = {"FAILS": "red", "marginal": "yellow"}


@dataclass(frozen=True, kw_only=True)
class GateOptions:
    """What a run must reach."""

    fail_under: Annotated[
        str | None,
        typer.Option(
            help="Exit with 1 if robust accuracy is below this, or its upper bound is weak: 0.4 or 40%.",
            metavar="SHARE",
            rich_help_panel="Answer",
        ),
    ] = None
    fail_on: Annotated[
        Literal["empirical", "certified"] | None,
        typer.Option(
            "--fail-on", help="The bound that --fail-under holds.", show_default="empirical", rich_help_panel="Answer"
        ),
    ] = None
    allow_weak: Annotated[
        bool,
        typer.Option(
            "--allow-weak",
            help="Let --fail-under pass on a weak upper bound too.",
            show_default=False,
            rich_help_panel="Answer",
        ),
    ] = False

    def gate(self) -> GateTerms | None:
        """The threshold; None where there is none.

        Raises:
            UsageError: no share, or something about a threshold that is not there.
        """
        share = _share(self.fail_under)
        if share is not None:
            return GateTerms(share, self.fail_on or "empirical", self.allow_weak)
        for given, flag in ((self.allow_weak, "--allow-weak"), (self.fail_on, f"--fail-on {self.fail_on}")):
            if given:
                raise UsageError(f"{flag} is about a threshold, and there is none; give --fail-under SHARE with it")
        return None


_MOVED = "Files that moved"


@dataclass(frozen=True, kw_only=True)
class MovedOptions:
    """Where the files of a run are now."""

    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="Where the model is now; an API's URL, to ask it.",
            metavar="FILE|URL",
            rich_help_panel=_MOVED,
        ),
    ] = None
    arch: Annotated[
        str | None,
        typer.Option("--arch", help="What builds it now.", metavar="MODULE:FUNCTION", rich_help_panel=_MOVED),
    ] = None
    trust: one.Trust = None
    data: Annotated[
        str | None, typer.Option("--data", help="Where the data are now.", metavar="FILE", rich_help_panel=_MOVED)
    ] = None
    train_data: Annotated[
        str | None,
        typer.Option("--train-data", help="Where the training set is now.", metavar="FILE", rich_help_panel=_MOVED),
    ] = None
    surrogate: Annotated[
        list[str] | None,
        typer.Option("--surrogate", help="Where the surrogates are now.", metavar="FILE,...", rich_help_panel=_MOVED),
    ] = None
    surrogate_arch: Annotated[
        list[str] | None,
        typer.Option(
            "--surrogate-arch", help="What builds them now.", metavar="MODULE:FUNCTION,...", rich_help_panel=_MOVED
        ),
    ] = None

    def places(self, run: Path) -> Places:
        """As the library takes it; a person is asked for the consent that only a plan file gives."""
        from holdfast.audits.folder import RunFolder
        from holdfast.audits.places import Places

        plan = RunFolder(run).plan()
        return Places(
            self.model, self.arch, self.data, self.train_data, o.several(self.surrogate), o.several(self.surrogate_arch),
            trust=bool(self.trust), may_ask=plan.remote and self.model is None and _agreed(plan).may_ask,
        )  # fmt: skip


Workers = Annotated[int, typer.Option(help="Processes.", min=1, metavar="K", rich_help_panel="Run")]


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """What is attacked and certified, and how far."""

    eps_grid: Annotated[
        str | None,
        typer.Option(
            help="Attack at these sizes too, for the security curve: 0.02,0.05.", metavar="SIZES", rich_help_panel="Run"
        ),
    ] = None
    grid: one.Grid = None
    goal: one.GoalName = None
    suite: one.Suite = None
    certify: one.Certify = None
    radius_max: one.RadiusMax = None
    sigma: one.Sigma = None

    def values(self) -> dict[str, Any]:
        """As a plan has them; only what was given."""
        grid = None if self.eps_grid is None else tuple(self.eps_grid.split(","))
        return o.given(
            eps_grid=grid,
            grid=self.grid,
            goal=self.goal,
            suite=self.suite,
            certify=self.certify,
            radius_max=self.radius_max,
            sigma=self.sigma,
        )


@spread
def audit(
    out: Annotated[Path, typer.Option(help="The run's folder; a run of the same plan is continued.", metavar="RUN")],
    model: o.ModelOptions,
    *,
    train_data: Annotated[
        str | None,
        typer.Option(help="The training set, where the attacker knows it.", metavar="FILE", rich_help_panel="Threat"),
    ] = None,
    threat: o.NormOptions,
    search: SearchOptions,
    attacker: o.AttackerOptions,
    asked: o.AskedOptions,
    run: o.RunOptions,
    workers: Workers = 1,
    plan_file: Annotated[
        Path | None,
        typer.Option("--plan", help="A plan in YAML; flags override it.", metavar="FILE", rich_help_panel="Run"),
    ] = None,
    answer: GateOptions,
    talk: o.TalkOptions,
) -> None:
    """Attack and certify a model, sample by sample, and write a report that anyone can recheck.

    Example: holdfast audit --model model.safetensors --arch holdfast.models.zoo:digits_cnn
    --data digits:test --norm linf --eps 0.1 --out runs/first
    """
    gate = answer.gate()
    from holdfast.api.audit import run_plan
    from holdfast.audits.plan import Plan

    # all that can be had of an API
    least = {"suite": "black-box", "certify": "none"} if o.is_url(model.model) and plan_file is None else {}
    values = least | model.plan_values() | asked.values() | search.values() | o.given(
        train_data=train_data, norm=threat.norm, eps=threat.eps, queries=attacker.queries, top_k=attacker.top_k,
        surrogate=o.several(attacker.surrogate), surrogate_arch=o.several(attacker.surrogate_arch), seed=run.seed,
        device=run.place(),
    )  # fmt: skip
    plan = _agreed(Plan.of(**values) if plan_file is None else Plan.read(plan_file, **values))
    _tell(plan, embedded=model.data is None and plan_file is None)
    report = run_plan(
        plan,
        out,
        Spoken(),
        workers=workers,
        command=typed(),
        anyway=model.anyway,
        interrupted=f"continue with: {_resuming(out, plan)}",
    )
    finish(report, gate, talk)


def _tell(plan: Plan, *, embedded: bool) -> None:
    """What a person should know before an audit begins; ``embedded``: nobody named data."""
    if plan.model is None:
        raise UsageError("what model? give --model FILE with --arch MODULE:FUNCTION, or --plan FILE")
    if plan.stepped_down:
        note(plan.stepped_down)
    if plan.remote:
        note(_need(plan))
    if embedded:
        note(f"no --data: the audit takes the embedded digits, {plan.data}")
    if plan.eps == 0:
        note(
            "--eps 0: no change is allowed, so nothing but clean accuracy is measured; give a size such as --eps 8/255"
        )


@spread
def resume(
    run: Annotated[Path, typer.Argument(help="Folder of a run.", metavar="RUN")],
    moved: MovedOptions,
    *,
    max_queries: one.MaxQueries = None,
    workers: Workers = 1,
    answer: GateOptions,
    talk: o.TalkOptions,
) -> None:
    """Continue an interrupted audit; gives what an uninterrupted one gives."""
    gate = answer.gate()
    from holdfast.api.audit import resume_run
    from holdfast.audits.folder import RunFolder

    places = replace(moved.places(run), max_queries=max_queries)
    at = places.located(RunFolder(run).plan(), RunFolder(run))
    report = resume_run(run, places, Spoken(), workers=workers, interrupted=f"continue with: {_resuming(run, at)}")
    finish(report, gate, talk)


@spread
def recheck(
    run: Annotated[Path, typer.Argument(help="Folder of a run.", metavar="RUN")],
    moved: MovedOptions,
    talk: o.TalkOptions,
) -> None:
    """Judge every witness and certificate of a run anew; exits with 0 only if all hold.

    Files that moved since are named with --model, --arch and --data; their hashes decide whether they are the run's.
    """
    from holdfast.api.audit import recheck_run

    result = recheck_run(run, moved.places(run), Spoken())
    if talk.json:
        say_json(result.to_dict())
    else:
        for line in map(str, result.blocks()):
            say(line, style=_STYLES.get(line.partition(":")[0]))
    if not result.ok:
        raise typer.Exit(_FAILS)


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


def finish(report: Report, gate: GateTerms | None, talk: o.TalkOptions) -> None:
    """Writes the report files, prints the summary and ends with the exit code that the document asks for."""
    from holdfast.report.audits.text import show

    if gate is not None:
        report = report.gated(gate.threshold, gate.side, allow_weak=gate.allow_weak)
    report.write(Spoken())
    if talk.json:
        say_json(report.to_dict())
    else:
        show(report.document, out())
        note(f"report: {report.folder / 'report.html'}")
    if report.document.exit_code:
        raise typer.Exit(report.document.exit_code)


def _need(plan: Plan) -> str:
    """How many rows an API may be sent, before anything is."""
    from holdfast.audits.needs import need
    from holdfast.data.load import load_data

    data = load_data(plan.data, classes=plan.class_names)
    return need(plan, len(data) if plan.samples is None else min(plan.samples, len(data))).told(plan.max_queries)


@dataclass(frozen=True)
class GateTerms:
    """What --fail-under, --fail-on and --allow-weak ask for."""

    threshold: float
    side: Side
    allow_weak: bool


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
