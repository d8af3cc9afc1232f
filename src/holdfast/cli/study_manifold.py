"""``holdfast study manifold``: on-manifold error against test error across models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast.cli import options as o
from holdfast.cli import single_options as one
from holdfast.cli.console import Stages, progress, say, say_json, table
from holdfast.cli.saving import save_study, typed
from holdfast.cli.spread import spread
from holdfast.core.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from holdfast.data.dataset import Dataset
    from holdfast.studies.manifold import ManifoldResult

__all__ = ["manifold"]


@dataclass(frozen=True, kw_only=True)
class ComparedOptions:
    """The models that are compared: files, or trained on more and more samples."""

    models: Annotated[
        list[str] | None,
        typer.Option(
            help="The models, with commas or repeated; NAME=FILE names one.",
            metavar="FILE,...",
            show_default="trained on --sizes",
        ),
    ] = None
    archs: Annotated[
        list[str] | None,
        typer.Option(help="Builds their architectures: one for all, or one for each.", metavar="MODULE:FUNCTION,..."),
    ] = None
    sizes: Annotated[str, typer.Option(help="Without --models: training samples of each model.", metavar="N,...")] = (
        "50,100,200,400,800"
    )
    epochs: Annotated[
        int,
        typer.Option(help="Without --models: passes over the largest; all see as many batches.", metavar="N", min=1),
    ] = 30

    def open(
        self, train: Dataset, *, trust: bool | None, seed: int, device: str, progress: Stages
    ) -> Mapping[str, nn.Module]:
        """The models by name."""
        from holdfast.cli.opening import open_models
        from holdfast.studies.manifold import models_of_sizes

        if self.models:
            return open_models(self.models, self.archs, trust=trust, device=device)
        sizes = _numbers(self.sizes)
        return models_of_sizes(train, sizes, epochs=self.epochs, seed=seed, device=device, progress=progress)


@spread
def manifold(
    out: one.Out,
    *,
    data: one.Data = None,
    train_data: Annotated[
        str | None, typer.Option(help="What the decoder, and models of sizes, learn from.", metavar="FILE")
    ] = None,
    compared: ComparedOptions,
    samples: one.Samples = None,
    threat: o.NormOptions,
    set_: one.Set = None,
    trust: one.Trust = None,
    anyway: one.Anyway = False,
    run: o.RunOptions,
    talk: o.TalkOptions,
) -> None:
    """Ask whether adversarial examples are errors of generalisation: on-manifold error against test error.

    --set is about on_manifold, the attack in the latent space of a learned decoder.
    Example: holdfast study manifold --data digits:test --train-data digits:train --out runs/manifold
    """
    from holdfast.attacks.evasion.semantic.on_manifold import OnManifold
    from holdfast.cli.opening import look_at_models
    from holdfast.data.load import load_data
    from holdfast.report.studies import page
    from holdfast.session.opening import open_session
    from holdfast.studies.manifold import Manifold

    for flag, value in (("data", data), ("train-data", train_data)):
        if value is None:
            raise UsageError(f"what {flag.replace('-', ' ')}? give --{flag}")
    kind: type[Any] = OnManifold
    method: OnManifold = kind(**o.assignments(set_, kind))
    place, seed, train = run.place() or "cpu", run.seed or 0, load_data(str(train_data))
    with progress() as tell:
        models = compared.open(train, trust=trust, seed=seed, device=place, progress=tell)
        session = open_session(
            next(iter(models.values())), str(data), o.threat(threat.norm, threat.eps), samples=samples, seed=seed,
            device=place,
        )  # fmt: skip
        look_at_models(models, session.data, session.threat, anyway=anyway)
        study = Manifold(train_data=train, method=method, models=models).run(session, progress=tell)
    answer = study.to_dict()
    if talk.json:
        say_json(answer)
    else:
        _show(study)
    save_study(out, "manifold", answer, page(study, session.data.name, typed()))


def _show(study: ManifoldResult) -> None:
    say(
        f"{study.samples} samples, latent {study.size}, input {study.eps}, seed {study.seed}; "
        f"the pictures keep {study.variance_explained:.1%} of the variance"
    )
    table(
        ("model", "test error", "on the manifold", "regular", "off: on-manifold", "off: regular"),
        [
            (
                r.name,
                f"{r.test_error:.1%}",
                f"{r.on_manifold_error:.1%}",
                f"{r.regular_error:.1%}",
                _size(r.off_on),
                _size(r.off_regular),
            )
            for r in study.rows
        ],
    )
    say(
        f"rank correlation with the test error: on the manifold {_size(study.rank_on)}, "
        f"regular {_size(study.rank_regular)}"
    )


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"'{text}' are no training sizes; write 50,100,200") from None


def _size(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"
