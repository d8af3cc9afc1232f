"""``holdfast demo``: the whole circle on the embedded digits, in about a minute."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from holdfast.cli import single_options as one
from holdfast.cli.console import Spoken, note, say

if TYPE_CHECKING:
    from torch import Tensor, nn

    from holdfast.audits.document import Document
    from holdfast.training.batch import Batch

__all__ = ["demo"]

_ARCH = "holdfast.models.zoo:digits_cnn"
_EPS = "0.1"


def demo(
    out: Annotated[Path, typer.Option(help="Folder for models, runs and the comparison.", metavar="FOLDER")] = Path(
        "runs/demo"
    ),
    samples: Annotated[int, typer.Option(help="Test digits to audit, of 500.", min=1, max=500)] = 100,
    seed: Annotated[int, typer.Option(help="Keys all randomness.")] = 0,
    quiet: one.Quiet = False,
    verbose: one.Verbose = False,
) -> None:
    """Train a small network on the embedded digits, audit it, harden it, audit it again, and compare."""
    from fractions import Fraction

    import torch

    from holdfast.api.harden import train
    from holdfast.cli.report import write_comparison
    from holdfast.core.draws import seeded
    from holdfast.core.threat import Norm
    from holdfast.data.load import load_data
    from holdfast.defences.adversarial_training.pgd_training import PGDTraining
    from holdfast.models.zoo import digits_cnn
    from holdfast.training.settings import TrainingSettings

    torch.set_num_threads(1)  # the network is so small that threads would only wait for each other
    for name in ("before", "after"):
        if (out / name / "plan.yaml").exists():
            shutil.rmtree(out / name)
    digits = load_data("digits:train")
    with seeded(seed, gpus=()):
        model = digits_cnn()
    note("1 of 4: train a network on 1,297 digits")
    train(
        model, digits, _cross_entropy, None, TrainingSettings(epochs=15, seed=seed),
        out / "before.safetensors", "training", Spoken(),
    )  # fmt: skip
    note(f"2 of 4: audit it at linf {_EPS} on {samples} test digits")
    before = _audited(out, "before", samples, seed)
    note("3 of 4: harden it by adversarial training")
    defence = PGDTraining(norm=Norm.LINF, eps=Fraction(_EPS))
    train(
        model,
        digits,
        defence.loss,
        defence.score,
        TrainingSettings(epochs=30, rate=0.01, seed=seed),
        out / "after.safetensors",
        "hardening",
        Spoken(),
    )
    note("4 of 4: audit it again, and compare")
    after = _audited(out, "after", samples, seed)
    write_comparison([out / "before", out / "after"], out / "compare.html")
    for name, document in (("before", before), ("after", after)):
        say(f"{name:<8}{document.headline.statement}")
    say(f"open {out / 'compare.html'}, {out / 'before' / 'report.html'} and {out / 'after' / 'report.html'}")
    say(f"check every figure anew: holdfast recheck {out / 'after'}")


def _cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    from torch.nn.functional import cross_entropy

    return cross_entropy(model(batch.x), batch.y)


def _audited(out: Path, name: str, samples: int, seed: int) -> Document:
    from holdfast.api.audit import run_plan
    from holdfast.audits.plan import Plan

    plan = Plan.of(
        model=str(out / f"{name}.safetensors"),
        arch=_ARCH,
        data="digits:test",
        samples=samples,
        norm="linf",
        eps=_EPS,
        seed=seed,
    )
    command = (
        f"holdfast audit --model {plan.model} --arch {_ARCH} --data digits:test --samples {samples} --norm linf "
        f"--eps {_EPS} --seed {seed} --out {out / name}"
    )
    report = run_plan(plan, out / name, Spoken(), command=command)
    report.write(Spoken())
    return report.document
