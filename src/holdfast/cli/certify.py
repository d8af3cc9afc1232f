"""``holdfast certify``: certified radii by one method or several, and certificates over other sets."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast.cli import options as o
from holdfast.cli import single_options as one
from holdfast.cli.console import Spoken, note, progress, say_json, show
from holdfast.cli.opening import opened
from holdfast.cli.saving import typed
from holdfast.cli.spread import spread
from holdfast.core.errors import ContradictionError, UsageError
from holdfast.core.threat import size_text

if TYPE_CHECKING:
    from holdfast.session.session import Session
    from holdfast.studies.radii import RadiiResult

__all__ = ["Deployed", "certify"]


class DeployedName(StrEnum):
    """Types in whose arithmetic a model may be proved."""

    FLOAT32 = "float32"
    FLOAT64 = "float64"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


Deployed = Annotated[
    DeployedName | None,
    typer.Option(
        help="Prove the model as it runs in this type, in any order of summation.", show_default="real numbers"
    ),
]


@spread
def certify(
    names: Annotated[
        list[str],
        typer.Argument(
            help="Names of certifiers, side by side; 'all' for every one of graphs and CLEVER. See: holdfast methods.",
            metavar="METHOD...",
        ),
    ],
    out: one.Out,
    model: o.ModelOptions,
    *,
    output: one.Output = None,
    threat: o.NormOptions,
    radius_max: one.RadiusMax = None,
    deployed: Deployed = None,
    attack: Annotated[
        str | None,
        typer.Option(help="An attack whose distances stand beside the radii, from above.", metavar="NAME"),
    ] = None,
    set_: one.Set = None,
    run: o.RunOptions,
    talk: o.TalkOptions,
) -> None:
    """Find the largest radius that each method certifies, sample by sample; or a range of weights, patches, rotations.

    Example: holdfast certify ibp crown clever --attack fmn --model m.onnx --data test.npz --eps 8/255 --out runs/radii
    """
    from holdfast.api.certify import of_column, radii_remarks, radii_rows
    from holdfast.api.certify_files import own_rows, save_columns
    from holdfast.certifiers.set_certifier import SetCertifier

    session = opened(model, o.threat(threat.norm, threat.eps), run, output=output, radius_max=radius_max)
    tools = _tools(_chosen(names, session), set_)
    out.mkdir(parents=True, exist_ok=True)
    ranges = {name: tool for name, tool in tools.items() if isinstance(tool, SetCertifier)}
    if ranges:
        if len(ranges) < len(tools) or attack or deployed:
            raise UsageError(
                f"{', '.join(ranges)}: such methods certify no radius of inputs; run them alone, without --attack and "
                "--deployed"
            )
        _ranges(session, ranges, out, talk)
        return
    result = _side_by_side(session, tools, deployed, attack)
    save_columns(session, result, out, typed())
    answers = [of_column(session, column) for column in result.columns]
    if talk.json:
        say_json(answers)
    else:
        show([radii_rows(answers, size_text(session.threat.eps))])
        for remark in radii_remarks(answers):
            note(remark)
        own = own_rows(result)
        show([] if own is None else [own])
    note(f"radii of each sample: {out / 'radii.csv'}; curves: {out / 'radii.html'}")
    _refuse_crossings(result)


def _chosen(names: list[str], session: Session) -> list[str]:
    if names != ["all"]:
        return names
    from holdfast.certifiers.graph_certifier import GraphCertifier
    from holdfast.certifiers.verification.solver import Solver
    from holdfast.core.registry import method
    from holdfast.core.registry import names as registered

    def asked(name: str) -> bool:
        kind = method(name)
        listed = issubclass(kind, GraphCertifier) and not issubclass(kind, Solver)
        return (listed or name == "clever") and session.threat.norm in kind.card.norms

    return [name for name in registered("certifier") if asked(name)]


def _tools(names: list[str], set_: list[str] | None) -> dict[str, Any]:
    """The methods with what ``--set`` gives them; a parameter must belong to one of them at least."""
    from holdfast.core.cards import parameters_of
    from holdfast.core.registry import method

    kinds = {name.replace("-", "_"): method(name) for name in names}
    owned = {name: {p.name for p in parameters_of(kind)} for name, kind in kinds.items()}
    found: dict[str, Any] = {}
    for name, kind in kinds.items():
        mine = [
            s
            for s in set_ or ()
            if s.partition("=")[0] in owned[name] or not any(s.partition("=")[0] in other for other in owned.values())
        ]
        found[name] = kind(**o.assignments(mine, kind))
    return found


def _side_by_side(
    session: Session, tools: dict[str, Any], deployed: DeployedName | None, attack: str | None
) -> RadiiResult:
    from holdfast.studies.radii import RadiiStudy

    named = None if deployed is None else deployed.value
    asked = RadiiStudy(methods=tuple(tools.values()), attack=attack, deployed=named)
    with progress() as tell:
        result = asked.run(session, progress=tell)
    for name, why in result.refused.items():
        note(f"{name} is left out: {why}")
    return result


def _refuse_crossings(result: RadiiResult) -> None:
    from holdfast.core.verdict import Clash

    for c in result.crossings:
        if c.meaning is Clash.CONTRADICTION:
            raise ContradictionError(
                f"sample {c.sample} is proved by {c.certifier} beyond the distance at which {c.attack} breaks it; report it"
            )
        note(
            f"sample {c.sample}: {c.attack} breaks it within the radius of {c.certifier}, and was not asked in the "
            "arithmetic of the proof"
        )


def _ranges(session: Session, tools: dict[str, Any], out: Path, talk: o.TalkOptions) -> None:
    """Certificates over weights, patches, semantic changes."""
    from holdfast.api.certify import certify_ranges, range_rows

    found = [certify_ranges(session, name, tool, Spoken()) for name, tool in tools.items()]
    for result in found:
        result.save(out)
    answers = [result.to_dict() for result in found]
    if talk.json:
        say_json(answers)
        return
    show([range_rows(answers)])
    note(f"the graph was held against {found[0].held_against}, on the whole range of inputs")
    note(f"ranges of each sample: {', '.join(str(out / (name + '.json')) for name in tools)}")
