"""Robustness before and after a model is adjusted: pruned, quantised, calibrated (survey, section 1).

Accuracy survives most of these adjustments, robustness need not: the adjusted model is another model, and what was found
about the original says nothing of it. Each adjusted model is attacked anew, and the examples of each are judged on the
other, so that the page also tells whether examples made on the public original break the deployed one. A model without a
gradient is attacked with the original's examples alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import override

from holdfast.attacks.attack import Attack
from holdfast.attacks.engine import Settings, run
from holdfast.attacks.evasion.white.cosine_margin import CosineMargin
from holdfast.attacks.evasion.white.sigma_zero import SigmaZero
from holdfast.core.cards import Card, parameter
from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.core.problem import Problem
from holdfast.core.threat import Norm, size_text
from holdfast.judge.referee import Referee
from holdfast.models.compressed import ADJUSTMENTS, adjusted
from holdfast.models.queries_only import answers_gradients
from holdfast.numerics.calibration import calibration_error
from holdfast.numerics.evaluation import evaluate
from holdfast.session.session import Session
from holdfast.session.spec import DataLike
from holdfast.studies.common.chosen import attacks_of
from holdfast.studies.common.statements import broken_by, fraction, fraction_among, interval_of, is_adversarial
from holdfast.studies.study import StageProgress, Study, StudyResult, module_of

__all__ = ["Posthoc", "PosthocResult", "PosthocRow", "compare_adjusted"]

Attacks = Mapping[str, Attack[Any, Any]]


@dataclass(frozen=True, kw_only=True)
class PosthocRow:
    """One model: the original or an adjusted one.

    Attributes:
        name: of the adjustment.
        words: what was done.
        accuracy: on the clean samples.
        calibration: expected calibration error of the clean confidences, 15 bins of equal width.
        robust: share of all samples that are right and stay so under every attack on this model; None if it has no gradient.
        interval: its 95 % Clopper-Pearson interval.
        from_original: share of the samples right on both that the original's examples break on this one.
        to_original: share of them that this model's examples break on the original.
        robust_to_both: share of all samples that stay right under this model's own examples and the original's.
        passes: forwards and backwards of its attacks.
    """

    name: str
    words: str
    accuracy: float
    calibration: float
    robust: float | None
    interval: tuple[float, float] | None
    from_original: float | None
    to_original: float | None
    robust_to_both: float
    passes: int


@dataclass(frozen=True, kw_only=True)
class PosthocResult(StudyResult):
    """The original first, then each adjusted model.

    Attributes:
        norm: of the set.
        eps: its size, as people write it.
        samples: how many were judged.
        fitted_on: held-out samples that the temperature was fitted on.
        attacks: their names.
        seed: keys all draws.
        rows: one for each model.
        refused: adjustments that this model or machine cannot have, and why.
    """

    norm: str
    eps: str
    samples: int
    fitted_on: int
    attacks: tuple[str, ...]
    seed: int
    rows: tuple[PosthocRow, ...]
    refused: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Posthoc(Study[PosthocResult]):
    """Robustness before and after pruning, quantisation and calibration, and transfer between the two."""

    card: ClassVar[Card] = Card(
        title="Robustness after post-hoc adjustment",
        rows=("T12",),
        paper="Chen & Liu, Holistic Adversarial Robustness of Deep Learning Models, section 1",
        section="1",
        summary="Attacks a model before and after pruning, quantisation and calibration, and judges the examples of each on "
        "the other.",
        norms=(Norm.L0, Norm.L1, Norm.L2, Norm.LINF),
        failure_modes=(
            "int8 is simulated: integer kernels may round otherwise.",
            "A model without a gradient (dynamic-int8) meets the original's examples alone, so its figure is an upper bound "
            "of what is left.",
        ),
        checked_by="pruned and rounded weights by hand; the temperature against its neighbours; no temperature moves an accuracy",
    )
    adjustments: tuple[str, ...] = parameter(
        ADJUSTMENTS,
        "what is done to the model: prune:SHARE, int8-weights, int8, dynamic-int8, fp16, bf16 or temperature",
        "survey, section 1: compression, quantisation and calibration; the shares are ours",
    )
    attacks: tuple[str | Attack[Any, Any], ...] = parameter(
        (),
        "attacks, each on what the ones before it leave; none: cosine_margin of 20 steps and 3 targets, in l0 sigma_zero of "
        "300 steps",
        "ours: the first attack of the suite fast",
    )
    held_out: DataLike | None = parameter(
        None,
        "other samples, for the temperature and the ranges of int8; none: the second half of the data",
        "Guo et al. 2017, section 4: a temperature is fitted on held-out samples",
    )

    @override
    def run(self, session: Session, *, progress: StageProgress | None = None) -> PosthocResult:
        judged, fitted = self._halves(session)
        norm = session.threat.norm
        default = SigmaZero(steps=300) if norm is Norm.L0 else CosineMargin(steps=20, targets=3)
        return compare_adjusted(
            module_of(session),
            judged,
            (fitted.x, fitted.y),
            attacks_of(self.attacks or (default,)),
            adjustments=self.adjustments,
            eps=size_text(session.threat.eps),
            seed=session.seed,
            settings=session.settings,
            progress=progress,
        )

    def _halves(self, session: Session) -> tuple[Problem, Problem]:
        """What is judged, and what is fitted on."""
        if self.held_out is not None:
            return session.problem(session.ids), session.problem_of(self.held_out)
        half = len(session.ids) // 2
        if not half:
            raise UsageError("one sample cannot be both fitted on and judged; give --held-out")
        return session.problem(session.ids[:half]), session.problem(session.ids[half:])


@dataclass(frozen=True, kw_only=True)
class _Examples:
    """What the attacks on one model made.

    Attributes:
        x: (n, \\*features) examples; the clean input where none was found.
        right: (n,) bool: right as it is.
        broken: (n,) bool: right as it is, and the referee of this model upholds the example.
        passes: forwards and backwards.
    """

    x: Tensor
    right: Tensor
    broken: NDArray[np.bool_]
    passes: int


def compare_adjusted(
    model: nn.Module,
    problem: Problem,
    held_out: tuple[Tensor, Tensor],
    attacks: Attacks,
    *,
    adjustments: tuple[str, ...] = ADJUSTMENTS,
    eps: str = "",
    seed: int = 0,
    settings: Settings | None = None,
    progress: StageProgress | None = None,
) -> PosthocResult:
    """Attacks the original and each adjusted model, and judges the examples of each on the other.

    Args:
        model: x (m, \\*features) -> logits (m, K).
        problem: the samples with their sets.
        held_out: other samples and their labels, for ranges and the temperature.
        attacks: by name; each runs on what the ones before it left standing.
        adjustments: see `holdfast.models.compressed.ADJUSTMENTS`.
        eps: the size as people write it.
        seed: keys all draws.
        settings: how the engine works.
        progress: told (stage, done, of how many).
    """
    models: dict[str, tuple[nn.Module, str]] = {"original": (model, "as it is")}
    refused: dict[str, str] = {}
    for name in adjustments:
        try:
            models[name] = adjusted(name, model, *held_out)
        except UnsupportedError as error:
            refused[name] = str(error)
    rows: list[PosthocRow] = []
    original: _Examples | None = None
    for k, (name, (one, words)) in enumerate(models.items()):
        made = _attacked(one, problem, attacks, seed, settings or Settings())
        original = original or made
        rows.append(_row(name, words, (one, made), (model, original), problem))
        if progress is not None:
            progress("models", k + 1, len(models))
    return PosthocResult(
        norm=str(problem.set.norm),
        eps=eps or f"{float(problem.set.eps.max()):g}",
        samples=len(problem),
        fitted_on=len(held_out[0]),
        attacks=tuple(attacks),
        seed=seed,
        rows=tuple(rows),
        refused=refused,
    )


def _attacked(model: nn.Module, problem: Problem, attacks: Attacks, seed: int, settings: Settings) -> _Examples:
    """The attacks one after the other, each on what is left; none where the model has no gradient."""
    right = ~is_adversarial(model, problem, problem.x)
    x, left, passes = problem.x.clone(), right.clone(), 0
    for attack in attacks.values() if answers_gradients(model) else ():
        rows = left.nonzero().squeeze(-1)
        if not len(rows):
            break
        part = problem.chunk(rows.cpu().numpy())
        outcome = run(attack, part, model, seed=seed, settings=settings)
        x[rows] = torch.where(part.flat(outcome.found), outcome.x, x[rows])
        left[rows] = ~outcome.found
        passes += outcome.ledger.total.passes
    return _Examples(x=x, right=right, broken=broken_by(Referee(model), problem, x, right), passes=passes)


def _row(
    name: str,
    words: str,
    adjusted_model: tuple[nn.Module, _Examples],
    original_model: tuple[nn.Module, _Examples],
    problem: Problem,
) -> PosthocRow:
    (model, own), (before, original) = adjusted_model, original_model
    both = (own.right & original.right).cpu().numpy()
    crossed = broken_by(Referee(model), problem, original.x, own.right)
    back = broken_by(Referee(before), problem, own.x, original.right)
    survives = own.right.cpu().numpy() & ~own.broken
    attacked, is_original = answers_gradients(model), own is original
    return PosthocRow(
        name=name,
        words=words,
        accuracy=float(own.right.double().mean()),
        calibration=calibration_error(evaluate(model, problem.x), problem.y),
        robust=fraction(survives) if attacked else None,
        interval=interval_of(int(survives.sum()), len(problem)) if attacked else None,
        from_original=None if is_original else fraction_among(crossed, both),
        to_original=fraction_among(back, both) if attacked and not is_original else None,
        robust_to_both=fraction(survives & ~crossed),
        passes=own.passes,
    )
