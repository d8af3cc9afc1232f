"""``holdfast bench``: one question asked of many models or methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast.cli import options as o
from holdfast.cli import single_options as one
from holdfast.cli.console import progress, say_json, table
from holdfast.cli.saving import save_study, typed
from holdfast.cli.spread import spread
from holdfast.core.errors import UsageError

if TYPE_CHECKING:
    from holdfast.studies.transfer import TransferMatrix

__all__ = ["bench", "transfer"]

bench = typer.Typer(help="Compare models or methods on one question.", no_args_is_help=True)


@bench.command()
@spread
def transfer(
    models: Annotated[
        list[str], typer.Option(help="The models, with commas or repeated; NAME=FILE names one.", metavar="FILE,...")
    ],
    out: one.Out,
    *,
    archs: Annotated[
        list[str] | None,
        typer.Option(help="Builds their architectures: one for all, or one for each.", metavar="MODULE:FUNCTION,..."),
    ] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(help="Transfer attacks, with commas or repeated.", metavar="NAME,...", show_default="all"),
    ] = None,
    ensembles: Annotated[
        bool, typer.Option("--ensembles", help="For each model also attack the ensemble of all the others.")
    ] = False,
    set_: one.Set = None,
    data: one.Data = None,
    samples: one.Samples = None,
    threat: o.NormOptions,
    goal: one.GoalName = None,
    trust: one.Trust = None,
    anyway: one.Anyway = False,
    run: o.RunOptions,
    talk: o.TalkOptions,
) -> None:
    """Attack every model and judge the examples on every other: a matrix of source and target.

    Example: holdfast bench transfer --models a.safetensors,b.safetensors --archs net.py:small,net.py:large
    --data test.npz --eps 8/255 --methods surrogate_transfer,di_fgsm --out runs/transfer
    """
    from holdfast.attacks.attack import Attack
    from holdfast.cli.opening import look_at_models, open_models
    from holdfast.core.registry import create, method
    from holdfast.report.studies import page
    from holdfast.session.opening import open_session
    from holdfast.studies.transfer import Transfer

    if data is None:
        raise UsageError("what data? give --data")
    place = run.place()
    models_by_name = open_models(models, archs, trust=trust, device=place)
    names = o.several(methods) or ()
    if set_ and len(names) != 1:
        raise UsageError("--set needs one method; name it with --methods")
    kind: type[Attack[Any, Any]] = Attack
    tools = tuple(create(name, kind, **o.assignments(set_, method(name))) for name in names)
    session = open_session(
        next(iter(models_by_name.values())),
        data,
        o.threat(threat.norm, threat.eps, goal),
        samples=samples,
        seed=run.seed or 0,
        device=place or "cpu",
    )
    look_at_models(models_by_name, session.data, session.threat, anyway=anyway)
    with progress() as tell:
        result = Transfer(methods=tools, ensembles=ensembles, models=models_by_name).run(session, progress=tell)
    answer = [m.to_dict() for m in result.matrices]
    if talk.json:
        say_json(answer)
    else:
        _show(result.matrices)
    save_study(out, "transfer", answer, page(result, session.data.name, typed()))


def _show(matrices: Sequence[TransferMatrix]) -> None:
    table(
        ("method", "source", *matrices[0].targets),
        [
            (m.attack, source, *(_figure(m.cell(source, target).share) for target in m.targets))
            for m in matrices
            for source in m.sources
        ],
    )


def _figure(share: float | None) -> str:
    return "none" if share is None else f"{share:.1%}"
