"""Known against unseen attacks, beside the certified value (survey, section 3).

A model that was hardened against one attack may withstand it for reasons that the next attack does not share: the figure
under the known attack says how well the training worked, not how robust the model is. Here it stands beside attacks that
the training never saw, in the same set and in sets of other norms, and beside what is proved in each of those sets.

Sets of other norms are matched by volume: a ball of norm p with the volume of the known ball. No size of one norm equals
one of another; equal volume is a convention that names no direction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from math import exp, lgamma, log
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.attacks.attack import Attack
from holdfast.attacks.engine import Settings, run
from holdfast.certifiers.bounds.crown import CROWN
from holdfast.core.errors import ModelError, UnsupportedError, UsageError
from holdfast.core.problem import Problem
from holdfast.core.registry import create, method
from holdfast.core.threat import Access, Guarantee, Norm
from holdfast.core.verdict import Certificate, Clash, Witness, clash
from holdfast.judge.referee import Referee
from holdfast.models.believed import believed
from holdfast.numerics.stats import clopper_pearson
from holdfast.studies.posthoc import broken_by, renumbered, scores_of

__all__ = ["Bound", "Row", "Trial", "Unseen", "held_out", "matched_eps", "unseen"]

_NORMS = (Norm.LINF, Norm.L2, Norm.L1)
_SIDES = 2.0  # of a cube of radius 1

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Trial:
    """One attack of the study.

    Attributes:
        method: its name.
        kind: ``known``, ``other method``, ``other loss``, ``black-box``, ``transfer`` or ``other norm``.
        norm: of its set.
        parameters: what differs from its defaults.
    """

    method: str
    kind: str
    norm: Norm
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def attack(self) -> Attack[Any, Any]:
        """The attack with its parameters."""
        return create(self.method, Attack, **self.parameters)


@dataclass(frozen=True)
class Row:
    """What one attack left standing.

    Attributes:
        method: its name.
        title: as the paper writes it.
        kind: see `Trial`.
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


@dataclass(frozen=True)
class Bound:
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


@dataclass(frozen=True)
class Unseen:
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
    rows: tuple[Row, ...]
    bounds: tuple[Bound, ...]
    refused: Mapping[str, str]

    @property
    def certified(self) -> float | None:
        """Share that is proved in the known set."""
        return self.bounds[0].certified

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"refused": dict(self.refused), "certified": self.certified}


def matched_eps(norm: Norm, eps: float, other: Norm, features: int) -> float:
    """The radius at which the ball of another norm has the same volume.

    Raises:
        UsageError: l0, whose sets have no volume.

    Example:
        >>> round(matched_eps(Norm.LINF, 0.5, Norm.L2, 2), 4)  # a disc with the area of the unit square
        0.5642
    """
    return (
        exp(log(eps) + _log_volume(norm, features) / features - _log_volume(other, features) / features) if eps else 0.0
    )


def _log_volume(norm: Norm, d: int) -> float:
    """Of the unit ball in d dimensions: ``(2 Gamma(1 + 1/p))^d / Gamma(1 + d/p)``."""
    if norm is Norm.L0:
        raise UsageError("an l0 set has no volume to match; take linf, l2 or l1")
    p = {Norm.L1: 1.0, Norm.L2: 2.0, Norm.LINF: float("inf")}[norm]
    return d * (log(_SIDES) + lgamma(1 + 1 / p)) - lgamma(1 + d / p)


def held_out(norm: Norm, known: Trial, *, transfer: bool = False, queries: int = 1000) -> tuple[Trial, ...]:
    """The attacks that a model hardened against ``known`` has not seen: other losses and methods, queries alone, other norms.

    Args:
        norm: of the known set.
        known: is left out, should it be among them.
        transfer: there is a surrogate to search.
        queries: most queries for a sample of a black-box attack.

    Example:
        >>> {t.kind for t in held_out(Norm.LINF, Trial("pgd", "known", Norm.LINF))} >= {"other loss", "other norm"}
        True
    """
    found = [
        Trial("pgd", "other loss", norm, {"loss": "margin", "restarts": 2}),
        Trial("apgd_ce", "other method", norm, {"steps": 50}),
        Trial("apgd_dlr", "other loss", norm, {"steps": 50}),
        Trial("cosine_margin", "other method", norm, {"steps": 30, "targets": 3}),
        Trial("square", "black-box", norm, {"queries": queries}),
        Trial("hopskipjump", "black-box", norm, {"queries": queries}),
    ]
    if transfer:
        found.append(Trial("surrogate_transfer", "transfer", norm))
    if norm is not Norm.L0:  # whose sets have no volume to match
        found += [Trial("apgd_ce", "other norm", other, {"steps": 50}) for other in _NORMS if other is not norm]
    same = (known.method, known.norm, dict(known.parameters))
    cards = [(t, method(t.method).card) for t in found]
    return tuple(t for t, c in cards if t.norm in c.norms and (t.method, t.norm, dict(t.parameters)) != same)


