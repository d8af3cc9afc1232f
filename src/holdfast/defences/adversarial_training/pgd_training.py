"""PGD adversarial training: minimise the loss at the worst point that PGD finds in the set (Madry et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from holdfast.core.cards import Card, parameter, refuse
from holdfast.core.errors import UsageError
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm, Phase
from holdfast.defences.training_defence import TrainingDefence
from holdfast.numerics.ascent import step
from holdfast.numerics.evaluation import evaluation_mode
from holdfast.numerics.losses import cross_entropy
from holdfast.numerics.project import linf_bounds
from holdfast.numerics.sampling import uniform_in_ball
from holdfast.training.batch import Batch

__all__ = ["PGDTraining"]


@dataclass(frozen=True, kw_only=True)
class PGDTraining(TrainingDefence):
    """The loss of a batch, and how a validation batch is scored; `holdfast.training.loop.fit` does the rest.

    The inner search sees the model in evaluation mode, so that batch norm's statistics are those that an attacker meets
    and only the outer pass updates them; it differentiates with respect to the input alone.

    Example:
        >>> from holdfast.data import load_data
        >>> from holdfast.models.zoo import digits_mlp
        >>> from holdfast.training.loop import fit
        >>> from holdfast.training.settings import TrainingSettings
        >>> defence = PGDTraining(eps=Fraction(1, 10), steps=2)
        >>> done = fit(digits_mlp(), load_data("digits:train").head(64), defence.loss, score=defence.score,
        ...            settings=TrainingSettings(epochs=1))
        >>> done.best.number
        1
    """

    norm: Norm = parameter(Norm.LINF, "distortion that is bounded: linf, l2 or l1", "Madry et al. 2018, section 5")
    eps: Fraction = parameter(
        Fraction(8, 255), "size of the set, above 0; train at the size that is audited", "Madry et al. 2018, CIFAR-10"
    )
    steps: int = parameter(
        10, "gradient steps of the inner search, at least 1", "Rice et al. 2020 (Madry et al. 2018: 7)"
    )
    relative_step: float = parameter(0.25, "step as a share of eps", "Madry et al. 2018, CIFAR-10: 2/255 of 8/255")
    random_start: bool = parameter(True, "start the inner search at a uniform point of the set", "Madry et al. 2018")
    sparsity: float = parameter(0.05, "l1: share of the features that a step moves", "ours, as in pgd")
    low: float = parameter(0.0, "least value of a feature", "images in [0, 1]")
    high: float = parameter(1.0, "largest value of a feature", "images in [0, 1]")

    card: ClassVar[Card] = Card(
        title="PGD adversarial training",
        rows=("D08",),
        paper="Madry, Makelov, Schmidt, Tsipras, Vladu 2018, Towards Deep Learning Models Resistant to Adversarial "
        "Attacks, arXiv:1706.06083",
        section="3.1",
        summary="Trains on the worst inputs that a short PGD finds in the set, the min-max problem (4) of the survey.",
        phase=Phase.TRAINING,
        norms=(Norm.L1, Norm.L2, Norm.LINF),
        failure_modes=(
            "Robust overfitting: robust accuracy on new data falls while training goes on (Rice et al. 2020); the loop "
            "therefore keeps the epoch that was best on a validation split.",
            "Catastrophic overfitting: with one or two large steps the model learns to fool the inner search and falls "
            "to a stronger one (Wong et al. 2020); keep steps at 7 or more, and audit the result.",
            "Clean accuracy falls; the larger eps, the more.",
        ),
        checked_by="robust accuracy gained on the digits under an audit that did not train it",
    )

    def __post_init__(self) -> None:
        refuse(self.card, self.norm)
        if not self.eps > 0 or self.steps < 1 or not self.relative_step > 0:
            raise UsageError(
                f"adversarial training needs eps, steps and step above 0, got {self.eps}, {self.steps} and "
                f"{self.relative_step}"
            )

    @override
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross-entropy at the points that the inner search found; differentiable in the parameters."""
        return F.cross_entropy(model(self.worst(model, batch)), batch.y)

    @override
    def score(self, model: nn.Module, batch: Batch) -> Tensor:
        """(n,) bool: the prediction is right on the clean input and where the inner search ends."""
        worst = self.worst(model, batch)
        with torch.no_grad():
            return (model(batch.x).argmax(1) == batch.y) & (model(worst).argmax(1) == batch.y)

    def worst(self, model: nn.Module, batch: Batch) -> Tensor:
        """(n, \\*features) where the inner search ends; the model's mode and gradients are left as they are."""
        x, y = batch.x, batch.y
        ball = LpBall.uniform(self.norm, self.eps, len(x), self.low, self.high, device=x.device, dtype=x.dtype)
        bounds = linf_bounds(ball, x) if ball.norm is Norm.LINF else None
        length, none = self.relative_step * float(self.eps), torch.full_like(y, -1)
        at = uniform_in_ball(ball, x, batch.draws, "start") if self.random_start else x
        with evaluation_mode(model), torch.enable_grad():
            for _ in range(self.steps):
                leaf = at.detach().requires_grad_()
                (grad,) = torch.autograd.grad(cross_entropy(model(leaf), y, none).sum(), leaf)
                at = step(ball, leaf.detach(), grad, x, length, sparsity=self.sparsity, bounds=bounds)
        return at
