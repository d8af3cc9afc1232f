"""``holdfast study manifold``: on-manifold error against test error across models."""

from __future__ import annotations

import json
import shlex
import sys
from typing import Annotated, Any

import typer

from holdfast.cli import options as o
from holdfast.cli.console import note, progress, say, say_json, table
from holdfast.cli.spread import spread
from holdfast.core.errors import UsageError

__all__ = ["manifold"]


@spread
def manifold(
    out: o.Out,
    *,
    data: o.Data = None,
    train_data: Annotated[
        str | None, typer.Option(help="What the decoder, and models of sizes, learn from.", metavar="FILE")
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            help="The models, with commas or repeated; NAME=FILE names one.",
            metavar="FILE,...",
            show_default="trained on --sizes",
        ),
    ] = None,
    archs: Annotated[
        list[str] | None,
        typer.Option(help="Builds their architectures: one for all, or one for each.", metavar="MODULE:FUNCTION,..."),
    ] = None,
    sizes: Annotated[
        str, typer.Option(help="Without --models: training samples of each model.", metavar="N,...")
    ] = "50,100,200,400,800",
    epochs: Annotated[
        int,
        typer.Option(help="Without --models: passes over the largest; all see as many batches.", metavar="N", min=1),
    ] = 30,
    samples: o.Samples = None,
    threat: o.NormOptions,
    set_: o.Set = None,
    trust: o.Trust = None,
    anyway: o.Anyway = False,
    run: o.RunOptions,
    talk: o.TalkOptions,
) -> None:
    """Ask whether adversarial examples are errors of generalisation: on-manifold error against test error.

    --set is about on_manifold, the attack in the latent space of a learned decoder.
    Example: holdfast study manifold --data digits:test --train-data digits:train --out runs/manifold
    """
    from holdfast.attacks.evasion.semantic.on_manifold import OnManifold
    from holdfast.cli.opening import look_at_models, open_models
    from holdfast.core.files import write_whole
    from holdfast.data.load import load_data
    from holdfast.report.studies import page
    from holdfast.session.opening import open_session
    from holdfast.studies.manifold import Manifold, models_of_sizes

    for flag, value in (("data", data), ("train-data", train_data)):
        if value is None:
            raise UsageError(f"what {flag.replace('-', ' ')}? give --{flag}")
    kind: type[Any] = OnManifold
    method: OnManifold = kind(**o.assignments(set_, kind))
    place = run.place()
    train = load_data(str(train_data))
    with progress() as tell:
        if models:
            compared = open_models(models, archs, trust=trust, device=place)
        else:
            compared = models_of_sizes(
                train, _numbers(sizes), epochs=epochs, seed=run.seed or 0, device=place or "cpu", progress=tell
            )
        session = open_session(
            next(iter(compared.values())), str(data), o.threat(threat.norm, threat.eps), samples=samples, seed=run.seed or 0,
            device=place or "cpu",
        )  # fmt: skip
        look_at_models(compared, session.data, session.threat, anyway=anyway)
        study = Manifold(train_data=train, method=method, models=compared).run(session, progress=tell)
    answer = study.to_dict()
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "manifold.json", json.dumps(answer, indent=1))
    write_whole(out / "manifold.html", page(study, session.data.name, shlex.join(["holdfast", *sys.argv[1:]])))
    if talk.json:
        say_json(answer)
    else:
        say(f"{study.samples} samples, latent {study.size}, input {study.eps}, seed {study.seed}; "
            f"the pictures keep {study.variance_explained:.1%} of the variance")  # fmt: skip
        table(
            ("model", "test error", "on the manifold", "regular", "off: on-manifold", "off: regular"),
            [
                (r.name, f"{r.test_error:.1%}", f"{r.on_manifold_error:.1%}", f"{r.regular_error:.1%}",
                 _size(r.off_on), _size(r.off_regular))
                for r in study.rows
            ],
        )  # fmt: skip
        say(f"rank correlation with the test error: on the manifold {_size(study.rank_on)}, "
            f"regular {_size(study.rank_regular)}")  # fmt: skip
    note(f"saved {out / 'manifold.json'} and {out / 'manifold.html'}")


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"'{text}' are no training sizes; write 50,100,200") from None


def _size(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"
