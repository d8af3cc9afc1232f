"""When an output counts as adversarial. The engine never compares labels itself; it asks the criterion.

A criterion reads an answer of shape (m, K) (log-probabilities or logits) or labels of shape (m,), together with the
label y and the target t of each row. `margin` is negative exactly where `holds` is true and differentiable in the answer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.core.errors import UnsupportedError

__all__ = [
    "MASKED",
    "AllOf",
    "AnyOf",
    "Criterion",
    "Misclassified",
    "RegressionMargin",
    "Targeted",
    "WithDetector",
    "best_other",
    "usable",
]

MASKED = -1e30
"""What a class counts that can never be: -infinity would make differences and gradients that are no numbers."""

_ULPS = 4

_Judge = Callable[[Tensor, Tensor, Tensor], Tensor]


def best_other(scores: Tensor, label: Tensor) -> Tensor:
    """(m,) the largest score among the classes that are not ``label``.

    Example:
        >>> best_other(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0])).tolist()
        [2.0]
    """
    return scores.scatter(-1, label.unsqueeze(-1), float("-inf")).amax(-1)


def usable(scores: Tensor) -> Tensor:
    """(m,) bool: a row that can be judged: no score is NaN or +infinity, and some class can be; -infinity, and what stands
    for it (`MASKED`), is a class that cannot.

    Example:
        >>> rows = [[1.0, -torch.inf], [torch.inf, 0.0], [torch.nan, 0.0], [-torch.inf, -torch.inf]]
        >>> usable(torch.tensor(rows)).tolist()
        [True, False, False, False]
    """
    top = scores.amax(-1)  # NaN where any score is
    least = max(MASKED, torch.finfo(scores.dtype).min) if scores.is_floating_point() else MASKED
    return (top < torch.inf) & (top > least)


def _at(scores: Tensor, label: Tensor) -> Tensor:
    return scores.gather(-1, label.unsqueeze(-1)).squeeze(-1)


class Criterion(ABC):
    """Judges answers, row by row.

    Attributes:
        domains: it reads answers (m, domains, K), one row of scores for each domain (see `Domains`).
        counts_classes: labels are classes, counted from 0; of a regression they are numbers.
        detects: the last column of the answer is a detector's score.
    """

    domains: ClassVar[bool] = False
    counts_classes: ClassVar[bool] = True
    detects: ClassVar[bool] = False

    @property
    def targeted(self) -> bool:
        """It asks for the target."""
        inner = getattr(self, "inner", None)
        return isinstance(inner, Criterion) and inner.targeted

    @property
    def detector(self) -> bool:
        """A column of the answer is a detector's score and no class."""
        inner = getattr(self, "inner", None)
        return self.detects or (isinstance(inner, Criterion) and inner.detector)

    @property
    def blind_to_scale(self) -> bool:
        """All scores of a row times any positive number are judged alike, and have a margin as many times as large."""
        return False

    @abstractmethod
    def margin(self, scores: Tensor, y: Tensor, target: Tensor) -> Tensor:
        """(m,) signed margin of scores (m, K): negative where the row is adversarial, 0 on the edge."""

    def holds(self, scores: Tensor, y: Tensor, target: Tensor) -> Tensor:
        """(m,) bool: the row of scores is adversarial. Not a number is never adversarial."""
        return self.margin(scores, y, target) < 0

    def rounding(self, scores: Tensor, y: Tensor, target: Tensor) -> Tensor:
        """(m,) size of the scores that make the margin, each as often as it counts there: what their rounding scales with.

        What else the row says is no part of it: a class that is masked by -1e9 takes no digit from the margin of others.
        The default asks the margin itself, ``sum_k |d margin / d score_k| |score_k|``; criteria with a closed form say it.
        """
        with torch.enable_grad():
            at = scores.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.margin(at, y, target).sum(), at, materialize_grads=True)
        return torch.where(slope == 0, 0.0, slope * scores).abs().flatten(1).sum(1)

    def unsure(self, scores: Tensor, y: Tensor, target: Tensor) -> Tensor:
        """(m,) how far rounding may move the margin: what lies nearer to the edge is on it."""
        return _ULPS * torch.finfo(scores.dtype).eps * self.rounding(scores, y, target)

    def certain(self, scores: Tensor, y: Tensor, target: Tensor, by: float = 0.0) -> Tensor:
        """(m,) bool: the row is adversarial by more than ``by`` and than rounding moves: asked anew in another batch,
        it still is.

        This is what the archive keeps, and so what a search has to reach: one that stops where `holds` says so would stop
        at ties, which logits of bfloat16, or far from 0, are full of.
        """
        margin = self.margin(scores, y, target)
        if margin.is_cpu and not (margin < 0).any():  # read without waiting for a device
            return torch.zeros_like(margin, dtype=torch.bool)
        unsure = self.unsure(scores, y, target)
        # A margin of minus infinity is beyond all rounding, though both are infinite.
        return self.holds(scores, y, target) & ((margin < -unsure) | (margin == -torch.inf)) & (margin <= -by)

    def holds_label(self, labels: Tensor, y: Tensor, target: Tensor) -> Tensor:
        """(m,) bool, from labels alone."""
        raise UnsupportedError(f"{type(self).__name__} cannot be judged from labels; give the attack scores")


