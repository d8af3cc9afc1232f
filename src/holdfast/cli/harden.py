"""``holdfast harden``: adversarial training of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast.cli import options as o
from holdfast.cli.console import note, progress, say
from holdfast.cli.opening import device_named, given, look
from holdfast.core.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from holdfast.data.dataset import Dataset
    from holdfast.training.batch import BatchLoss, BatchScore
    from holdfast.training.hooks import Hooks
    from holdfast.training.loop import Fit
    from holdfast.training.settings import TrainingSettings

__all__ = ["harden", "train"]


def harden(
    arch: Annotated[str, typer.Option(help="Builds the architecture.", metavar="MODULE:FUNCTION")],
    data: Annotated[str, typer.Option(help="Training data: npz, csv, folder, or digits:train.", metavar="FILE")],
    out: Annotated[Path, typer.Option(help="Where the hardened weights go.", metavar="FILE.safetensors")],
    model: Annotated[
        str | None,
        typer.Option(help="Weights to start from; without, the architecture's own start.", metavar="FILE"),
    ] = None,
    trust: o.Trust = None,
    anyway: o.Anyway = False,
    normalise: o.Normalise = None,
    samples: o.Samples = None,
    norm: o.NormName = None,
    eps: o.Eps = None,
    method: Annotated[str, typer.Option(help="A defence that trains; see: holdfast methods.")] = "pgd_training",
    set_: o.Set = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data.", show_default="30")] = None,
    batch: Annotated[int | None, typer.Option(help="Samples in a batch.", show_default="128")] = None,
    rate: Annotated[float | None, typer.Option(help="Largest learning rate.", show_default="0.005")] = None,
    optimiser: Annotated[str | None, typer.Option(help="adam or sgd.", show_default="adam")] = None,
    schedule: Annotated[
        str | None, typer.Option(help="one-cycle, cosine or constant.", show_default="one-cycle")
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Weight decay.", show_default="0")] = None,
    validation: Annotated[
        float | None, typer.Option(help="Share held out to choose the best epoch.", show_default="0.1")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted training.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Write over OUT if it is there.", show_default=False)] = False,
    seed: o.Seed = None,
    device: o.Device = None,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Train a model against an adversary and keep the epoch that was most robust on held-out data.

    A checkpoint stands beside OUT while it runs; after an interruption, repeat the command with --resume.
    """
    from holdfast.core.registry import method as named
    from holdfast.core.threat import Norm, ThreatModel, parse_eps
    from holdfast.data.load import load_data
    from holdfast.defences.training_defence import TrainingDefence
    from holdfast.models.arch import build_arch
    from holdfast.models.load import load_model
    from holdfast.models.wrap import Normalisation, Normalised
    from holdfast.training.settings import TrainingSettings

    if out.exists() and not force and not (resume and _checkpoint(out).exists()):
        raise UsageError(f"{out} is there already; --force writes over it, or choose another --out")
    defence = named(method)
    if not issubclass(defence, TrainingDefence):
        raise UsageError(f"{method} is no defence that trains; 'holdfast methods {method}' says what it is")
    make: Any = defence
    tool: TrainingDefence = make(norm=norm or Norm.LINF, eps=parse_eps(eps or "0.1"), **o.assignments(set_, defence))
    settings = TrainingSettings(
        **given(
            epochs=epochs, batch=batch, rate=rate, optimiser=optimiser, schedule=schedule, weight_decay=weight_decay,
            validation=validation, seed=seed,
        )
    )  # fmt: skip
    declared = None if normalise is None else Normalisation.parse(normalise)
    found = load_data(data)
    found = found if samples is None else found.head(samples)
    if model is not None:
        module = load_model(model, arch=arch, trust=bool(trust), normalise=declared).module
    else:
        module = _fresh(lambda: build_arch(arch, {}, trust=bool(trust))[0], settings.seed)
        module = module if declared is None else Normalised(module, declared)
    threat = ThreatModel(norm or Norm.LINF, parse_eps(eps or "0.1"))
    look(module, found, threat, anyway=anyway, trained=model is not None)
    done = train(
        module,
        found,
        tool.loss,
        tool.score,
        settings,
        out,
        method,
        hooks=[tool.hooks()],
        resume=resume,
        device=device_named(device) or "cpu",
    )
    best = done.best
    chosen = "" if best.score is None else f", {best.score:.1%} robust on {len(done.held_out)} held-out samples"
    say(f"hardened: epoch {best.number} of {len(done.history)}{chosen}; weights: {out}")


def train(
    module: nn.Module, data: Dataset, loss: BatchLoss, score: BatchScore | None, settings: TrainingSettings, out: Path,
    title: str, *, hooks: Sequence[Hooks] = (), resume: bool = False, device: str = "cpu",
) -> Fit:  # fmt: skip
    """Trains with progress and a checkpoint beside ``out``; in the end the weights stand there, and it is gone."""
    from holdfast.models.wrap import Normalised
    from holdfast.training.checkpoint import save_weights
    from holdfast.training.loop import fit

    checkpoint = _checkpoint(out)
    if checkpoint.exists() and not resume:
        note(f"starting anew; --resume would have continued from {checkpoint}")
    with progress("the same command with --resume goes on") as tell:
        done = fit(
            module, data, loss, score=score, settings=settings, hooks=hooks, checkpoint=checkpoint, resume=resume, device=device,
            progress=lambda batches, total: tell(title, batches, total),
        )  # fmt: skip
    save_weights(module.module if isinstance(module, Normalised) else module, out)
    checkpoint.unlink()
    return done


def _checkpoint(out: Path) -> Path:
    return out.with_name(f"{out.name}.checkpoint")


def _fresh(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()
