"""``holdfast certify``: certified radii by one method or several."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast.cli import options as o
from holdfast.cli.console import Stages, note, progress, say_json, table
from holdfast.cli.opening import opened
from holdfast.core.errors import UsageError

if TYPE_CHECKING:
    from holdfast.audit.context import Context
    from holdfast.core.verdict import Certificate

__all__ = ["certify"]


def certify(
    names: Annotated[
        list[str], typer.Argument(help="Names of certifiers; see: holdfast methods.", metavar="METHOD...")
    ],
    out: o.Out,
    model: o.Model = None,
    arch: o.Arch = None,
    trust: o.Trust = None,
    normalise: o.Normalise = None,
    data: o.Data = None,
    samples: o.Samples = None,
    norm: o.NormName = None,
    eps: o.Eps = None,
    radius_max: o.RadiusMax = None,
    set_: o.Set = None,
    seed: o.Seed = None,
    device: o.Device = None,
    format_: o.Format = o.FormatName.TEXT,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Find the largest radius that each method certifies, sample by sample."""
    import numpy as np

    from holdfast.core.registry import method

    kinds = [method(name) for name in names]
    context = opened(
        out, model=model, arch=arch, trust=trust, normalise=o.normalisation(normalise), data=data, samples=samples,
        norm=norm, eps=eps, radius_max=radius_max, seed=seed, device=device,
    )  # fmt: skip
    size = float(context.plan.exact_eps)
    answers: list[dict[str, Any]] = []
    out.mkdir(parents=True, exist_ok=True)
    with progress() as tell:
        for name, kind in zip(names, kinds, strict=True):
            values, start = o.assignments(set_, kind), perf_counter()
            found = _certificates(context, kind, name, values, tell)
            radius = np.array([np.nan if c is None else c.radius for c in found])
            np.savez(out / f"{name}.npz", id=np.arange(len(radius)), y=context.data.y.numpy(), radius=radius)
            first = next((c for c in found if c is not None), None)
            answers.append(
                {
                    "method": name, "norm": str(context.plan.norm), "eps": context.plan.eps, "samples": len(found),
                    "guarantee": str(kind.card.guarantee), "alpha": None if first is None else first.alpha,
                    "at_eps": float((np.nan_to_num(radius, nan=-1.0) >= size).mean()),
                    "median_radius": float(np.median(np.nan_to_num(radius))),
                    "largest_radius": float(np.nan_to_num(radius).max()),
                    "none": int(np.isnan(radius).sum()), "seconds": round(perf_counter() - start, 3),
                    "arithmetic": "" if first is None else first.arithmetic, "subject": context.subject.sha256,
                }
            )  # fmt: skip
    if format_ is o.FormatName.JSON:
        say_json(answers)
    else:
        share = (
            "estimated >= eps"
            if all(a["guarantee"] == "estimate" for a in answers)
            else f"certified at {answers[0]['eps']}"
        )
        table(
            ("method", "guarantee", share, "median radius", "largest", "no certificate", "seconds"),
            [
                (a["method"], a["guarantee"], f"{a['at_eps']:.1%}", f"{a['median_radius']:.4g}",
                 f"{a['largest_radius']:.4g}", a["none"], a["seconds"])
                for a in answers
            ],
        )  # fmt: skip
    note(f"radii of each sample: {', '.join(str(out / (name + '.npz')) for name in names)}")


def _certificates(
    context: Context, kind: Any, name: str, values: dict[str, Any], tell: Stages
) -> list[Certificate | None]:
    import torch

    from holdfast.certify.graph_certifier import GraphCertifier
    from holdfast.certify.oracle_certifier import ModuleAsk, OracleCertifier

    plan, n = context.plan, len(context.data)
    limit = float(plan.largest_radius)
    if issubclass(kind, GraphCertifier):
        tool, found = kind(**values), []
        for ids in torch.arange(n).split(tool.batch):
            part = context.problem(ids.numpy())
            found += tool.certificates(context.graph, part.x, part.y, part.set, limit)
            tell(name, len(found), n)
        return found
    if issubclass(kind, OracleCertifier):
        if not isinstance(context.model, torch.nn.Module):
            raise UsageError(f"{name} needs the model itself, not a prediction API")
        part = context.problem(torch.arange(n).numpy())
        return kind(**values).certify(
            ModuleAsk(context.model.eval()), part.x, part.y, part.ids.tolist(), plan.seed, norm=plan.norm,
            radius_max=limit, progress=lambda done: tell(name, done, n),
        )  # fmt: skip
    raise UsageError(f"{name} is no certifier; 'holdfast methods {name}' says what it is")
