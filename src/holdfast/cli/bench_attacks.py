"""``holdfast bench attacks``: the attacks of a norm against each other, with the same allowance of passes."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from holdfast.cli import options as o
from holdfast.cli.console import note, progress, say, say_json
from holdfast.cli.console import table as printed
from holdfast.cli.opening import opened

__all__ = ["attacks"]


def attacks(
    out: o.Out,
    patterns: Annotated[
        list[str] | None, typer.Argument(help="Attacks, or patterns such as 'apgd*'; all that serve, by default.")
    ] = None,
    model: o.Model = None,
    arch: o.Arch = None,
    trust: o.Trust = None,
    anyway: o.Anyway = False,
    normalise: o.Normalise = None,
    binary: o.Binary = None,
    class_names: o.ClassNames = None,
    table: o.TableFile = None,
    data: o.Data = None,
    samples: o.Samples = None,
    norm: o.NormName = None,
    goal: o.GoalName = None,
    access: Annotated[
        Literal["white-box", "soft-label", "hard-label"], typer.Option(help="The most that an attack may ask.")
    ] = "white-box",
    passes: Annotated[
        int, typer.Option(help="Forwards and backwards that each sample is allowed.", metavar="N", min=16)
    ] = 1000,
    answers: o.Answers = None,
    scores: o.Scores = None,
    request: o.Request = None,
    answer_path: o.AnswerPath = None,
    output: o.Output = None,
    classes: o.Classes = None,
    max_queries: o.MaxQueries = None,
    seed: o.Seed = None,
    device: o.Device = None,
    format_: o.Format = o.FormatName.TEXT,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Compare attacks on one model: median distance, success, passes, and distance against passes, as a table and a page."""
    import json

    import numpy as np

    from holdfast.attacks.attack import Attack
    from holdfast.audits.needs import JUDGED
    from holdfast.core.errors import BudgetError, UsageError
    from holdfast.core.files import write_whole
    from holdfast.core.registry import create
    from holdfast.core.threat import Access
    from holdfast.models.http import HttpModel
    from holdfast.report.comparison import write_comparison
    from holdfast.studies.comparison import candidates, compare

    context = opened(
        out, anyway=anyway, model=model, arch=arch, trust=trust, normalise=o.normalisation(normalise), binary=binary,
        class_names=o.class_names(class_names), table=o.table(table), data=data, samples=samples,
        norm=norm, goal=goal, answers=answers,
        scores=scores, request=request, answer=answer_path, output=output,
        classes=classes, max_queries=max_queries, seed=seed, device=device,
    )  # fmt: skip
    plan = context.plan
    allowed = {a.label: a for a in Access}[access]
    if not context.differentiable:
        context.check_answers()
        allowed = min(allowed, Access.HARD_LABEL if plan.answers == "labels" else Access.SOFT_LABEL)
    chosen = candidates(plan.norm, plan.goal, allowed, patterns or ["*"])
    if not chosen:
        raise UsageError(f"no attack of that name serves {plan.norm}, {plan.goal}, {access}; see: holdfast methods")
    left_out = sorted({p.replace("-", "_").lower() for p in patterns or () if p.isidentifier()} - set(chosen))
    if left_out and not context.differentiable:
        note(f"left out, since {context.source} is only asked for {plan.answers}: {', '.join(left_out)}")
    most = len(chosen) * len(context.data) * (passes + JUDGED)
    if isinstance(context.base, HttpModel) and plan.max_queries is not None and most > plan.max_queries:
        raise BudgetError(
            f"{len(chosen)} attacks ({', '.join(chosen)}) on {len(context.data)} samples with at most {passes} passes each "
            f"may send {most:,} rows, and --max-queries allows {plan.max_queries:,}; allow more, or name "
            "fewer attacks, --samples or --passes"
        )
    problem = context.problem(np.arange(len(context.data)), float("inf"))
    with progress() as tell:
        found = compare(
            context.model, problem, {name: create(name, Attack) for name in chosen}, passes=passes, seed=plan.seed,
            settings=context.settings, progress=tell,
        )  # fmt: skip
    about = f"{context.source}, {context.data.name}, seed {plan.seed}"
    answer = {"subject": context.subject.sha256, "seed": plan.seed, **found.as_dict()}
    write_whole(out / "comparison.json", json.dumps(answer, indent=1))
    write_comparison(out / "comparison.html", found, about)
    if format_ is o.FormatName.JSON:
        say_json(answer)
        return
    say(f"{found.norm}: {found.samples} samples that were right, at most {found.passes} passes each, seed {plan.seed}")
    printed(
        ("attack", "success", "median", "area", "forwards", "backwards", "queries", "cpu s"),
        [
            (e.name, f"{e.success:.1%}", "none" if e.median is None else f"{e.median:.4g}", f"{e.area:.4g}",
             f"{e.forwards:.1f}", f"{e.backwards:.1f}", f"{e.queries:.1f}", f"{e.cpu_seconds:.1f}")
            for e in found.entries
        ],
    )  # fmt: skip
    say(f"best of all: median {'none' if found.best is None else f'{found.best:.4g}'}")
    for name, why in found.refused.items():
        note(f"{name} could not serve: {why}")
    note(f"saved {out / 'comparison.html'} and {out / 'comparison.json'}")
