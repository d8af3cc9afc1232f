"""``holdfast attack``: one attack on a model."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast.cli import options as o
from holdfast.cli.asked import budget, check_access
from holdfast.cli.attack_semantic import run_and_save
from holdfast.cli.attack_shared import SharedRun, run_shared
from holdfast.cli.console import note, progress, say, say_json
from holdfast.cli.opening import opened, opened_models
from holdfast.cli.pictures import save_strips
from holdfast.cli.results import begin_results, check_results
from holdfast.cli.views import randomised, ranges
from holdfast.core.errors import UsageError
from holdfast.core.words import counted

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from holdfast.attacks.attack import Attack
    from holdfast.audits.context import Context
    from holdfast.core.problem import Problem
    from holdfast.judge.desk import Model
    from holdfast.judge.outcome import Outcome

__all__ = ["attack"]

_PICTURES = 12
_VIEWS = 8
_SHARED = "Attacks with one artefact for many samples"


def attack(
    name: Annotated[str, typer.Argument(help="Name of an attack; see: holdfast methods.", metavar="NAME")],
    out: o.Out,
    model: o.Model = None,
    arch: o.Arch = None,
    trust: o.Trust = None,
    anyway: o.Anyway = False,
    normalise: o.Normalise = None,
    binary: o.Binary = None,
    class_names: o.ClassNames = None,
    table: o.TableFile = None,
    data: o.Data = None,
    samples: o.Samples = None,
    norm: o.NormName = None,
    eps: Annotated[
        str | None,
        typer.Option(
            help="Bound of the distortion: 8/255 or 0.1. Minimal-distortion attacks may go without.",
            metavar="SIZE",
            callback=o.exact_size,
        ),
    ] = None,
    goal: o.GoalName = None,
    set_: o.Set = None,
    detector: Annotated[
        bool,
        typer.Option(
            "--detector",
            help="The model's last column is a detector's score, flagged above 0: break the model unflagged; PGD and its "
            "kin with --set loss=joint.",
            rich_help_panel="Threat",
        ),
    ] = False,
    queries: o.Queries = None,
    top_k: o.TopK = None,
    surrogate: o.Surrogate = None,
    surrogate_arch: o.SurrogateArch = None,
    answers: o.Answers = None,
    scores: o.Scores = None,
    request: o.Request = None,
    answer_path: o.AnswerPath = None,
    output: o.Output = None,
    classes: o.Classes = None,
    max_queries: o.MaxQueries = None,
    train_data: Annotated[
        str | None,
        typer.Option(
            help="Samples that a shared artefact, or a decoder, is fitted on.", metavar="FILE", rich_help_panel=_SHARED
        ),
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(
            help="More models that the artefact, or the input of min_max, must fool.",
            metavar="FILE,...",
            rich_help_panel=_SHARED,
        ),
    ] = None,
    also_arch: Annotated[
        list[str] | None,
        typer.Option(help="Builds their architectures.", metavar="MODULE:FUNCTION,...", rich_help_panel=_SHARED),
    ] = None,
    views: Annotated[
        str | None,
        typer.Option(
            help="Attack the model behind random changes of the input (EOT): rotation=20,translation=0.1,scale=0.1,"
            "brightness=0.1,contrast=0.2,noise=0.05. With min_max: behind several fixed ones, see --draws.",
            metavar="RANGES",
            rich_help_panel="Threat",
        ),
    ] = None,
    artefact: Annotated[
        Path | None,
        typer.Option(help="Judge this artefact; fit none.", metavar="FILE", rich_help_panel=_SHARED),
    ] = None,
    draws: Annotated[
        int | None,
        typer.Option(
            help="Fresh draws of each held-out sample; with --views, the views of min_max.",
            metavar="N",
            min=1,
            show_default="the method's own",
            rich_help_panel=_SHARED,
        ),
    ] = None,
    seed: o.Seed = None,
    device: o.Device = None,
    format_: o.Format = o.FormatName.TEXT,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Run one attack; the referee judges what it found.

    Attacks with one artefact for many samples (universal perturbations, patches, substitutes) are fitted on --train-data,
    or on the first half of the data, and judged on the rest. Semantic attacks search the parameters of a change of the
    image; their ranges are parameters of the method: --set rotation=15.
    """
    import numpy as np
    import torch

    from holdfast.attacks.attack import Attack
    from holdfast.attacks.engine import run
    from holdfast.attacks.semantic import SemanticAttack
    from holdfast.attacks.shared import SharedAttack
    from holdfast.audits.export import ROWS, own_values
    from holdfast.core.files import write_whole
    from holdfast.core.registry import method, name_of
    from holdfast.core.threat import Access, Formulation
    from holdfast.judge.referee import Referee, Ruling
    from holdfast.models.fingerprint import fingerprint
    from holdfast.transforms.random_transform import random_view

    kind = method(name)
    if not issubclass(kind, Attack | SharedAttack | SemanticAttack):
        raise UsageError(f"{name} is no attack; 'holdfast methods {name}' says what it is")
    tool = kind(**o.assignments(set_, kind))
    if isinstance(tool, SemanticAttack) and (eps is not None or norm is not None):
        raise UsageError(f"{tool.card.title} has ranges, no --norm and --eps; see: holdfast methods {name}")
    if eps is None and tool.card.norms and tool.card.formulation is Formulation.BUDGET:
        raise UsageError(f"{tool.card.title} searches inside a budget; give --eps")
    check_results(out)
    context = opened(
        out, anyway=anyway, trained=not detector,
        model=model, arch=arch, trust=trust, normalise=o.normalisation(normalise), binary=binary,
        class_names=o.class_names(class_names), table=o.table(table), data=data, samples=samples,
        norm=norm, eps=eps, goal=goal, queries=queries, top_k=top_k, surrogate=o.several(surrogate),
        surrogate_arch=o.several(surrogate_arch), answers=answers,
        scores=scores, request=request, answer=answer_path, output=output, classes=classes, max_queries=max_queries, seed=seed,
        device=device,
    )  # fmt: skip
    plan, ids = context.plan, np.arange(len(context.data))
    check_access(context, tool.card)
    together = isinstance(tool, Attack) and tool.serves_domains
    if views is not None and not together:
        context = replace(context, base=random_view(_module(context), context.data.x.shape[1:], ranges(views)))
    if context.differentiable and randomised(context.base, context.inputs(ids[:8])):
        note("the model is randomised: the referee takes the majority of fresh draws; eot_pgd averages its gradients")
        context = replace(context, randomised=True)
    if isinstance(tool, SharedAttack):
        more = opened_models(also, also_arch, plan)
        how = SharedRun(train_data, more, artefact, draws or tool.draws)
        run_shared(name_of(tool), tool, context, out, how, as_json=format_ is o.FormatName.JSON)
        return
    if isinstance(tool, SemanticAttack):
        run_and_save(name_of(tool), tool, context, out, train_data, as_json=format_ is o.FormatName.JSON)
        return
    problem = context.problem(ids, None if eps is not None else float("inf"))
    if detector:
        problem = _under_detector(problem, context.classes)
    attacked, referee, subject = context.model, context.referee(), context.subject.sha256
    group = opened_models(also, also_arch, plan)
    if views is not None and together:
        shape, drawn = context.data.x.shape[1:], ranges(views)
        group |= {f"view {k}": random_view(_module(context), shape, drawn, k) for k in range(draws or _VIEWS)}
    if group:
        problem, attacked = _together(tool, problem, attacked, group)
        referee, subject = Referee(attacked), fingerprint(attacked)
    transfer = tool.card.access is Access.TRANSFER
    allowed = budget(context, tool, tool.card.title)
    start = perf_counter()
    with progress() as tell:
        found = run(
            tool, problem, context.surrogate if transfer else attacked, judge=attacked if transfer else None,
            seed=plan.seed, budget=allowed, top_k=plan.top_k, settings=context.settings,
            progress=lambda done, total: tell(tool.card.title, done, total),
        )  # fmt: skip
    for line in _doubts(found):
        note(f"warning: {line}")
    rows = np.flatnonzero(found.found.cpu().numpy())
    judged = referee.judge(problem.select(rows), found.x[torch.from_numpy(rows).to(found.x.device)])
    holds = np.array([r is Ruling.HOLDS for r in judged.ruling], dtype=bool)
    x_adv, distance = found.x.clone(), np.full(len(ids), np.inf)
    x_adv[torch.from_numpy(rows).to(x_adv.device)] = judged.x
    distance[rows[holds]] = judged.distance.cpu().numpy()[holds]
    wrong = distance == 0
    broken = np.isfinite(distance) & ~wrong
    answer: dict[str, Any] = {
        "attack": name, "norm": str(plan.norm), "eps": plan.eps_text if eps is not None else None, "samples": len(ids),
        "adversarial_as_they_are": int(wrong.sum()), "broken": int(broken.sum()),
        "success": float(broken.sum() / max(1, (~wrong).sum())),
        "median_distance": float(np.median(distance[broken])) if broken.any() else None,
        "not_upheld": int((~holds).sum()), "judged_at": list(judged.runs), "forwards": int(found.ledger.forwards.sum()),
        "backwards": int(found.ledger.backwards.sum()), "queries": int(found.ledger.queries.sum()),
        "seconds": round(perf_counter() - start, 3), "seed": plan.seed, "subject": subject, "views": views,
        "without_gradient": int(found.blind.sum()), "failed": 0 if found.failed is None else int(found.failed.sum()),
        "not_a_number": 0 if found.unusable is None else int((found.unusable > 0).sum()),
    }  # fmt: skip
    begin_results(out, name)
    write_whole(
        out / "attack.json", json.dumps(answer | {"command": shlex.join(["holdfast", *sys.argv[1:]])}, indent=1)
    )
    np.savez(
        out / "adversarial.npz", x_adv=own_values(context, x_adv), x=own_values(context, context.data.x),
        y=context.data.y.numpy(), found=broken | wrong, distance=distance,
    )  # fmt: skip
    _save_rows(context, np.flatnonzero(broken), x_adv, distance, out)
    shown = np.flatnonzero(broken)[:_PICTURES]
    drawn = save_strips(
        out / "pictures", context.data.x[shown], x_adv[shown].cpu(), shown.tolist(), _captions(context, shown, x_adv)
    )
    if format_ is o.FormatName.JSON:
        say_json(answer)
    else:
        for line in _told(tool.card.title, answer):
            say(line)
    note(f"saved {out / 'adversarial.npz'}")
    if context.data.features is not None:
        note(f"saved the broken rows, by column in own units, in {out / ROWS}")
    if drawn:
        note(f"saved {drawn} pictures (clean, adversarial, difference) in {out / 'pictures'}")


