"""What an attack asks with: an oracle bound to the samples that the attack works on.

    HardLabelAsk  is a point adversarial, and what is its label
    SoftLabelAsk  + log-probabilities, and losses of them
    WhiteBoxAsk   + logits, gradients, Jacobians, features

Access is a type: an ask has no method beyond its power. Whose row a point is, the label and the target, the criterion, the
grid of valid values and whether a budget left the point unanswered are the ask's business and not the attack's.

Points are (n, \\*features), one of each sample, or (n, q, \\*features), q of each; answers have the same first dimensions. On a
set with a grid the model is asked about the nearest valid point, rounded toward the clean input: `x` of the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from holdfast.core.problem import Problem
from holdfast.judge.gradients import Gradient, Jacobian
from holdfast.numerics.losses import Loss
from holdfast.numerics.project import snap_to_grid

__all__ = [
    "GradientAnswer",
    "GradientSource",
    "HardLabelAsk",
    "JacobianAnswer",
    "LabelAnswer",
    "LabelSource",
    "ScoreAnswer",
    "ScoreSource",
    "SoftLabelAsk",
    "WhiteBoxAsk",
    "negative_margin",
]


class LabelSource(Protocol):
    """What answers a `HardLabelAsk`: flat rows x (m, \\*features) with ``index`` (m,), the sample of each."""

    labels: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    best: Callable[[Tensor], tuple[Tensor, Tensor]]
    left: Callable[[Tensor], Tensor]

    @property
    def classes(self) -> int:
        """K."""
        ...


class ScoreSource(LabelSource, Protocol):
    """What answers a `SoftLabelAsk`."""

    log_probs: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    clean: Callable[[Tensor], Tensor]


class GradientSource(ScoreSource, Protocol):
    """What answers a `WhiteBoxAsk`."""

    logits: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    gradient: Callable[..., Gradient]
    jacobian: Callable[[Tensor, Tensor, Tensor], Jacobian]
    features: Callable[[Tensor, Tensor, str], tuple[Tensor, Tensor]]

    def at(self, weights: Mapping[str, Tensor]) -> GradientSource:
        """The same model with other weights."""
        ...


def negative_margin(problem: Problem) -> Loss:
    """How far an answer is past the boundary: minus the criterion's margin, for any criterion there is."""
    return lambda scores, y, target: -problem.criterion.margin(scores, y, target)


def _each(points: Tensor, problem: Problem, *values: Tensor) -> list[Tensor]:
    """Per-sample values, one for each point in a row."""
    if points.ndim == problem.x.ndim:
        return list(values)
    return [v.repeat_interleave(points.shape[1], 0) for v in values]


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelAnswer:
    """Labels of points.

    Attributes:
        problem: the samples that were asked about.
        x: the points as the model was asked about them, on the grid if there is one.
        labels: (n,) or (n, q) int64 the best classes; 0 where there is no answer.
        answered: bool, likewise: no budget left the point out.
    """

    problem: Problem
    x: Tensor
    labels: Tensor
    answered: Tensor

    @property
    def adversarial(self) -> Tensor:
        """(n,) or (n, q) bool: the criterion holds; False where there is no answer."""
        y, target = _each(self.x, self.problem, self.problem.y, self.problem.target)
        yes = self.problem.criterion.holds_label(self.labels.flatten(), y, target)
        return yes.view_as(self.answered) & self.answered


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreAnswer:
    """Scores of points.

    Attributes:
        problem: the samples that were asked about.
        x: the points as the model was asked about them, on the grid if there is one.
        scores: (n, K) or (n, q, K) log-probabilities of a `SoftLabelAsk`, logits of a `WhiteBoxAsk`; 0 where there is no
            answer.
        answered: (n,) or (n, q) bool: no budget left the point out.
    """

    problem: Problem
    x: Tensor
    scores: Tensor
    answered: Tensor

    @property
    def adversarial(self) -> Tensor:
        """(n,) or (n, q) bool: adversarial beyond rounding, which is what makes a witness; False where there is no answer."""
        return self._judged(self.problem.criterion.certain) & self.answered

    @property
    def margin(self) -> Tensor:
        """(n,) or (n, q) the criterion's margin, negative where a point is adversarial."""
        return self._judged(self.problem.criterion.margin)

    @property
    def unsure(self) -> Tensor:
        """(n,) or (n, q) how far rounding may move the margin: a search that ends nearer to the edge has crossed nothing."""
        return self._judged(self.problem.criterion.unsure)

    def losses(self, loss: Loss | None = None) -> Tensor:
        """(n,) or (n, q) float64 a loss of the scores, minus the margin by default; not a number where there is no answer."""
        value = self._judged(loss or negative_margin(self.problem)).double()
        return value.masked_fill(~self.answered, torch.nan)

    def _judged(self, of: Loss) -> Tensor:
        y, target = _each(self.x, self.problem, self.problem.y, self.problem.target)
        if self.answered.ndim == 1:
            return of(self.scores, y, target)
        return of(self.scores.flatten(0, 1), y, target).view_as(self.answered)


