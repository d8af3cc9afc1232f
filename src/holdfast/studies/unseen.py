"""Known against unseen attacks, beside the certified value (survey, section 3).

A model that was hardened against one attack may withstand it for reasons that the next attack does not share: the figure
under the known attack says how well the training worked, not how robust the model is. Here it stands beside attacks that
the training never saw, in the same set and in sets of other norms, and beside what is proved in each of those sets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import nn
from typing_extensions import override

from holdfast.attacks.attack import Attack
from holdfast.attacks.engine import Settings, run
from holdfast.certifiers.bounds.crown import CROWN
from holdfast.core.cards import Card, parameter
from holdfast.core.errors import ModelError, UnsupportedError
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Guarantee, Norm
from holdfast.core.verdict import Certificate, Clash, Witness, clash
from holdfast.judge.judged import judged
from holdfast.judge.referee import Referee
from holdfast.models.believed import believed
from holdfast.session.session import Session
from holdfast.studies.common.chosen import attack_of
from holdfast.studies.common.statements import fraction, interval_of, is_adversarial
from holdfast.studies.common.trials import UnseenTrial, matched_eps, unseen_attacks
from holdfast.studies.study import StageProgress, Study, StudyResult, module_of

__all__ = ["Unseen", "UnseenBound", "UnseenResult", "UnseenRow", "against_unseen"]


@dataclass(frozen=True, kw_only=True)
class UnseenRow:
    """What one attack left standing.

    Attributes:
        method: its name.
        title: as the paper writes it.
        kind: see `UnseenTrial`.
        norm: of its set.
        eps: size of its set.
        robust: share of all samples that are right and stay so.
        interval: its 95 % Clopper-Pearson interval.
        only: samples that no other attack of the study broke in the same set.
        passes: forwards and backwards, all samples together.
    """

    method: str
    title: str
    kind: str
    norm: str
    eps: float
    robust: float
    interval: tuple[float, float]
    only: int
    passes: int


@dataclass(frozen=True, kw_only=True)
class UnseenBound:
    """What is left of one set under all its attacks, and what is proved in it.

    Attributes:
        norm: of the set.
        eps: its size.
        known: under the known attack; None in the sets of other norms.
        worst: under all attacks in this set.
        interval: its 95 % Clopper-Pearson interval.
        certified: share of all samples that are proved; None where no certificate serves the model.
        contradictions: samples that are proved and broken in the arithmetic of the proof; any is a fault of a certificate or
            of the referee.
        other_arithmetic: samples that are proved in real numbers and broken as the model runs, where the referee could not
            ask it in float64; both may be right.
    """

    norm: str
    eps: float
    known: float | None
    worst: float
    interval: tuple[float, float]
    certified: float | None
    contradictions: int
    other_arithmetic: int = 0


@dataclass(frozen=True, kw_only=True)
class UnseenResult(StudyResult):
    """The study; the known attack is the first row, its set the first bound.

    Attributes:
        samples: how many were judged.
        accuracy: on the clean samples.
        known: accuracy under the known attack.
        unseen: accuracy under the unseen attacks in the same set, all together.
        worst: accuracy under all attacks of all sets.
        seed: keys all draws.
        rows: one for each attack.
        bounds: one for each set.
        refused: attacks and certificates that cannot serve, and why.
    """

    samples: int
    accuracy: float
    known: float
    unseen: float
    worst: float
    seed: int
    rows: tuple[UnseenRow, ...]
    bounds: tuple[UnseenBound, ...]
    refused: dict[str, str]

    @property
    def certified(self) -> float | None:
        """Share that is proved in the known set."""
        return self.bounds[0].certified

    @property
    def contradicts_itself(self) -> bool:
        """A sample is proved and broken at once."""
        return any(b.contradictions for b in self.bounds)

    @override
    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"certified": self.certified}


@dataclass(frozen=True, kw_only=True)
class Unseen(Study[UnseenResult]):
    """The attack that a model was hardened against beside attacks it has not seen, and beside what is proved."""

    card: ClassVar[Card] = Card(
        title="Known against unseen attacks",
        rows=("T13",),
        paper="Chen & Liu, Holistic Adversarial Robustness of Deep Learning Models, section 3",
        section="3",
        summary="Runs the attack that a model was hardened against beside attacks it has not seen, in the same set and in "
        "sets of other norms, and proves what it can in each.",
        norms=(Norm.L0, Norm.L1, Norm.L2, Norm.LINF),
        failure_modes=(
            "Sets of other norms are matched by volume, a convention that names no direction; l0 has none.",
        ),
        checked_by="a model hardened against one weak attack; volumes of balls in closed form; every proof held against every "
        "witness",
    )
    known: str | Attack[Any, Any] = parameter(
        "pgd", "the attack that the model was hardened against", "Madry et al. 2018, the usual one"
    )
    queries: int = parameter(
        1000, "most queries for one sample of a black-box attack", "ours: as many as `bench attacks`"
    )

    @override
    def run(self, session: Session, *, progress: StageProgress | None = None) -> UnseenResult:
        norm = session.threat.norm
        known = UnseenTrial(attack=attack_of(self.known), kind="known", norm=norm)
        transfers = session.surrogates is not None
        return against_unseen(
            module_of(session),
            session.problem(session.ids),
            known,
            unseen_attacks(norm, known, transfer=transfers, queries=self.queries),
            surrogate=session.surrogate if transfers else None,
            seed=session.seed,
            settings=session.settings,
            progress=progress,
        )


@dataclass(frozen=True, kw_only=True)
class _Tried:
    """What one attack did.

    Attributes:
        broken: (n,) bool: right as it is, and the referee upholds the witness.
        passes: forwards and backwards.
    """

    broken: NDArray[np.bool_]
    passes: int = 0


Tried = Mapping[UnseenTrial, _Tried]


def against_unseen(
    model: nn.Module,
    problem: Problem,
    known: UnseenTrial,
    others: Sequence[UnseenTrial],
    *,
    surrogate: nn.Module | None = None,
    seed: int = 0,
    settings: Settings | None = None,
    progress: StageProgress | None = None,
) -> UnseenResult:
    """Runs the known attack and the unseen ones, each on every sample, and proves what it can in every set.

    Args:
        model: x (m, \\*features) -> logits (m, K).
        problem: the samples with the known set; one eps for all.
        known: the attack that the model was hardened against.
        others: see `unseen_attacks`.
        surrogate: the attacker's own model, for transfer attacks.
        seed: keys all draws.
        settings: how the engine works.
        progress: told (stage, done, of how many).
    """
    right = (~is_adversarial(model, problem, problem.x)).cpu().numpy()
    refused: dict[str, str] = {}
    tried: dict[UnseenTrial, _Tried] = {}
    problems: dict[Norm, Problem] = {}
    trials = (known, *others)
    for k, trial in enumerate(trials):
        part = problems.setdefault(trial.norm, _matched(problem, trial.norm))
        try:
            tried[trial] = _try(trial, part, model, right, surrogate, seed, settings or Settings())
        except UnsupportedError as error:
            if trial is known:
                raise
            refused[trial.method] = str(error)
        if progress is not None:
            progress("attacks", k + 1, len(trials))
    bounds = tuple(_bound(model, p, right, tried, known, refused) for p in problems.values())
    same = [t for trial, t in tried.items() if trial is not known and trial.norm is problem.set.norm]
    return UnseenResult(
        samples=len(problem),
        accuracy=fraction(right),
        known=fraction(right & ~tried[known].broken),
        unseen=fraction(right & ~_any_broken(same, right)),
        worst=fraction(right & ~_any_broken(tried.values(), right)),
        seed=seed,
        rows=tuple(_row(trial, problems[trial.norm], right, tried) for trial in tried),
        bounds=bounds,
        refused=refused,
    )


def _matched(problem: Problem, norm: Norm) -> Problem:
    """The problem in a set of another norm that has the volume of its own."""
    if norm is problem.set.norm:
        return problem
    features = problem.x[0].numel() if len(problem) else 1
    eps = matched_eps(problem.set.norm, _eps_of(problem), norm, features)
    return replace(problem, set=replace(problem.set.with_eps(eps), norm=norm))


def _eps_of(problem: Problem) -> float:
    return float(problem.set.eps.max()) if len(problem) else 0.0


def _try(
    trial: UnseenTrial,
    problem: Problem,
    model: nn.Module,
    right: NDArray[np.bool_],
    surrogate: nn.Module | None,
    seed: int,
    settings: Settings,
) -> _Tried:
    """Runs one attack on the samples that are right as they are."""
    transfers = trial.attack.card.access is Access.TRANSFER
    if transfers and surrogate is None:
        raise UnsupportedError(
            "a transfer attack needs a surrogate; give --surrogate FILE --surrogate-arch MODULE:FUNCTION"
        )
    rows = np.flatnonzero(right)
    broken = np.zeros(len(problem), dtype=bool)
    if not len(rows):
        return _Tried(broken=broken)
    part = problem.chunk(rows)
    searched = surrogate if transfers and surrogate is not None else model
    outcome = run(trial.attack, part, searched, judge=model if transfers else None, seed=seed, settings=settings)
    said = judged(Referee(model), part, outcome)
    broken[rows] = said.broken.cpu().numpy()
    return _Tried(broken=broken, passes=said.cost.passes)


def _row(trial: UnseenTrial, problem: Problem, right: NDArray[np.bool_], tried: Tried) -> UnseenRow:
    mine = tried[trial]
    survives = right & ~mine.broken
    rest = [t for other, t in tried.items() if other is not trial and other.norm is trial.norm]
    return UnseenRow(
        method=trial.method,
        title=trial.title,
        kind=trial.kind,
        norm=str(trial.norm),
        eps=_eps_of(problem),
        robust=fraction(survives),
        interval=interval_of(int(survives.sum()), max(1, len(survives))),
        only=int((mine.broken & ~_any_broken(rest, right)).sum()),
        passes=mine.passes,
    )


def _bound(
    model: nn.Module,
    problem: Problem,
    right: NDArray[np.bool_],
    tried: Tried,
    known: UnseenTrial,
    refused: dict[str, str],
) -> UnseenBound:
    norm, eps = problem.set.norm, _eps_of(problem)
    worst = right & ~_any_broken([t for trial, t in tried.items() if trial.norm is norm], right)
    proved: NDArray[np.bool_] | None = None
    clashes: dict[Clash | None, int] = {}
    try:
        graph = believed(model, problem.x[:1], *problem.set.hull(problem.x)).graph
        proved = right & CROWN().certify(graph, problem.x, problem.y, problem.set).cpu().numpy()
        # what is broken lies in the set, and what is proved is the whole set: all clash alike
        proof = Certificate(radius=eps, guarantee=Guarantee.SOUND, method="crown", arithmetic=CROWN().arithmetic(graph))
        witness = Witness(
            distance=eps, attack="", sha256="", margin=-1.0, arithmetics=Referee(model).arithmetics(problem.x)
        )
        clashes = {clash(witness, proof): int((proved & ~worst).sum())}
    except (UnsupportedError, ModelError) as error:
        refused["crown"] = str(error)
    return UnseenBound(
        norm=str(norm),
        eps=eps,
        known=fraction(right & ~tried[known].broken) if norm is known.norm else None,
        worst=fraction(worst),
        interval=interval_of(int(worst.sum()), max(1, len(worst))),
        certified=None if proved is None else fraction(proved),
        contradictions=clashes.get(Clash.CONTRADICTION, 0),
        other_arithmetic=clashes.get(Clash.FINDING, 0),
    )


def _any_broken(tried: Iterable[_Tried], like: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.any([np.zeros_like(like), *(t.broken for t in tried)], axis=0)
