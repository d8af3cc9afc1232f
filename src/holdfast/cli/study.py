"""``holdfast study``: one question about one model, answered with a table and a page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast.cli import options as o
from holdfast.cli import single_options as one
from holdfast.cli.console import note, progress, say, say_json, table
from holdfast.cli.opening import opened
from holdfast.cli.saving import save_study, typed
from holdfast.cli.spread import spread
from holdfast.core.errors import UsageError
from holdfast.core.words import counted

if TYPE_CHECKING:
    from holdfast.attacks.attack import Attack
    from holdfast.studies.posthoc import PosthocResult
    from holdfast.studies.unseen import UnseenResult

__all__ = ["posthoc", "study", "unseen"]

study = typer.Typer(help="Study one question about a model.", no_args_is_help=True)

_ATTACK = "cosine_margin"  # the first attack of the suite `fast`


@dataclass(frozen=True, kw_only=True)
class PosthocOptions:
    """What is done to the model, and what attacks it."""

    held_out: Annotated[
        str | None,
        typer.Option(
            help="Other samples, for the temperature and the ranges of int8.",
            metavar="FILE",
            show_default="the second half of the data",
        ),
    ] = None
    adjustments: Annotated[
        list[str] | None,
        typer.Option(
            "--adjust",
            help="prune:SHARE, int8-weights, int8, dynamic-int8, fp16, bf16 or temperature, with commas or repeated.",
            metavar="NAME,...",
            show_default="all, at shares of 0.5 and 0.8",
        ),
    ] = None
    attack: Annotated[
        list[str] | None,
        typer.Option(
            help="Attacks, with commas or repeated; each runs on what is left.",
            metavar="NAME,...",
            show_default=f"{_ATTACK}, the first of the suite fast; sigma_zero for l0",
        ),
    ] = None


@study.command()
@spread
def posthoc(
    out: one.Out,
    model: o.ModelOptions,
    how: PosthocOptions,
    *,
    threat: o.NormOptions,
    set_: one.Set = None,
    run: o.RunOptions,
    talk: o.TalkOptions,
) -> None:
    """Compare robustness before and after pruning, quantisation and calibration, and transfer between the two.

    Example: holdfast study posthoc --model m.safetensors --arch net.py:network --data test.npz --eps 8/255 --out runs/posthoc
    """
    from holdfast.report.studies import page
    from holdfast.studies.posthoc import ADJUSTMENTS, Posthoc

    session = opened(model, o.threat(threat.norm, threat.eps), run)
    names = o.several(how.attack) or ()
    if set_ and len(names) != 1:
        raise UsageError("--set needs one method; name it with --attack")
    half = len(session.ids) // 2
    if how.held_out is None and half:
        note(f"no --held-out: judged on the first {half} samples, fitted on the other {len(session.ids) - half}")
    asked = Posthoc(
        adjustments=o.several(how.adjustments) or ADJUSTMENTS,
        attacks=tuple(_attack(name, set_) for name in names),
        held_out=how.held_out,
    )
    with progress() as tell:
        result = asked.run(session, progress=tell)
    answer = result.to_dict()
    about = f"{session.source}, {session.data.name}"
    save_study(out, "posthoc", {"subject": session.subject.sha256, **answer}, page(result, about, typed()))
    if talk.json:
        say_json(answer)
    else:
        _show_posthoc(result)


def _show_posthoc(result: PosthocResult) -> None:
    say(
        f"{result.norm} <= {result.eps}, {counted(result.samples, 'sample')}, {result.fitted_on:,} held out, "
        f"{', '.join(result.attacks)}, seed {result.seed}"
    )
    table(
        ("model", "clean", "calibration error", "robust", "from original", "to original", "robust to both"),
        [
            (
                r.name,
                f"{r.accuracy:.1%}",
                f"{r.calibration:.1%}",
                _share(r.robust),
                _share(r.from_original),
                _share(r.to_original),
                f"{r.robust_to_both:.1%}",
            )
            for r in result.rows
        ],
    )
    for name, why in result.refused.items():
        note(f"{name}: {why}")


@study.command()
@spread
def unseen(
    out: one.Out,
    model: o.ModelOptions,
    *,
    known: Annotated[
        str, typer.Option(help="The attack that the model was hardened against; --set is about it.", metavar="NAME")
    ] = "pgd",
    threat: o.NormOptions,
    queries: Annotated[
        int, typer.Option(help="Most queries for one sample of a black-box attack.", metavar="N", min=1)
    ] = 1000,
    surrogate: one.Surrogate = None,
    surrogate_arch: one.SurrogateArch = None,
    set_: one.Set = None,
    run: o.RunOptions,
    talk: o.TalkOptions,
) -> None:
    """Compare the attack that a model was hardened against with attacks it has not seen, and with what is proved.

    Example: holdfast study unseen --model hard.safetensors --arch net.py:network --data test.npz --eps 0.1 --known pgd
    --out runs/unseen
    """
    from holdfast.core.errors import ContradictionError
    from holdfast.report.studies import page
    from holdfast.studies.unseen import Unseen

    session = opened(
        model, o.threat(threat.norm, threat.eps), run, surrogates=o.surrogates(surrogate, surrogate_arch, model.trust)
    )
    with progress() as tell:
        result = Unseen(known=_attack(known, set_), queries=queries).run(session, progress=tell)
    answer = result.to_dict()
    about = f"{session.source}, {session.data.name}"
    save_study(out, "unseen", {"subject": session.subject.sha256, **answer}, page(result, about, typed()))
    if result.contradicts_itself:
        raise ContradictionError(f"samples are proved and broken at once; see {out / 'unseen.json'} and report it")
    if talk.json:
        say_json(answer)
    else:
        _show_unseen(result)


def _show_unseen(result: UnseenResult) -> None:
    table(
        ("attack", "kind", "norm", "eps", "robust", "broken by it alone", "passes"),
        [(r.title, r.kind, r.norm, f"{r.eps:.4g}", f"{r.robust:.1%}", r.only, r.passes) for r in result.rows],
    )
    for b in result.bounds:
        known_share = "" if b.known is None else f"known {b.known:.1%}, "
        say(f"{b.norm} <= {b.eps:.4g}: {known_share}all attacks {b.worst:.1%}, proved {_share(b.certified)}")
    say(
        f"{counted(result.samples, 'sample')}, seed {result.seed}: clean {result.accuracy:.1%}, under the known attack "
        f"{result.known:.1%}, under unseen ones in its set {result.unseen:.1%}, worst over all sets {result.worst:.1%}"
    )
    for name, why in result.refused.items():
        note(f"{name} could not serve: {why}")


def _attack(name: str, set_: list[str] | None) -> Attack[Any, Any]:
    from holdfast.attacks.attack import Attack
    from holdfast.core.registry import method

    kind: Any = method(name, Attack)
    return kind(**o.assignments(set_, kind))


def _share(share: float | None) -> str:
    return "none" if share is None else f"{share:.1%}"
