"""``holdfast.attack``: one attack on a model, judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

from holdfast.api.attack_result import AttackResult, SampleAttackResult
from holdfast.api.keywords import THREAT, kind_of, method_and_spec
from holdfast.api.views import ranges
from holdfast.api.voice import Progress, Voice
from holdfast.core.errors import UsageError
from holdfast.core.threat import Formulation, Norm, ThreatModel

if TYPE_CHECKING:
    from torch import nn

    from holdfast.attacks.attack import Attack
    from holdfast.attacks.semantic import SemanticAttack
    from holdfast.attacks.shared import SharedAttack
    from holdfast.core.problem import Problem
    from holdfast.judge.asking import Model
    from holdfast.judge.outcome import Outcome
    from holdfast.session.session import Session
    from holdfast.session.spec import DataLike, ModelLike, ModelSpec

__all__ = ["AttackOptions", "attack", "run_attack"]

_VIEWS = 8


@dataclass(frozen=True, kw_only=True)
class AttackOptions:
    """What belongs to a run of an attack beside the model, the data and the threat.

    Attributes:
        bounded: the distortion is bounded; if not, the method looks for the least one.
        detector: the model's last column is a detector's score, flagged above 0.
        train_data: samples that a shared artefact, or a decoder, is fitted on; None: the first half of the data.
        also: more models that one input, or one artefact, must fool, by name.
        views: random changes of the input that the model is behind: ``rotation=20,noise=0.05``.
        draws: fresh draws of each held-out sample; with views and several domains, how many views.
        artefact: an artefact to judge instead of a fit.
        checkpoint: where a fit keeps what it has so far.
    """

    bounded: bool = True
    detector: bool = False
    train_data: DataLike | None = None
    also: Mapping[str, nn.Module] = field(default_factory=dict[str, Any])
    views: str | None = None
    draws: int | None = None
    artefact: Path | None = None
    checkpoint: Path | None = None


def attack(
    model: ModelLike | ModelSpec,
    data: DataLike,
    method: str | Attack[Any, Any] | SharedAttack[Any, Any] | SemanticAttack,
    threat: ThreatModel | Norm | str | None = None,
    *,
    queries: int | None = None,
    surrogate: Any = None,
    train_data: DataLike | None = None,
    also: Mapping[str, nn.Module] | None = None,
    detector: bool = False,
    samples: int | None = None,
    seed: int = 0,
    device: str | None = None,
    progress: Progress = True,
    anyway: bool = False,
    **parameters: Any,
) -> AttackResult:
    """Runs one attack; the referee judges what it found.

    Args:
        model: a module, a loaded model, a path or the URL of a prediction API.
        data: a `Dataset`, what `holdfast.load_data` reads, or (x, y) as tensors or arrays.
        method: the attack's name, or the attack.
        threat: what may be changed; a norm alone leaves it unbounded, for methods that look for the least distortion;
            None for semantic attacks, which have ranges of their own.
        queries: the most that may be asked for one sample; where the method has a parameter of this name, that too.
        surrogate: the attacker's own model or models: a transfer attack searches on them, and so does a white-box attack
            that is given any, for example on a defence without its obfuscated step; what counts is ``model``.
        train_data: samples that a shared artefact, or a decoder, is fitted on; None: the first half of the data.
        also: more models that one input, or one artefact, must fool, by name.
        detector: the model's last column is a detector's score, flagged above 0.
        samples: the first so many rows; None is all.
        seed: keys all draws.
        device: where the model runs; None: where a module is, else the CPU.
        progress: show how far it is, or who is told (stage, done, of how many).
        anyway: start although the model does worse than guessing.
        parameters: the method's parameters, and how the model is to be read (``arch``, ``trust``, ``classes``,
            ``max_queries`` and the other fields of `holdfast.session.ModelSpec`).

    Returns:
        What was found: ``x``, ``broken``, ``distance``, ``success`` and ``cost``.

    Raises:
        UsageError: no such method or parameter, or things that cannot be had together.
        UnsupportedError: the method does not serve the norm, the goal or the model.
        DataError: what an audit would refuse.

    Example:
        >>> import holdfast as hf
        >>> model, data = hf.load_model("digits_mlp.safetensors"), hf.load_data("digits:test")  # doctest: +SKIP
        >>> hf.attack(model, data, "apgd_ce", hf.ThreatModel.of("linf", "8/255"), steps=20).success  # doctest: +SKIP
        0.41
    """
    from holdfast.core.cards import parameters_of
    from holdfast.session.opening import open_session
    from holdfast.session.spec import Surrogates

    voice = Voice(progress)
    if queries is not None and any(p.name == "queries" for p in parameters_of(kind_of(method))):
        parameters["queries"] = queries
    given = _threat(threat)
    check_method(kind_of(method), bounded=isinstance(threat, ThreatModel), named=threat is not None)
    tool, spec = method_and_spec(method, model, parameters, attack)
    session = open_session(
        spec, data, given, samples=samples, queries=queries, seed=seed, device=device,
        surrogates=None if surrogate is None else Surrogates.of(surrogate),
    )  # fmt: skip
    open_with(session, voice, anyway=anyway, trained=not detector)
    options = AttackOptions(
        bounded=isinstance(threat, ThreatModel), detector=detector, train_data=train_data, also=_named(also)
    )
    return run_attack(session, tool, options, voice)


def _named(models: Mapping[str, nn.Module] | None) -> Mapping[str, nn.Module]:
    """More models, by name.

    Raises:
        UsageError: they have none, or are no modules.
    """
    from torch import nn

    from holdfast.session.spec import described

    if models is None:
        return {}
    if not isinstance(models, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]  # people give anything
        raise UsageError(f"more models are given by name: also={{'second': module}}; got {described(models)}")
    for name, model in models.items():
        if not isinstance(model, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]  # people give anything
            raise UsageError(
                f"also: {name} is {described(model)}, and must be a module: hf.load_model(FILE, ...).module"
            )
    return models


def _threat(threat: ThreatModel | Norm | str | None) -> ThreatModel:
    """The threat model; without a bound, one that only says norm and range.

    Raises:
        UsageError: it is neither a threat model nor a norm.
    """
    if isinstance(threat, ThreatModel):
        return threat
    try:
        return ThreatModel.of(Norm.LINF if threat is None else Norm(threat), "0.1")
    except UsageError as fault:
        raise UsageError(f"{fault}. A threat is {THREAT}, or a norm alone") from None


def open_with(
    session: Session, voice: Voice, *, anyway: bool = False, trained: bool = True, looks: bool = True
) -> None:
    """The look at a session that was opened: what was noticed, and what a pre-flight warns of.

    Args:
        session: the session.
        voice: is told.
        anyway: a model that does worse than guessing goes on.
        trained: its accuracy says something.
        looks: the pre-flight looks at model and data; if not, only what was noticed on opening is said.

    Raises:
        DataError: what an audit would refuse.
    """
    from holdfast.session.look import look

    for line in session.notes:
        voice.note(f"note: {line}")
    for line in look(session, anyway=anyway, trained=trained) if looks else ():
        voice.note(line)


def check_method(kind: type, *, bounded: bool, named: bool) -> None:
    """Refuses a method that is no attack, or one that goes without what was given or needs what was not.

    Args:
        kind: the method's class.
        bounded: a bound of the distortion was given.
        named: a norm was given, with or without a bound.

    Raises:
        UsageError: it is so.
    """
    from holdfast.attacks.attack import Attack
    from holdfast.attacks.semantic import SemanticAttack
    from holdfast.attacks.shared import SharedAttack
    from holdfast.core.registry import name_of

    name = name_of(kind)
    if not issubclass(kind, Attack | SharedAttack | SemanticAttack):
        raise UsageError(f"{name} is no attack; 'holdfast methods {name}' says what it is")
    if issubclass(kind, SemanticAttack) and named:
        raise UsageError(
            f"{kind.card.title} has ranges, no --norm and --eps; leave them, or the threat, out; see: holdfast methods {name}"
        )
    if not bounded and kind.card.norms and kind.card.formulation is Formulation.BUDGET:
        raise UsageError(f"{kind.card.title} searches inside a budget; give --eps, from Python {THREAT}")


def run_attack(session: Session, tool: Any, options: AttackOptions, voice: Voice) -> AttackResult:
    """One attack on an opened session.

    Args:
        session: model, data and threat.
        tool: the attack with its parameters.
        options: what belongs to the run.
        voice: is told what a reader must know, and how far it is.

    Raises:
        UsageError: things that cannot be had together.
        UnsupportedError: the method does not serve the norm, the goal or the model.
    """
    from holdfast.api.attack_semantic import run_semantic_attack
    from holdfast.api.attack_shared import run_shared_attack
    from holdfast.attacks.semantic import SemanticAttack
    from holdfast.attacks.shared import SharedAttack
    from holdfast.session.allowance import check_access
    from holdfast.session.look import is_randomised
    from holdfast.transforms.random_transform import random_view

    _check_surrogate(session, tool)
    if not _on_surrogate(session, tool):
        check_access(session, tool.card)
    together = bool(getattr(tool, "serves_domains", False))
    if options.views is not None and not together:
        session = replace(session, base=random_view(_module(session), session.data.x.shape[1:], ranges(options.views)))
    if is_randomised(session):
        voice.note(
            "the model is randomised: the referee takes the majority of fresh draws; eot_pgd averages its gradients"
        )
        session = replace(session, randomised=True)
    if isinstance(tool, SharedAttack):
        return run_shared_attack(session, cast(SharedAttack[Any, Any], tool), options, voice)
    if isinstance(tool, SemanticAttack):
        return run_semantic_attack(session, tool, options, voice)
    return _on_samples(session, tool, options, voice)


def _on_surrogate(session: Session, tool: Any) -> bool:
    """The search is on the attacker's own model, and the attacked one is asked about what it ends with."""
    from holdfast.attacks.attack import Attack
    from holdfast.core.threat import Access

    given = session.surrogates is not None and isinstance(tool, Attack)
    return tool.card.access is Access.TRANSFER or (given and tool.card.access is Access.WHITE_BOX)


