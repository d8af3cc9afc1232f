"""``holdfast harden``: adversarial training of a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from holdfast.cli import options as o
from holdfast.cli import single_options as one
from holdfast.cli.console import Spoken, note, say
from holdfast.cli.spread import Without, spread

if TYPE_CHECKING:
    from torch import nn

__all__ = ["harden"]


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How long and how fast."""

    epochs: Annotated[int | None, typer.Option(help="Passes over the data.", show_default="30")] = None
    batch: Annotated[int | None, typer.Option(help="Samples in a batch.", show_default="128")] = None
    rate: Annotated[float | None, typer.Option(help="Largest learning rate.", show_default="0.005")] = None
    optimiser: Annotated[str | None, typer.Option(help="adam or sgd.", show_default="adam")] = None
    schedule: Annotated[str | None, typer.Option(help="one-cycle, cosine or constant.", show_default="one-cycle")] = (
        None
    )
    weight_decay: Annotated[float | None, typer.Option(help="Weight decay.", show_default="0")] = None
    validation: Annotated[
        float | None, typer.Option(help="Share held out to choose the best epoch.", show_default="0.1")
    ] = None


@spread
def harden(
    arch: Annotated[str, typer.Option(help="Builds the architecture.", metavar="MODULE:FUNCTION")],
    data: Annotated[str, typer.Option(help="Training data: npz, csv, folder, or digits:train.", metavar="FILE")],
    out: Annotated[Path, typer.Option(help="Where the hardened weights go.", metavar="FILE.safetensors")],
    *,
    model: Annotated[
        str | None,
        typer.Option(help="Weights to start from; without, the architecture's own start.", metavar="FILE"),
    ] = None,
    trust: one.Trust = None,
    anyway: one.Anyway = False,
    normalise: one.Normalise = None,
    samples: one.Samples = None,
    threat: o.NormOptions,
    method: Annotated[str, typer.Option(help="A defence that trains; see: holdfast methods.")] = "pgd_training",
    set_: one.Set = None,
    training: TrainingOptions,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted training.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Write over OUT if it is there.", show_default=False)] = False,
    run: o.RunOptions,
    talk: Annotated[o.TalkOptions, Without("format_")],
) -> None:
    """Train a model against an adversary and keep the epoch that was most robust on held-out data.

    A checkpoint stands beside OUT while it runs; after an interruption, repeat the command with --resume.
    """
    from dataclasses import asdict

    from holdfast.api.harden import check_weights, defence_of, run_defence
    from holdfast.api.keywords import kind_of
    from holdfast.data.load import load_data
    from holdfast.session.look import look_at
    from holdfast.training.settings import TrainingSettings

    check_weights(out, resume=resume, force=force)
    against = o.threat(threat.norm, threat.eps)
    tool, _ = defence_of(method, against, None, o.assignments(set_, kind_of(method)))
    settings = TrainingSettings(**o.given(**asdict(training), seed=run.seed))
    found = load_data(data)
    found = found if samples is None else found.head(samples)
    module = _module(model, arch, normalise, settings.seed, trust=bool(trust))
    for line in look_at(module, found, against, anyway=anyway, trained=model is not None):
        note(line)
    done = run_defence(module, found, tool, settings, out, Spoken(), resume=resume, device=run.place() or "cpu")
    best = done.best
    chosen = "" if best.robust is None else f", {best.robust:.1%} robust on {done.held_out} held-out samples"
    say(f"hardened: epoch {best.epoch} of {len(done.history)}{chosen}; weights: {out}")


def _module(model: str | None, arch: str, normalise: str | None, seed: int, *, trust: bool) -> nn.Module:
    """The weights to start from in their architecture, or the architecture's own start."""
    from holdfast.models.arch import build_arch
    from holdfast.models.load import load_model
    from holdfast.models.wrap import Normalised

    declared = o.normalisation(normalise)
    if model is not None:
        return load_model(model, arch=arch, trust=trust, normalise=declared).module
    module = _fresh(lambda: build_arch(arch, {}, trust=trust)[0], seed)
    return module if declared is None else Normalised(module, declared)


def _fresh(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    from holdfast.core.draws import seeded

    with seeded(seed, gpus=()):
        return build()
