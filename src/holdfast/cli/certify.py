"""``holdfast certify``: certified radii by one method or several, and certificates over other sets."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast.cli import options as o
from holdfast.cli.console import Stages, note, progress, say_json, table
from holdfast.cli.opening import opened
from holdfast.core.errors import ContradictionError, UsageError

if TYPE_CHECKING:
    from holdfast.audits.context import Context
    from holdfast.studies.radii import Column

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


def certify(
    names: Annotated[
        list[str],
        typer.Argument(
            help="Names of certifiers, side by side; 'all' for every one of graphs and CLEVER. See: holdfast methods.",
            metavar="METHOD...",
        ),
    ],
    out: o.Out,
    model: o.Model = None,
    arch: o.Arch = None,
    trust: o.Trust = None,
    anyway: o.Anyway = False,
    normalise: o.Normalise = None,
    output: o.Output = None,
    binary: o.Binary = None,
    class_names: o.ClassNames = None,
    table: o.TableFile = None,
    data: o.Data = None,
    samples: o.Samples = None,
    norm: o.NormName = None,
    eps: o.Eps = None,
    radius_max: o.RadiusMax = None,
    deployed: Deployed = None,
    attack: Annotated[
        str | None,
        typer.Option(help="An attack whose distances stand beside the radii, from above.", metavar="NAME"),
    ] = None,
    set_: o.Set = None,
    seed: o.Seed = None,
    device: o.Device = None,
    format_: o.Format = o.FormatName.TEXT,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Find the largest radius that each method certifies, sample by sample; or a range of weights, patches, rotations.

    Example: holdfast certify ibp crown clever --attack fmn --model m.onnx --data test.npz --eps 8/255 --out runs/radii
    """  # fmt: skip
    from holdfast.certifiers.set_certifier import SetCertifier

    context = opened(
        out, anyway=anyway, model=model, arch=arch, trust=trust, normalise=o.normalisation(normalise), output=output,
        binary=binary,
        class_names=o.class_names(class_names), table=o.table(table), data=data, samples=samples,
        norm=norm, eps=eps, radius_max=radius_max, seed=seed, device=device,
    )  # fmt: skip
    tools = _tools(_chosen(names, context), set_)
    out.mkdir(parents=True, exist_ok=True)
    ranges = {name: tool for name, tool in tools.items() if isinstance(tool, SetCertifier)}
    if ranges:
        if len(ranges) < len(tools) or attack or deployed:
            raise UsageError(
                f"{', '.join(ranges)} certify no radius of inputs: run them alone, without --attack and --deployed"
            )
        _ranges(context, ranges, out, format_)
        return
    columns = _columns(context, tools, deployed, attack)
    answers = [_save(context, c, out) for c in columns]
    _page(context, columns, out)
    if format_ is o.FormatName.JSON:
        say_json(answers)
    else:
        _show(answers)
        _show_own(context, columns)
    note(f"radii of each sample: {out / 'radii.csv'}; curves: {out / 'radii.html'}")
    _refuse_crossings(columns)


def _chosen(names: list[str], context: Context) -> list[str]:
    if names != ["all"]:
        return names
    from holdfast.certifiers.graph_certifier import GraphCertifier
    from holdfast.certifiers.verification.solver import Solver
    from holdfast.core.registry import method
    from holdfast.core.registry import names as registered

    def asked(name: str) -> bool:
        kind = method(name)
        listed = issubclass(kind, GraphCertifier) and not issubclass(kind, Solver)
        return (listed or name == "clever") and context.plan.norm in kind.card.norms

    return [name for name in registered("certifier") if asked(name)]


def _tools(names: list[str], set_: list[str] | None) -> dict[str, Any]:
    """The methods with what ``--set`` gives them; a parameter must belong to one of them at least."""
    from holdfast.core.cards import parameters_of
    from holdfast.core.registry import method

    kinds = {name.replace("-", "_"): method(name) for name in names}
    owned = {name: {p.name for p in parameters_of(kind)} for name, kind in kinds.items()}
    found: dict[str, Any] = {}
    for name, kind in kinds.items():
        mine = [s for s in set_ or () if s.partition("=")[0] in owned[name] or not any(
            s.partition("=")[0] in other for other in owned.values())]  # fmt: skip
        found[name] = kind(**o.assignments(mine, kind))
    return found