def _check_surrogate(session: Session, tool: Any) -> None:
    """Refuses a surrogate that a search would not use, or not as it is meant to.

    Raises:
        UsageError: the attack asks the attacked model itself, or wants the nearest of all points that it meets.
    """
    from holdfast.core.threat import Access

    card = tool.card
    if session.surrogates is None or card.access is Access.TRANSFER:
        return
    if not _on_surrogate(session, tool):
        raise UsageError(f"{card.title} searches on the attacked model itself; leave the surrogate out")
    if card.formulation is not Formulation.BUDGET:
        raise UsageError(
            f"{card.title} looks for the least distortion by asking the attacked model at each step, and a surrogate's is "
            "another; give a white-box attack inside a budget, such as pgd"
        )


def _on_samples(session: Session, tool: Attack[Any, Any], options: AttackOptions, voice: Voice) -> AttackResult:
    from holdfast.attacks.engine import run
    from holdfast.core.registry import name_of
    from holdfast.judge.judged import judged
    from holdfast.judge.referee import Referee
    from holdfast.models.fingerprint import fingerprint
    from holdfast.session.allowance import allowance

    problem = session.problem(session.ids, None if options.bounded else float("inf"))
    if options.detector:
        problem = _under_detector(problem, session.classes)
    attacked, referee, subject = session.model, session.referee(), session.subject.sha256
    if group := _group(session, tool, options):
        problem, attacked = _together(tool, problem, attacked, group)
        referee, subject = Referee(attacked), fingerprint(attacked)
    elsewhere, title = _on_surrogate(session, tool), tool.card.title
    allowed, told = allowance(session, tool, title)
    if told:
        voice.note(told)
    start = perf_counter()
    with voice.progress() as tell:
        found = run(
            tool, problem, session.surrogate if elsewhere else attacked, judge=attacked if elsewhere else None,
            seed=session.seed, budget=allowed, top_k=session.spec.top_k, settings=session.settings,
            progress=lambda done, total: tell(title, done, total),
        )  # fmt: skip
    for line in _doubts(found):
        voice.note(f"warning: {line}")
    return SampleAttackResult(
        method=name_of(tool),
        title=title,
        session=session,
        seed=session.seed,
        judged=judged(referee, problem, found),
        outcome=found,
        eps=session.threat.eps if options.bounded else None,
        subject=subject,
        views=options.views,
        seconds=round(perf_counter() - start, 3),
        notes=tuple(voice.notes),
    )


def _group(session: Session, tool: Attack[Any, Any], options: AttackOptions) -> dict[str, nn.Module]:
    """The further models, and views of the model, that one input must fool."""
    from holdfast.transforms.random_transform import random_view

    group = dict(options.also)
    if options.views is not None and tool.serves_domains:
        shape, drawn = session.data.x.shape[1:], ranges(options.views)
        views = range(options.draws or _VIEWS)
        group |= {f"view {k}": random_view(_module(session), shape, drawn, k) for k in views}
    return group


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


def _module(session: Session) -> nn.Module:
    from torch import nn

    if not isinstance(session.base, nn.Module) or not session.differentiable:
        raise UsageError(
            f"--views needs a model with gradients, and {session.source} can only be asked ({session.why})"
        )
    return session.base


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