@dataclass(frozen=True, kw_only=True, slots=True)
class GradientAnswer(ScoreAnswer):
    """Scores of points, a loss there and its gradient.

    Attributes:
        value: (n,) or (n, q) the loss.
        grad: like x, its gradient with respect to the input; 0 where there is no answer.
    """

    value: Tensor
    grad: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class JacobianAnswer(ScoreAnswer):
    """Scores of points and gradients of some of them.

    Attributes:
        grad: (n, k, \\*features) gradients of the k chosen logits.
    """

    grad: Tensor


class HardLabelAsk:
    """Asks for the best class and nothing else.

    Attributes:
        problem: the samples.
    """

    def __init__(self, oracle: LabelSource, problem: Problem, *, snaps: bool = True) -> None:
        """Binds an oracle to samples; the engine does it for attacks.

        Args:
            oracle: answers.
            problem: the samples; ``problem.rows`` says where they stand at the oracle.
            snaps: points are put on the grid, if the set has one.
        """
        self.problem = problem
        self._oracle, self._snaps = oracle, snaps

    @property
    def classes(self) -> int:
        """K, the number of classes."""
        return self._oracle.classes

    @property
    def best(self) -> tuple[Tensor, Tensor]:
        """The nearest witness known of each sample (its clean input if none) and (n,) float64 its distance (inf if none)."""
        return self._oracle.best(self.problem.rows)

    @property
    def left(self) -> Tensor:
        """(n,) int64: points that may still be asked of each sample."""
        return self._oracle.left(self.problem.rows)

    def at(self, rows: np.ndarray) -> Self:
        """An ask about some of the samples: ``rows`` are host integers, and may repeat."""
        return type(self)(self._oracle, self.problem.select(rows), snaps=self._snaps)

    @property
    def as_given(self) -> Self:
        """The same ask, which takes points as they are: those that are valid already, and questions about the model between
        valid points, whose answers are no witnesses.
        """
        return type(self)(self._oracle, self.problem, snaps=False)

    def valid(self, points: Tensor) -> Tensor:
        """Points as the model is asked about them: on the grid, if there is one, rounded toward the clean input."""
        p = self.problem
        if p.set.grid is None or not self._snaps:
            return points
        if points.ndim == p.x.ndim:
            return snap_to_grid(p.set, points, p.x)
        sample = torch.arange(len(p), device=points.device).repeat_interleave(points.shape[1])
        return snap_to_grid(p.set.select(sample), points.flatten(0, 1), p.x[sample]).view_as(points)

    def labels(self, points: Tensor) -> LabelAnswer:
        """Asks for the best classes."""
        x, flat, rows = self._flat(points)
        labels, answered = self._oracle.labels(flat, rows)
        shape = points.shape[: points.ndim - self.problem.x.ndim + 1]
        return LabelAnswer(problem=self.problem, x=x, labels=labels.view(shape), answered=answered.view(shape))

    def adversarial(self, points: Tensor) -> Tensor:
        """(n,) or (n, q) bool: whether points are adversarial; False where a budget left them unanswered."""
        return self.labels(points).adversarial

    def _flat(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Points as they are asked about, the same in a row, and the row of each at the oracle."""
        x = self.valid(points)
        (rows,) = _each(x, self.problem, self.problem.rows)
        return x, x if x.ndim == self.problem.x.ndim else x.flatten(0, 1), rows


class SoftLabelAsk(HardLabelAsk):
    """Asks for log-probabilities too; classes that the deployment does not show are -inf."""

    def __init__(self, oracle: ScoreSource, problem: Problem, *, snaps: bool = True) -> None:
        """Binds an oracle to samples."""
        super().__init__(oracle, problem, snaps=snaps)
        self._scores = oracle

    @property
    def clean(self) -> Tensor:
        """(n, K) scores of the clean inputs, asked once for all samples of a run."""
        return self._scores.clean(self.problem.rows)

    def scores(self, points: Tensor) -> ScoreAnswer:
        """Asks for log-probabilities."""
        x, flat, rows = self._flat(points)
        return self._answer(points, x, *self._scores.log_probs(flat, rows))

    def losses(self, points: Tensor, loss: Loss | None = None) -> Tensor:
        """(n,) or (n, q) float64 a loss of the scores at points; not a number where a budget left them unanswered.

        Args:
            points: (n, \\*features) or (n, q, \\*features).
            loss: of scores, labels and targets; minus the criterion's margin by default.
        """
        return self.scores(points).losses(loss)

    def _answer(self, points: Tensor, x: Tensor, scores: Tensor, answered: Tensor) -> ScoreAnswer:
        shape = points.shape[: points.ndim - self.problem.x.ndim + 1]
        scores = scores if len(shape) == 1 else scores.view(*shape, *scores.shape[1:])
        return ScoreAnswer(problem=self.problem, x=x, scores=scores, answered=answered.view(shape))


class WhiteBoxAsk(SoftLabelAsk):
    """Asks for logits and for gradients with respect to the input; parameters, mode and buffers are never touched."""

    def __init__(self, oracle: GradientSource, problem: Problem, *, snaps: bool = True) -> None:
        """Binds an oracle to samples."""
        super().__init__(oracle, problem, snaps=snaps)
        self._model = oracle

    @override
    def scores(self, points: Tensor) -> ScoreAnswer:
        """Asks for logits."""
        x, flat, rows = self._flat(points)
        return self._answer(points, x, *self._model.logits(flat, rows))

    def gradient(
        self, points: Tensor, loss: Callable[..., Tensor] | None = None, *more: Tensor, target: Tensor | None = None
    ) -> GradientAnswer:
        """Asks for a loss and its gradient, one forward and one backward a point.

        Args:
            points: (n, \\*features) or (n, q, \\*features).
            loss: called ``loss(scores, y, target, *more)``; minus the criterion's margin by default. One with ``layers``
                (`holdfast.numerics.losses.OnFeatures`) reads features too.
            more: (n, ...) what else the loss reads of each sample.
            target: (n,) int64 the class that the loss heads for, where it is not the problem's own.

        Example:
            >>> from holdfast.core.sets import LpBall
            >>> from holdfast.core.threat import Access, Norm
            >>> from holdfast.judge.archive import Keep
            >>> from holdfast.judge.inquiry import Inquiry
            >>> p = Problem.of(torch.tensor([[3.0, 4.0]]), torch.tensor([0]), LpBall.uniform(Norm.L2, 1.0, 1, -9.0, 9.0))
            >>> oracle = Inquiry.of(lambda scores: scores, p).oracle(Access.WHITE_BOX)
            >>> g = oracle.on(p).gradient(p.x)
            >>> g.value.item(), g.grad.tolist(), g.adversarial.item()
            (1.0, [[-1.0, 1.0]], True)
        """
        p = self.problem
        x, flat, rows = self._flat(points)
        read = _each(x, p, p.y, p.target if target is None else target, *more)
        scores, value, grad, answered = self._model.gradient(flat, rows, loss or negative_margin(p), *read)
        if flat is not x:
            shape = x.shape[:2]
            scores, value, grad = scores.view(*shape, *scores.shape[1:]), value.view(shape), grad.view_as(x)
            answered = answered.view(shape)
        return GradientAnswer(problem=p, x=x, scores=scores, answered=answered, value=value, grad=grad)

    def jacobian(self, x: Tensor, classes: Tensor) -> JacobianAnswer:
        """Asks for the gradients of the logits at ``classes`` (n, k), one forward and k backwards a sample."""
        x = self.valid(x)
        scores, grad, answered = self._model.jacobian(x, self.problem.rows, classes)
        return JacobianAnswer(problem=self.problem, x=x, scores=scores, answered=answered, grad=grad)

    def features(self, x: Tensor, layer: str) -> tuple[Tensor, Tensor]:
        """The output (n, ...) of the module named ``layer``, differentiable if gradients are on, and (n,) who was answered."""
        return self._model.features(self.valid(x), self.problem.rows, layer)

    def with_weights(self, weights: Mapping[str, Tensor]) -> WhiteBoxAsk:
        """The ask of the same model with these parameters instead of its own; the ledger is shared."""
        return WhiteBoxAsk(self._model.at(weights), self.problem, snaps=self._snaps)