def _columns(
    context: Context, tools: dict[str, Any], deployed: DeployedName | None, attack: str | None
) -> list[Column]:
    import torch

    from holdfast.attacks.attack import Attack
    from holdfast.core.errors import UnsupportedError
    from holdfast.core.registry import create
    from holdfast.studies.radii import certified, distances

    columns: list[Column] = []
    with progress() as tell:
        for name, tool in tools.items():
            try:
                kind = None if deployed is None else getattr(torch, str(deployed))
                columns.append(certified(context, name, tool, _told(tell), deployed=kind))
            except UnsupportedError as refusal:
                if len(tools) == 1:
                    raise
                note(f"{name} is left out: {refusal}")
        if not columns:
            raise UsageError("none of the methods serves this model and norm; see the notes above")
        if attack:
            columns.append(distances(context, attack, create(attack, Attack), _told(tell)))
    return columns


def _told(tell: Stages) -> Any:
    return lambda name, done, of: tell(name, done, of)


def _save(context: Context, column: Column, out: Path) -> dict[str, Any]:
    import numpy as np

    values: dict[str, Any] = {"id": np.arange(len(column.radius)), "y": context.data.y.numpy(), "radius": column.radius}
    if column.fit is not None:
        values["fit"] = column.fit
    np.savez(out / f"{column.name}.npz", **values)
    at_eps = column.at_least(float(context.plan.eps))
    threat = {"norm": str(context.plan.norm), "eps": context.plan.eps_text, "at_eps": at_eps}
    return {**column.as_dict(), **threat, "subject": context.subject.sha256}


def _page(context: Context, columns: list[Column], out: Path) -> None:
    import csv
    from io import StringIO

    from holdfast.core.files import write_whole
    from holdfast.report.radii import render
    from holdfast.studies.radii import by_column

    text, labels = StringIO(), [int(y) for y in context.data.y]
    rows = csv.writer(text, lineterminator="\n")
    own = {f"{c.name}: {name}": far for c in columns for name, far in by_column(context, c).items()}
    rows.writerow(["id", "label", *(c.name for c in columns), *own])
    rows.writerows(
        [i, y, *(float(c.radius[i]) for c in columns), *(float(far[i]) for far in own.values())]
        for i, y in enumerate(labels)
    )
    write_whole(out / "radii.csv", text.getvalue())
    about = f"{context.source}, {context.data.name}"
    page = render(
        columns, labels, norm=str(context.plan.norm), eps=float(context.plan.eps), about=about,
        command=shlex.join(["holdfast", *sys.argv[1:]]), own=_in_own_units(context, columns),
    )  # fmt: skip
    write_whole(out / "radii.html", page)


def _in_own_units(context: Context, columns: list[Column]) -> list[tuple[str, list[float]]]:
    """For each column of a table, the median change in its own units that each method allows; no radius counts as none."""
    import numpy as np

    from holdfast.studies.radii import by_column

    far = [by_column(context, c) for c in columns]
    return [(name, [float(np.median(np.nan_to_num(f[name], posinf=0.0))) for f in far]) for name in far[0]]


_SHARES = {"estimate": "estimated >= {}", "witness": "not broken at {}"}