@dataclass(frozen=True)
class Misclassified(Criterion):
    """Untargeted: the best class is not y. A tie is judged as the model would: the first class wins.

    Example:
        >>> Misclassified().holds(torch.tensor([[1.0, 2.0]]), torch.tensor([0]), torch.tensor([-1])).tolist()
        [True]
    """

    @property
    @override
    def blind_to_scale(self) -> bool:
        return type(self).margin is Misclassified.margin  # who inherits may ask for more

    @override
    def margin(self, scores: Tensor, y: Tensor, target: Tensor) -> Tensor:
        return _at(scores, y) - best_other(scores, y)

    @override
    def holds(self, scores: Tensor, y: Tensor, target: Tensor) -> Tensor:
        return (scores.argmax(-1) != y) & usable(scores)

    @override
    def rounding(self, scores: Tensor, y: Tensor, target: Tensor) -> Tensor:
        return torch.maximum(_at(scores, y).abs(), best_other(scores, y).abs())

    @override
    def holds_label(self, labels: Tensor, y: Tensor, target: Tensor) -> Tensor:
        return labels != y


@dataclass(frozen=True)
class Targeted(Criterion):
    """Targeted: the best class is t."""

    @property
    @override
    def targeted(self) -> bool:
        return True

    @property
    @override
    def blind_to_scale(self) -> bool:
        return type(self).margin is Targeted.margin

    @override
    def margin(self, scores: Tensor, y: Tensor, target: Tensor) -> Tensor:
        return best_other(scores, target) - _at(scores, target)

    @override
    def holds(self, scores: Tensor, y: Tensor, target: Tensor) -> Tensor:
        return (scores.argmax(-1) == target) & usable(scores)

    @override
    def rounding(self, scores: Tensor, y: Tensor, target: Tensor) -> Tensor:
        return torch.maximum(_at(scores, target).abs(), best_other(scores, target).abs())

    @override
    def holds_label(self, labels: Tensor, y: Tensor, target: Tensor) -> Tensor:
        return labels == target


@dataclass(frozen=True)
class WithDetector(Criterion):
    """Adversarial for ``inner`` and not flagged: the last column of the answer is a detector's score, flagged above 0."""

    inner: Criterion
    detects: ClassVar[bool] = True

    @property
    @override
    def blind_to_scale(self) -> bool:
        return self.inner.blind_to_scale

    @override
    def margin(self, scores: Tensor, y: Tensor, target: Tensor) -> Tensor:
        return torch.maximum(self.inner.margin(scores[..., :-1], y, target), scores[..., -1])

    @override
    def holds(self, scores: Tensor, y: Tensor, target: Tensor) -> Tensor:
        return self.inner.holds(scores[..., :-1], y, target) & (scores[..., -1] < 0)

    @override
    def certain(self, scores: Tensor, y: Tensor, target: Tensor, by: float = 0.0) -> Tensor:
        # The detector speaks by its sign alone, which no rounding of another score touches.
        return self.inner.certain(scores[..., :-1], y, target, by) & (scores[..., -1] < 0)


@dataclass(frozen=True)
class AllOf(Criterion):
    """Adversarial in every domain: answers are (m, domains, K).

    Example:
        >>> both = torch.tensor([[[1.0, 2.0], [3.0, 0.0]]])  # one sample, two models: only the first is fooled
        >>> y, none = torch.tensor([0]), torch.tensor([-1])
        >>> AllOf(Misclassified()).holds(both, y, none).item(), AnyOf(Misclassified()).holds(both, y, none).item()
        (False, True)
    """

    inner: Criterion
    domains: ClassVar[bool] = True

    @property
    @override
    def blind_to_scale(self) -> bool:
        return self.inner.blind_to_scale

    @override
    def margin(self, scores: Tensor, y: Tensor, target: Tensor) -> Tensor:
        return _by_domain(self.inner.margin, scores, y, target).amax(-1)

    @override
    def holds(self, scores: Tensor, y: Tensor, target: Tensor) -> Tensor:
        return _by_domain(self.inner.holds, scores, y, target).all(-1)

    @override
    def certain(self, scores: Tensor, y: Tensor, target: Tensor, by: float = 0.0) -> Tensor:
        return _by_domain(lambda s, y, t: self.inner.certain(s, y, t, by), scores, y, target).all(-1)


@dataclass(frozen=True)
class AnyOf(Criterion):
    """Adversarial in some domain: answers are (m, domains, K)."""

    inner: Criterion
    domains: ClassVar[bool] = True

    @property
    @override
    def blind_to_scale(self) -> bool:
        return self.inner.blind_to_scale

    @override
    def margin(self, scores: Tensor, y: Tensor, target: Tensor) -> Tensor:
        return _by_domain(self.inner.margin, scores, y, target).amin(-1)

    @override
    def holds(self, scores: Tensor, y: Tensor, target: Tensor) -> Tensor:
        return _by_domain(self.inner.holds, scores, y, target).any(-1)

    @override
    def certain(self, scores: Tensor, y: Tensor, target: Tensor, by: float = 0.0) -> Tensor:
        return _by_domain(lambda s, y, t: self.inner.certain(s, y, t, by), scores, y, target).any(-1)


def _by_domain(judge: _Judge, scores: Tensor, y: Tensor, target: Tensor) -> Tensor:
    return torch.stack([judge(s, y, target) for s in scores.unbind(-2)], dim=-1)


@dataclass(frozen=True)
class RegressionMargin(Criterion):
    """A regression's output (m, 1) is further than ``tolerance`` from y."""

    tolerance: float
    counts_classes: ClassVar[bool] = False

    @override
    def margin(self, scores: Tensor, y: Tensor, target: Tensor) -> Tensor:
        return self.tolerance - (scores[..., 0] - y).abs()

    @override
    def rounding(self, scores: Tensor, y: Tensor, target: Tensor) -> Tensor:
        return torch.maximum(scores[..., 0].abs(), y.abs())
