"""What an attack may ask. Access is a type: an oracle has no method beyond its power.

    HardLabelOracle  labels
    SoftLabelOracle  + log-probabilities (the top k of them, if that is all the deployment shows)
    WhiteBoxOracle   + logits, gradients with respect to the input, features, the model at other weights

Calls take rows flat: ``x`` (m, \\*features) and ``index`` (m,), the sample of each row; an index may repeat. They return
the answer and ``answered`` (m,) bool: rows beyond a sample's budget are not sent, and their answer is 0. Attacks ask through
`on`, which knows whose rows they are.

Scores of an unusual size are told, and given to losses, in a unit of each sample's own: see `holdfast.judge.units`. Labels,
and what makes a witness, are those of the scores as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor
from typing_extensions import override

from holdfast.core.problem import Problem
from holdfast.judge.asks import HardLabelAsk, SoftLabelAsk, WhiteBoxAsk
from holdfast.judge.gradients import Gradient, Jacobian

__all__ = ["HardLabelOracle", "SoftLabelOracle", "Source", "WhiteBoxOracle"]


class Source(Protocol):
    """What stands behind an oracle, with all that it can do: see `holdfast.judge.inquiry.Inquiry`."""

    @property
    def classes(self) -> int:
        """K."""
        ...

    def labels(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Best classes (m,), and who was answered (m,)."""
        ...

    def best(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The witnesses that are known, and their distances."""
        ...

    def left(self, index: Tensor) -> Tensor:
        """How many rows may still be asked of each sample."""
        ...

    def log_probs(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities (m, K)."""
        ...

    def clean_told(self, index: Tensor) -> Tensor:
        """Scores of the clean inputs (m, K)."""
        ...

    def logits(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (m, K)."""
        ...

    def gradient(self, x: Tensor, index: Tensor, loss: Callable[..., Tensor], *rows: Tensor) -> Gradient:
        """A loss and its gradient with respect to the input."""
        ...

    def jacobian(self, x: Tensor, index: Tensor, classes: Tensor) -> Jacobian:
        """Gradients of chosen logits."""
        ...

    def features(self, x: Tensor, index: Tensor, layer: str) -> tuple[Tensor, Tensor]:
        """The output of a named module."""
        ...

    def at(self, weights: Mapping[str, Tensor]) -> Source:
        """The same with other weights."""
        ...


class HardLabelOracle:
    """Answers with the best class and nothing else."""

    def __init__(self, source: Source) -> None:
        """Binds the oracle to what answers it; attacks get it from the engine."""
        self.labels: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = source.labels
        self.best: Callable[[Tensor], tuple[Tensor, Tensor]] = source.best
        self.left: Callable[[Tensor], Tensor] = source.left
        self._classes: Callable[[], int] = lambda: source.classes

    @property
    def classes(self) -> int:
        """K, the number of classes."""
        return self._classes()

    def on(self, problem: Problem) -> HardLabelAsk:
        """What an attack asks with about these samples; ``problem.rows`` says which they are."""
        return HardLabelAsk(self, problem)


class SoftLabelOracle(HardLabelOracle):
    """Answers with log-probabilities (m, K); classes that the deployment does not show are -inf."""

    def __init__(self, source: Source) -> None:
        """Binds the oracle to what answers it."""
        super().__init__(source)
        self.log_probs: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = source.log_probs
        self.clean: Callable[[Tensor], Tensor] = source.clean_told

    @override
    def on(self, problem: Problem) -> SoftLabelAsk:
        return SoftLabelAsk(self, problem)


class WhiteBoxOracle(SoftLabelOracle):
    """Answers with logits and gradients with respect to the input; parameters, mode and buffers are never touched.

    ``gradient(x, index, loss, *rows)`` differentiates ``loss(scores, *rows)``, where each of ``rows`` has one entry for
    each row of x; a loss with ``layers`` reads features too. ``jacobian(x, index, classes)`` differentiates the logits
    at ``classes`` (m, k), one backward each. ``features(x, index, layer)`` answers with the output of a named module.
    ``at(weights)`` is the same oracle with some parameters replaced.
    """

    def __init__(self, source: Source) -> None:
        """Binds the oracle to what answers it."""
        super().__init__(source)
        self.logits: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = source.logits
        self.gradient: Callable[..., Gradient] = source.gradient
        self.jacobian: Callable[[Tensor, Tensor, Tensor], Jacobian] = source.jacobian
        self.features: Callable[[Tensor, Tensor, str], tuple[Tensor, Tensor]] = source.features
        self._at: Callable[[Mapping[str, Tensor]], Source] = source.at

    @override
    def on(self, problem: Problem) -> WhiteBoxAsk:
        return WhiteBoxAsk(self, problem)

    def at(self, weights: Mapping[str, Tensor]) -> WhiteBoxOracle:
        """The oracle of the same model with these parameters instead of its own; the ledger is shared."""
        return WhiteBoxOracle(self._at(weights))