def _show(answers: list[dict[str, Any]]) -> None:
    """A column for each kind of share: what is certified, what is only estimated, and what an attack leaves."""
    eps = answers[0]["eps"]
    kinds = [kind for kind in _SHARES if any(a["guarantee"] == kind for a in answers)]
    proofs = any(a["guarantee"] not in _SHARES for a in answers)
    fitted = any("fit_rejected" in a for a in answers)

    def shares(a: dict[str, Any]) -> list[str]:
        own, share = a["guarantee"], f"{a['at_eps']:.1%}"
        certified = "0.0%" if own in _SHARES else share
        return [*([certified] if proofs else []), *(share if own == kind else "" for kind in kinds)]

    table(
        ("method", "guarantee", *([f"certified at {eps}"] if proofs else []), *(_SHARES[k].format(eps) for k in kinds),
         "median radius", "largest", "none", "seconds", *(["fit rejected"] if fitted else [])),
        [
            (a["method"], "upper bound" if a["guarantee"] == "witness" else a["guarantee"], *shares(a),
             f"{a['median_radius']:.4g}", f"{a['largest_radius']:.4g}", a["none"], a["seconds"],
             *([f"{a['fit_rejected']:.0%} at 5 %" if "fit_rejected" in a else ""] if fitted else []))
            for a in answers
        ],
    )  # fmt: skip
    if proofs and "estimate" in kinds:
        note("an estimate certifies nothing: CLEVER can be far above the true distance")
    for words in dict.fromkeys(a["arithmetic"] for a in answers if a["arithmetic"]):
        note(f"proved: {words}")
    for against in dict.fromkeys(a["held_against"] for a in answers if a["held_against"]):
        note(f"the graph was held against {against}, on the box around all samples' sets")


def _show_own(context: Context, columns: list[Column]) -> None:
    """How far each column of a table may change, in its own units."""
    own = _in_own_units(context, columns)
    together = "all columns at once" if str(context.plan.norm) == "linf" else "one column alone"
    if own:
        table(
            (f"median change in own units, {together}", *(c.name for c in columns)),
            [(name, *(f"{far:.4g}" for far in values)) for name, values in own],
        )


def _refuse_crossings(columns: list[Column]) -> None:
    from holdfast.core.verdict import Clash
    from holdfast.studies.radii import crossings

    for low, up, i, meaning in crossings(columns):
        if meaning is Clash.CONTRADICTION:
            raise ContradictionError(
                f"sample {i} is proved by {low} beyond the distance at which {up} breaks it; report it"
            )
        note(f"sample {i}: {up} breaks it within the radius of {low}, and was not asked in the arithmetic of the proof")


def _ranges(context: Context, tools: dict[str, Any], out: Path, format_: o.FormatName) -> None:
    """Certificates over weights, patches, semantic changes."""
    import json

    import numpy as np

    from holdfast.core.files import write_whole

    part, answers, model = (
        context.problem(np.arange(len(context.data))),
        list[dict[str, Any]](),
        context.graph_of_all_inputs(),
    )
    with progress() as tell:
        for name, tool in tools.items():
            n = len(part)
            found = tool.certify(model.graph, part.x, part.y, lambda done, name=name, n=n: tell(name, done, n))
            known = [r for r in found if r is not None]
            high = [r.high for r in known]
            answers.append(
                {
                    "method": name, "unit": known[0].unit if known else "", "samples": n, "right": len(known),
                    "whole": sum(r.whole for r in known), "median_reach": float(np.median(high)) if high else 0.0,
                    "largest_reach": max(high, default=0.0), "arithmetic": known[0].arithmetic if known else "",
                    "subject": context.subject.sha256, "held_against": model.held_against,
                    "ranges": [None if r is None else {k: v for k, v in asdict(r).items() if k != "arithmetic"} for r in found],
                }
            )  # fmt: skip
            write_whole(out / f"{name}.json", json.dumps(answers[-1], indent=1))
    if format_ is o.FormatName.JSON:
        say_json(answers)
        return
    table(
        ("method", "unit", "whole range proved", "median reach", "largest", "wrong as they are"),
        [
            (a["method"], a["unit"], f"{a['whole']} of {a['samples']}", f"{a['median_reach']:.4g}",
             f"{a['largest_reach']:.4g}", a["samples"] - a["right"])
            for a in answers
        ],
    )  # fmt: skip
    note(f"the graph was held against {model.held_against}, on the whole range of inputs")
    note(f"ranges of each sample: {', '.join(str(out / (name + '.json')) for name in tools)}")
