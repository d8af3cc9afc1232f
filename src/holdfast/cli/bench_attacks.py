"""``holdfast bench attacks``: the attacks of a norm against each other, with the same allowance of passes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from holdfast.cli import options as o
from holdfast.cli import single_options as one
from holdfast.cli.console import note, progress, say, say_json, table
from holdfast.cli.opening import opened
from holdfast.cli.saving import save_study
from holdfast.cli.spread import spread
from holdfast.core.errors import BudgetError, UsageError

if TYPE_CHECKING:
    from holdfast.core.threat import Access
    from holdfast.session.session import Session
    from holdfast.studies.comparison import ComparisonResult

__all__ = ["attacks"]


@spread
def attacks(
    out: one.Out,
    patterns: Annotated[
        list[str] | None, typer.Argument(help="Attacks, or patterns such as 'apgd*'; all that serve, by default.")
    ] = None,
    *,
    model: o.ModelOptions,
    norm: one.NormName = None,
    goal: one.GoalName = None,
    access: Annotated[
        Literal["white-box", "soft-label", "hard-label"], typer.Option(help="The most that an attack may ask.")
    ] = "white-box",
    passes: Annotated[
        int, typer.Option(help="Forwards and backwards that each sample is allowed.", metavar="N", min=16)
    ] = 1000,
    asked: o.AskedOptions,
    run: o.RunOptions,
    talk: o.TalkOptions,
) -> None:
    """Compare attacks on one model: median distance, success, passes, and distance against passes, as a table and a page."""
    from holdfast.core.threat import Access
    from holdfast.report.studies import page
    from holdfast.studies.comparison import Comparison

    session = opened(model, o.threat(norm, None, goal, asked), run, asked=asked)
    chosen, allowed = _chosen(session, patterns or [], {a.label: a for a in Access}[access])
    _check_budget(session, chosen, passes)
    with progress() as tell:
        result = Comparison(attacks=tuple(chosen), access=allowed, passes=passes).run(session, progress=tell)
    answer = {"subject": session.subject.sha256, "seed": session.seed, **result.to_dict()}
    about = f"{session.source}, {session.data.name}, seed {session.seed}"
    if talk.json:
        say_json(answer)
    else:
        _show(result, session.seed)
    save_study(out, "comparison", answer, page(result, about))


def _chosen(session: Session, patterns: list[str], access: Access) -> tuple[list[str], Access]:
    """The attacks that serve, and the most that they may ask."""
    from holdfast.session.allowance import candidates, given_access

    threat, allowed = session.threat, access
    if not session.differentiable:
        session.check_answers()
        allowed = min(access, given_access(session))
    chosen = candidates(threat.norm, threat.goal, allowed, patterns or ["*"])
    if not chosen:
        raise UsageError(
            f"no attack of that name serves {threat.norm}, {threat.goal}, {access.label}; see: holdfast methods"
        )
    left_out = sorted({p.replace("-", "_").lower() for p in patterns if p.isidentifier()} - set(chosen))
    if left_out and not session.differentiable:
        note(f"left out, since {session.source} is only asked for {session.spec.answers}: {', '.join(left_out)}")
    return chosen, allowed


def _check_budget(session: Session, chosen: list[str], passes: int) -> None:
    """Refuses a comparison that a prediction API's budget does not pay for."""
    from holdfast.models.http import HttpModel
    from holdfast.session.allowance import JUDGED

    most = len(chosen) * len(session.data) * (passes + JUDGED)
    if isinstance(session.base, HttpModel) and most > session.base.max_queries:
        raise BudgetError(
            f"{len(chosen)} attacks ({', '.join(chosen)}) on {len(session.data)} samples with at most {passes} passes each "
            f"may send {most:,} rows, and --max-queries allows {session.base.max_queries:,}; allow more, or name "
            "fewer attacks, --samples or --passes"
        )


def _show(result: ComparisonResult, seed: int) -> None:
    say(f"{result.norm}: {result.samples} samples that were right, at most {result.passes} passes each, seed {seed}")
    table(
        ("attack", "success", "median", "area", "forwards", "backwards", "queries", "cpu s"),
        [
            (
                e.name,
                f"{e.success:.1%}",
                "none" if e.median is None else f"{e.median:.4g}",
                f"{e.area:.4g}",
                f"{e.forwards:.1f}",
                f"{e.backwards:.1f}",
                f"{e.queries:.1f}",
                f"{e.cpu_seconds:.1f}",
            )
            for e in result.entries
        ],
    )
    say(f"best of all: median {'none' if result.best is None else f'{result.best:.4g}'}")
    for name, why in result.refused.items():
        note(f"{name} could not serve: {why}")