def _save_rows(context: Context, broken: np.ndarray, x_adv: Tensor, distance: np.ndarray, out: Path) -> None:
    """The broken rows of a table by column, in own units."""
    from holdfast.audits.export import ROWS, own_rows, own_values
    from holdfast.core.files import write_whole

    if context.data.features is None:
        return
    answers = None
    if not context.plan.remote and not context.randomised and len(broken):
        answers = context.model(x_adv[broken]).argmax(1).cpu().numpy()
    write_whole(out / ROWS, own_rows(context, broken, own_values(context, x_adv[broken]), distance[broken], answers))


def _captions(context: Context, shown: np.ndarray, x_adv: Tensor) -> list[tuple[str, str]]:
    """The label over the clean picture and, where the model can be asked once more, its answer over the other."""
    names = dict(enumerate(context.data.classes or ()))
    labels = [names.get(k, str(k)) for k in context.data.y[shown].tolist()]
    if not context.differentiable or context.randomised:
        return [(f"label {label}", "adversarial") for label in labels]
    answers = context.model(x_adv[shown]).argmax(1).tolist()
    return [(f"label {label}", f"model says {names.get(k, str(k))}") for label, k in zip(labels, answers, strict=True)]


def _doubts(found: Outcome) -> list[str]:
    """What makes a figure worth less than it looks, in words."""
    lines: list[str] = []
    searched = len(found.found) if found.gradients is None else int((found.gradients.asked > 0).sum())
    blind = int(found.blind.sum())
    if blind:
        lines.append(
            f"the gradient was zero or not finite for {blind} of {searched} samples: a gradient attack sees nothing there, and "
            "what it does not find is no sign of robustness; try square, rays or hopskipjump, which need no gradient"
        )
    if found.failed is not None and bool(found.failed.any()):
        lines.append(
            f"the model raised on {int(found.failed.sum())} of {len(found.found)} samples ({found.fault}): they were searched "
            "no further, and count as not broken only because nothing was found before"
        )
    if found.unusable is not None and bool((found.unusable > 0).any()):
        lines.append(
            f"the model answered NaN or +infinity to points of {int((found.unusable > 0).sum())} samples; such points are never "
            "witnesses, and such a model is not safe to deploy"
        )
    return lines


