"""The cases that the contract of an attack is checked on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.attacks.attack import Attack
from holdfast.attacks.engine import run
from holdfast.core.cards import Card
from holdfast.core.problem import Problem
from holdfast.core.sets import LpBall
from holdfast.core.threat import Access, Norm
from holdfast.judge.archive import Keep
from holdfast.judge.asking import Model
from holdfast.judge.outcome import Outcome
from holdfast.testing.contract import require
from holdfast.testing.toys import Queried, digits, net

__all__ = ["EPS", "FEW_STEPS", "SAMPLES", "AttackCase", "breaks", "clean_right", "of_digits", "same"]

EPS = {Norm.L0: 8.0, Norm.L1: 4.0, Norm.L2: 0.8, Norm.LINF: 0.12}
FEW_STEPS = {"steps": 12, "queries": 300, "restarts": 1, "targets": 2, "searches": 3, "neighbours": 3}
SAMPLES = 12
_FEW = 0.02  # share of features that rounding may decide, as the sign of a gradient near 0 does


@dataclass(frozen=True)
class AttackCase:
    """One attack: ``whole`` as given, ``small`` with few steps, and the norm that most checks use."""

    whole: Attack[Any, Any]
    small: Attack[Any, Any]
    norm: Norm

    @property
    def card(self) -> Card:
        """The attack's card."""
        return self.whole.card

    @property
    def transfers(self) -> bool:
        """It searches on a surrogate."""
        return self.card.access is Access.TRANSFER

    def ball(self, n: int, eps: float | None = None, norm: Norm | None = None, **more: Any) -> LpBall:
        """The same ball around each of n samples; by default one in which most attacks break most digits."""
        norm = norm or self.norm
        return LpBall.uniform(norm, EPS[norm] if eps is None else eps, n, dtype=torch.float64, **more)

    def run(self, problem: Problem, model: nn.Module | None = None, judge: Model | None = None, **more: Any) -> Outcome:
        """The small attack under a budget in the set, settled at the first witness unless told otherwise."""
        model = model or net()
        if self.transfers and judge is None:
            judge = Queried(model, lambda scores: scores)
        given: dict[str, Any] = {"keep": Keep.FIRST, **more}
        return run(self.small, problem, model, judge=judge, **given)


def of_digits(case: AttackCase, **more: Any) -> Problem:
    """The first digits in such balls."""
    x, y = digits(SAMPLES)
    return Problem.of(x, y, case.ball(SAMPLES, **more))


def clean_right(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """(n,) bool: classified as y in evaluation mode."""
    was = model.training
    with torch.no_grad():
        right = model.eval()(x).argmax(1) == y
    model.train(was)
    return right


def breaks(out: Outcome) -> bool:
    """Something was found that was not wrong to begin with."""
    return bool((out.found & (out.distance > 0)).any())


def same(a: Outcome, b: Outcome, what: str, order: Tensor | None = None, tolerance: float = 1e-6) -> None:
    """Requires the same outcome, up to rounding."""
    at = slice(None) if order is None else order
    require(torch.equal(a.found[at], b.found), f"{what}: other samples are broken ({a.found[at]} against {b.found})")
    moved = float((a.x[at] - b.x).abs().gt(1e-4).double().mean()) if len(b.x) else 0.0
    require(moved < _FEW, f"{what}: witnesses differ in {moved:.0%} of their features")
    near = torch.isclose(a.distance[at], b.distance, rtol=tolerance, atol=tolerance)
    require(near.all(), f"{what}: other distances, {a.distance[at][~near]} against {b.distance[~near]}")