def unseen(
    model: nn.Module,
    problem: Problem,
    known: Trial,
    others: tuple[Trial, ...],
    *,
    surrogate: nn.Module | None = None,
    seed: int = 0,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> Unseen:
    """Runs the known attack and the unseen ones, each on every sample, and proves what it can in every set.

    Args:
        model: x (m, \\*features) -> logits (m, K).
        problem: the samples with the known set; one eps for all.
        known: the attack that the model was hardened against.
        others: see `held_out`.
        surrogate: the attacker's own model, for transfer attacks.
        seed: keys all draws.
        settings: how the engine works.
        progress: told (stage, done, of how many).
    """
    settings = settings or Settings()
    right = ~problem.criterion.holds(scores_of(model, problem.x), problem.y, problem.target)
    eps = float(problem.set.eps.max()) if len(problem) else 0.0
    features = problem.x[0].numel() if len(problem) else 1
    refused: dict[str, str] = {}
    broken: dict[Trial, np.ndarray] = {}
    passes: dict[Trial, int] = {}
    problems: dict[Norm, Problem] = {}
    trials = (known, *others)
    for k, trial in enumerate(trials):
        size = matched_eps(problem.set.norm, eps, trial.norm, features) if trial.norm is not problem.set.norm else eps
        ball = replace(problem.set.with_eps(size), norm=trial.norm)
        part = problems.setdefault(trial.norm, replace(problem, set=ball))
        try:
            broken[trial], passes[trial] = _broken(model, part, right, trial, surrogate, seed, settings)
        except UnsupportedError as error:
            if trial is known:
                raise
            refused[trial.method] = str(error)
        if progress is not None:
            progress("attacks", k + 1, len(trials))
    kept = right.cpu().numpy()
    bounds = [_bound(model, p, kept, broken, known, refused) for p in problems.values()]
    same = [b for t, b in broken.items() if t is not known and t.norm is problem.set.norm]
    return Unseen(
        len(problem), _mean(kept), _mean(kept & ~broken[known]), _mean(kept & ~_any(same, kept)),
        _mean(kept & ~_any(list(broken.values()), kept)), seed,
        tuple(_row(t, problems[t.norm], kept, broken, passes[t]) for t in broken), tuple(bounds), refused,
    )  # fmt: skip


def _broken(
    model: nn.Module, problem: Problem, right: Tensor, trial: Trial, surrogate: nn.Module | None, seed: int,
    settings: Settings,
) -> tuple[np.ndarray, int]:  # fmt: skip
    """(n,) which samples the attack breaks, by the referee, and what it cost."""
    attack = trial.attack()
    transfers = attack.card.access is Access.TRANSFER
    if transfers and surrogate is None:
        raise UnsupportedError(
            "a transfer attack needs a surrogate; give --surrogate FILE --surrogate-arch MODULE:FUNCTION"
        )
    rows = right.nonzero().squeeze(-1)
    x, part = problem.x.clone(), renumbered(problem, rows)
    if not len(rows):
        return np.zeros(len(problem), dtype=bool), 0
    search = surrogate if transfers and surrogate is not None else model
    out = run(attack, part, search, judge=model if transfers else None, seed=seed, settings=settings)
    x[rows] = torch.where(part.flat(out.found), out.x, x[rows])
    return broken_by(model, problem, x, right), out.ledger.total.passes


def _row(trial: Trial, problem: Problem, kept: np.ndarray, broken: Mapping[Trial, np.ndarray], passes: int) -> Row:
    survives = kept & ~broken[trial]
    rest = [b for t, b in broken.items() if t is not trial and t.norm is trial.norm]
    only = int((broken[trial] & ~_any(rest, kept)).sum())
    title: str = method(trial.method).card.title
    loss = trial.parameters.get("loss")
    return Row(
        trial.method, title if loss is None else f"{title}, {loss} loss", trial.kind, str(trial.norm),
        float(problem.set.eps.max()) if len(problem) else 0.0, _mean(survives), _interval(survives), only, passes,
    )  # fmt: skip


def _bound(
    model: nn.Module, problem: Problem, kept: np.ndarray, broken: Mapping[Trial, np.ndarray], known: Trial,
    refused: dict[str, str],
) -> Bound:  # fmt: skip
    norm = problem.set.norm
    worst = kept & ~_any([b for t, b in broken.items() if t.norm is norm], kept)
    eps = float(problem.set.eps.max()) if len(problem) else 0.0
    sure: np.ndarray | None = None
    clashes: dict[Clash | None, int] = {}
    try:
        graph = believed(model, problem.x[:1], *problem.set.hull(problem.x)).graph
        sure = kept & CROWN().certify(graph, problem.x, problem.y, problem.set).cpu().numpy()
        # what is broken lies in the set, and what is proved is the whole set: all clash alike
        proof = Certificate(eps, Guarantee.SOUND, "crown", CROWN().arithmetic(graph))
        witness = Witness(eps, "", "", -1.0, arithmetics=Referee(model).arithmetics(problem.x))
        clashes = {clash(witness, proof): int((sure & ~worst).sum())}
    except (UnsupportedError, ModelError) as error:
        refused["crown"] = str(error)
    return Bound(
        norm=str(norm), eps=eps, known=_mean(kept & ~broken[known]) if norm is known.norm else None, worst=_mean(worst),
        interval=_interval(worst), certified=None if sure is None else _mean(sure),
        contradictions=clashes.get(Clash.CONTRADICTION, 0), other_arithmetic=clashes.get(Clash.FINDING, 0),
    )  # fmt: skip


def _any(parts: list[np.ndarray], like: np.ndarray) -> np.ndarray:
    return np.any(parts, axis=0) if parts else np.zeros_like(like)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = clopper_pearson(int(values.sum()), max(1, len(values)))
    return float(low), float(high)