def _module(context: Context) -> nn.Module:
    from torch import nn

    if not isinstance(context.base, nn.Module) or not context.differentiable:
        raise UsageError(
            f"--views needs a model with gradients, and {context.source} can only be asked ({context.why})"
        )
    return context.base


def _under_detector(problem: Problem, columns: int) -> Problem:
    """The problem with the detector in the loop; targets are classes, never the detector's column."""
    from holdfast.core.criterion import WithDetector
    from holdfast.core.threat import Goal

    if columns < 3:
        raise UsageError(
            "--detector takes a model with two classes or more and the detector's score as its last column"
        )
    target = problem.target
    if problem.goal is Goal.TARGETED:
        target = (problem.y + 1) % (columns - 1)
    return replace(problem, criterion=WithDetector(problem.criterion), target=target)


def _together(
    tool: Attack[Any, Any], problem: Problem, model: Model, others: dict[str, nn.Module]
) -> tuple[Problem, nn.Module]:
    """One input against all models: the problem and the group."""
    from torch import nn

    from holdfast.core.criterion import AllOf
    from holdfast.models.domains import Domains

    if not tool.serves_domains:
        raise UsageError(f"{tool.card.title} attacks one model; --also is for shared attacks and min_max")
    if not isinstance(model, nn.Module):
        raise UsageError("a prediction API cannot be one of several models; give files")
    return replace(problem, criterion=AllOf(problem.criterion)), Domains([model, *others.values()])


def _told(title: str, a: dict[str, Any]) -> list[str]:
    median = "none" if a["median_distance"] is None else f"{a['median_distance']:.4g}"
    n = max(1, a["samples"])
    wrong = a["adversarial_as_they_are"]
    return [
        f"{title}: {a['norm']} {'unbounded' if a['eps'] is None else '<= ' + a['eps']}, seed {a['seed']}",
        f"success            {a['success']:.1%}   ({a['broken']} of {counted(a['samples'] - wrong, 'sample')}; "
        f"{wrong} {'was wrong as it is' if wrong == 1 else 'were wrong as they are'})",
        f"median distance    {median}",
        f"forwards           {a['forwards']}   ({a['forwards'] / n:.1f} a sample)",
        f"backwards          {a['backwards']}   ({a['backwards'] / n:.1f} a sample)",
        f"queries            {a['queries']}   ({a['queries'] / n:.1f} a sample)",
        f"seconds            {a['seconds']}",
        *([f"not upheld by the referee: {a['not_upheld']}"] if a["not_upheld"] else []),
    ]
