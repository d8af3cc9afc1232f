"""Fingerprints: inputs that a model and its copies answer as planned, and that others do not (Wang et al. 2021)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from holdfast.applications.application import Application, ApplicationResult
from holdfast.attacks.attack import Attack
from holdfast.attacks.engine import run
from holdfast.core.cards import Card, parameter
from holdfast.core.cost import Cost
from holdfast.core.draws import Draws
from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.core.manifest import Samples
from holdfast.core.problem import Problem
from holdfast.core.registry import create, name_of
from holdfast.core.sets import LpBall
from holdfast.core.threat import Access, Norm
from holdfast.judge.judged import judged
from holdfast.numerics.evaluation import evaluate
from holdfast.session.session import Session

__all__ = ["Fingerprint"]


@dataclass(frozen=True, kw_only=True)
class Fingerprint(Application):
    """Characteristic examples: random inputs that a targeted attack has led to a random class of this model.

    The uniqueness score is how many of them perturbed copies of the model still answer as planned, less how many an unrelated
    model does: the session's surrogate, or, without one, the same network with its weights shuffled.
    """

    count: int = parameter(
        50, "random inputs to start from, at least 1", "Wang et al. 2021: 100; half for small models"
    )
    attack: str = parameter(
        "pgd", "the targeted white-box attack that leads them to their class", "Wang et al. 2021: PGD"
    )
    radius: float = parameter(
        0.5, "how far an input may move, as a share of the range of the data", "ours: far, they are noise"
    )
    noise: float = parameter(
        0.02, "noise on the copies' weights, as a share of each tensor's deviation", "ours: as rounding is"
    )
    copies: int = parameter(5, "perturbed copies of the model, at least 1", "ours")

    card: ClassVar[Card] = Card(
        title="Characteristic examples",
        rows=("N05",),
        paper="Wang, Chen, Lin, Yu, Liu, Chen, Zhao 2021, Characteristic Examples: High-Robustness, Low-Transferability "
        "Fingerprinting of Neural Networks, IJCAI",
        section="4",
        summary="Makes inputs by which the owner of a model recognises its copies, and measures how unique they are.",
        access=Access.WHITE_BOX,
        failure_modes=(
            "A copy that was fine-tuned for long, or distilled, answers otherwise.",
            "An independent model of the same data answers about half of them as planned too; the paper's high-pass updates "
            "(LTRC) lower that.",
            "Shuffled weights are an easy control; give an independent model of the same task as surrogate.",
        ),
        checked_by="the matches of the model itself, which are all, and of an independent model",
    )

    def __post_init__(self) -> None:
        if self.count < 1 or self.copies < 1 or not 0 < self.radius <= 1 or self.noise < 0:
            raise UsageError(
                f"{self.card.title} takes a count and copies of at least 1, a radius in (0, 1] and noise of at least 0; got "
                f"{self.count}, {self.copies}, {self.radius} and {self.noise}"
            )

    @override
    def run(self, session: Session) -> ApplicationResult:
        problem = self._problem(session)
        attack: type[Attack[Any, Any]] = Attack
        outcome = run(create(self.attack, attack), problem, session.module, seed=session.seed)
        upheld = judged(session.referee(), problem, outcome)
        made = Samples(upheld.x[upheld.broken], problem.target[upheld.broken])
        if not len(made):
            raise UnsupportedError(f"{self.attack} led none of {self.count} inputs to its class; raise radius or count")
        kept = [_matches(model, made) for model in self._copies(session)]
        other = _matches(self._unrelated(session), made)
        return ApplicationResult(
            name=name_of(self),
            figures={
                "match": float((upheld.prediction[upheld.broken] == made.y).double().mean()),
                "match_of_copies": float(np.mean(kept)),
                "uniqueness": float(np.mean(kept)) - other,
            },
            control={"match": other},
            artefact=made,
            cost=Cost(self.count, 0, self.count) + upheld.cost + upheld.judging,
            notes=() if session.surrogates is not None else ("the control is the same network with shuffled weights",),
        )

    def _problem(self, session: Session) -> Problem:
        """Random inputs, each with a class of its own to reach."""
        threat, like = session.threat, session.inputs(session.ids[:1])
        ids = np.arange(self.count)
        draws = Draws(session.seed, "fingerprint", like.device).of(ids)
        span = threat.high - threat.low
        x = threat.low + span * draws.uniform("start", tuple(like.shape[1:])).to(like)
        y = evaluate(session.module, x).argmax(1)
        step = draws.integers("class", session.classes - 1, ()).to(y) + 1
        ball = LpBall.uniform(
            Norm.LINF, self.radius * span, self.count, threat.low, threat.high, device=like.device, dtype=like.dtype
        )
        return Problem.of(x, y, ball, target=(y + step) % session.classes, ids=ids)

    def _copies(self, session: Session) -> list[nn.Module]:
        """The model with a little noise on every weight."""
        stream = torch.Generator().manual_seed(session.seed)

        def noisy(p: Tensor) -> Tensor:
            size = p.std(correction=0) if p.numel() > 1 else p.abs().mean()
            return p + self.noise * size * torch.randn(p.shape, generator=stream).to(p)

        return [_with_weights(session.module, noisy) for _ in range(self.copies)]

    def _unrelated(self, session: Session) -> nn.Module:
        if session.surrogates is not None:
            return session.surrogate
        stream = torch.Generator().manual_seed(session.seed)

        def shuffled(p: Tensor) -> Tensor:
            return p.flatten()[torch.randperm(p.numel(), generator=stream).to(p.device)].view_as(p)

        return _with_weights(session.module, shuffled)


def _with_weights(model: nn.Module, change: Callable[[Tensor], Tensor]) -> nn.Module:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.copy_(change(p))
    return other


def _matches(model: nn.Module, made: Samples) -> float:
    """Share of the samples that a model answers as planned."""
    return float((evaluate(model, made.x).argmax(1) == made.y).double().mean())
