"""``holdfast attack``: one attack on a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from holdfast.api.folders import begin_results, check_results
from holdfast.cli import options as o
from holdfast.cli import single_options as one
from holdfast.cli.console import Spoken, note, say_json, show
from holdfast.cli.opening import open_models, opened
from holdfast.cli.saving import typed
from holdfast.cli.spread import spread

if TYPE_CHECKING:
    from torch import nn

    from holdfast.api.attack import AttackOptions
    from holdfast.api.attack_result import AttackResult
    from holdfast.api.results import Saved

__all__ = ["attack"]

_SHARED = "Attacks with one artefact for many samples"


@dataclass(frozen=True, kw_only=True)
class GroupOptions:
    """Many samples or many models at once."""

    train_data: Annotated[
        str | None,
        typer.Option(
            help="Samples that a shared artefact, or a decoder, is fitted on.", metavar="FILE", rich_help_panel=_SHARED
        ),
    ] = None
    also: Annotated[
        list[str] | None,
        typer.Option(
            help="More models that the artefact, or the input of min_max, must fool.",
            metavar="FILE,...",
            rich_help_panel=_SHARED,
        ),
    ] = None
    also_arch: Annotated[
        list[str] | None,
        typer.Option(help="Builds their architectures.", metavar="MODULE:FUNCTION,...", rich_help_panel=_SHARED),
    ] = None
    views: Annotated[
        str | None,
        typer.Option(
            help="Attack the model behind random changes of the input (EOT): rotation=20,translation=0.1,scale=0.1,"
            "brightness=0.1,contrast=0.2,noise=0.05. With min_max: behind several fixed ones, see --draws.",
            metavar="RANGES",
            rich_help_panel="Threat",
        ),
    ] = None
    artefact: Annotated[
        Path | None,
        typer.Option(help="Judge this artefact; fit none.", metavar="FILE", rich_help_panel=_SHARED),
    ] = None
    draws: Annotated[
        int | None,
        typer.Option(
            help="Fresh draws of each held-out sample; with --views, the views of min_max.",
            metavar="N",
            min=1,
            show_default="the method's own",
            rich_help_panel=_SHARED,
        ),
    ] = None

    def options(
        self, also: Mapping[str, nn.Module], *, bounded: bool, detector: bool, checkpoint: Path
    ) -> AttackOptions:
        """As the library takes it, with the models opened."""
        from holdfast.api.attack import AttackOptions

        return AttackOptions(
            bounded=bounded,
            detector=detector,
            checkpoint=checkpoint,
            also=also,
            train_data=self.train_data,
            views=self.views,
            draws=self.draws,
            artefact=self.artefact,
        )


@spread
def attack(
    name: Annotated[str, typer.Argument(help="Name of an attack; see: holdfast methods.", metavar="NAME")],
    out: one.Out,
    model: o.ModelOptions,
    *,
    norm: one.NormName = None,
    eps: Annotated[
        str | None,
        typer.Option(
            help="Bound of the distortion: 8/255 or 0.1. Minimal-distortion attacks may go without.",
            metavar="SIZE",
            callback=one.exact_size,
        ),
    ] = None,
    goal: one.GoalName = None,
    set_: one.Set = None,
    detector: Annotated[
        bool,
        typer.Option(
            "--detector",
            help="The model's last column is a detector's score, flagged above 0: break the model unflagged; PGD and its "
            "kin with --set loss=joint.",
            rich_help_panel="Threat",
        ),
    ] = False,
    attacker: o.AttackerOptions,
    asked: o.AskedOptions,
    group: GroupOptions,
    run: o.RunOptions,
    talk: o.TalkOptions,
) -> None:
    """Run one attack; the referee judges what it found.

    Attacks with one artefact for many samples (universal perturbations, patches, substitutes) are fitted on --train-data,
    or on the first half of the data, and judged on the rest. Semantic attacks search the parameters of a change of the
    image; their ranges are parameters of the method: --set rotation=15.
    """
    from holdfast.api.attack import check_method, run_attack
    from holdfast.api.keywords import kind_of
    from holdfast.attacks.shared import SharedAttack
    from holdfast.core.registry import name_of

    kind = kind_of(name)
    canonical = name_of(kind)
    check_method(kind, bounded=eps is not None, named=eps is not None or norm is not None)
    tool = kind(**o.assignments(set_, kind))
    check_results(out)
    session = opened(
        model, o.threat(norm, eps, goal, asked), run, asked=asked, top_k=attacker.top_k, queries=attacker.queries,
        surrogates=attacker.surrogates(model.trust), trained=not detector,
    )  # fmt: skip
    also = open_models(group.also, group.also_arch, trust=model.trust, device=run.device)
    options = group.options(also, bounded=eps is not None, detector=detector, checkpoint=out / "fit.safetensors")
    if issubclass(kind, SharedAttack):  # a fit keeps its checkpoint there
        _anew(out, begin_results(out, canonical))
    result = run_attack(session, tool, options, Spoken())
    saved = result.save(out, command=typed())
    _anew(out, saved.anew)
    if talk.json:
        say_json(result.to_dict())
    else:
        show(result.blocks())
    _tell(result, saved, out)


def _anew(out: Path, anew: bool) -> None:
    if anew:
        note(f"{out} held an earlier attack's results; they were made anew")


def _tell(result: AttackResult, saved: Saved, out: Path) -> None:
    """Where the results are."""
    from holdfast.api.attack_semantic import SemanticAttackResult
    from holdfast.api.attack_shared import SharedAttackResult
    from holdfast.audits.export import ROWS

    what = " (clean, adversarial, difference)"
    if isinstance(result, SemanticAttackResult):
        note(f"saved {out / 'adversarial.npz'} (images and parameters) and {out / 'evaluation.json'}")
        new = "new images; look whether they are what their label says"
        what = " (clean, changed, difference)" if result.found.refers else f" ({new})"
    elif isinstance(result, SharedAttackResult):
        note(f"saved {' and '.join(map(str, saved.files))}")
        what = ""
    else:
        note(f"saved {out / 'adversarial.npz'}")
        if out / ROWS in saved.files:
            note(f"saved the broken rows, by column in own units, in {out / ROWS}")
    if saved.pictures:
        note(f"saved {saved.pictures} pictures{what} in {out / 'pictures'}")
