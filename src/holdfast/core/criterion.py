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

from holdfast.core.errors import UnsupportedError

__all__ = ["AllOf", "AnyOf", "Criterion", "Misclassified", "RegressionMargin", "Targeted", "WithDetector", "best_other"]

_Judge = Callable[[Tensor, Tensor, Tensor], Tensor]


def best_other(scores: Tensor, label: Tensor) -> Tensor:
    """(m,) the largest score among the classes that are not ``label``.

    Example:
        >>> best_other(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0])).tolist()
        [2.0]
    """
    return scores.scatter(-1, label.unsqueeze(-1), float("-inf")).amax(-1)


class Criterion(ABC):
    """Judges answers, row by row.

    Attributes:
        domains: it reads answers (m, domains, K), one row of scores for each domain (see `Domains`).
    """

    domains: ClassVar[bool] = False

    @property
    def targeted(self) -> bool:
        """It asks for the target."""
        inner = getattr(self, "inner", None)
        return isinstance(inner, Criterion) and inner.targeted

    @abstractmethod
    def margin(self, scores: Tensor, y: Tensor, target: Tensor) -> Tensor:
        """(m,) signed margin of scores (m, K): negative where the row is adversarial, 0 on the edge."""

    def holds(self, scores: Tensor, y: Tensor, target: Tensor) -> Tensor:
        """(m,) bool: the row of scores is adversarial. Not a number is never adversarial."""
        return self.margin(scores, y, target) < 0

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

    def margin(self, scores: Tensor, y: Tensor, target: Tensor) -> Tensor:  # noqa: D102
        return scores.gather(-1, y.unsqueeze(-1)).squeeze(-1) - best_other(scores, y)

    def holds(self, scores: Tensor, y: Tensor, target: Tensor) -> Tensor:  # noqa: D102
        return (scores.argmax(-1) != y) & scores.isnan().any(-1).logical_not()

    def holds_label(self, labels: Tensor, y: Tensor, target: Tensor) -> Tensor:  # noqa: D102
        return labels != y


@dataclass(frozen=True)
class Targeted(Criterion):
    """Targeted: the best class is t."""

    @property
    def targeted(self) -> bool:  # noqa: D102
        return True

    def margin(self, scores: Tensor, y: Tensor, target: Tensor) -> Tensor:  # noqa: D102
        return best_other(scores, target) - scores.gather(-1, target.unsqueeze(-1)).squeeze(-1)

    def holds(self, scores: Tensor, y: Tensor, target: Tensor) -> Tensor:  # noqa: D102
        return (scores.argmax(-1) == target) & scores.isnan().any(-1).logical_not()

    def holds_label(self, labels: Tensor, y: Tensor, target: Tensor) -> Tensor:  # noqa: D102
        return labels == target


@dataclass(frozen=True)
class WithDetector(Criterion):
    """Adversarial for ``inner`` and not flagged: the last column of the answer is a detector's score, flagged above 0."""

    inner: Criterion

    def margin(self, scores: Tensor, y: Tensor, target: Tensor) -> Tensor:  # noqa: D102
        return torch.maximum(self.inner.margin(scores[..., :-1], y, target), scores[..., -1])


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

    def margin(self, scores: Tensor, y: Tensor, target: Tensor) -> Tensor:  # noqa: D102
        return _by_domain(self.inner.margin, scores, y, target).amax(-1)

    def holds(self, scores: Tensor, y: Tensor, target: Tensor) -> Tensor:  # noqa: D102
        return _by_domain(self.inner.holds, scores, y, target).all(-1)


@dataclass(frozen=True)
class AnyOf(Criterion):
    """Adversarial in some domain: answers are (m, domains, K)."""

    inner: Criterion
    domains: ClassVar[bool] = True

    def margin(self, scores: Tensor, y: Tensor, target: Tensor) -> Tensor:  # noqa: D102
        return _by_domain(self.inner.margin, scores, y, target).amin(-1)

    def holds(self, scores: Tensor, y: Tensor, target: Tensor) -> Tensor:  # noqa: D102
        return _by_domain(self.inner.holds, scores, y, target).any(-1)


def _by_domain(judge: _Judge, scores: Tensor, y: Tensor, target: Tensor) -> Tensor:
    return torch.stack([judge(s, y, target) for s in scores.unbind(-2)], dim=-1)


@dataclass(frozen=True)
class RegressionMargin(Criterion):
    """A regression's output (m, 1) is further than ``tolerance`` from y."""

    tolerance: float

    def margin(self, scores: Tensor, y: Tensor, target: Tensor) -> Tensor:  # noqa: D102
        return self.tolerance - (scores[..., 0] - y).abs()
