"""Finite differences with query reduction: FGSM and its iteration on estimated gradients (Bhagoji et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from holdfast.attacks.families.zeroth import Ascent, AscentParameters, coarse
from holdfast.core.cards import Card, parameter
from holdfast.core.errors import UsageError
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.numerics.zeroth import Components, Coordinates, Estimator, Groups

__all__ = ["FiniteDifferences"]


@dataclass(frozen=True, kw_only=True)
class FiniteDifferences(Ascent):
    """Symmetric differences of the logit loss along random groups of features, or along given principal components;
    one step of length eps, or several.
    """

    queries: int = parameter(10_000, "most queries of a sample, at least 1", "ours; 2 ceil(d / group) + 1 are a step")
    steps: int = parameter(10, "steps, at least 1; 1 is the single-step form", "Bhagoji et al. 2018, CIFAR-10")
    group: int | None = parameter(
        None,
        "features that share a difference, at least 1; None: as few as the queries allow for all steps",
        "ours; Bhagoji et al. 2018 vary it",
    )
    components: Tensor | None = parameter(
        None,
        "(k, *features) orthogonal directions instead of groups; see `principal_components`",
        "Bhagoji et al. 2018 use the components of the training data",
    )
    h: float = parameter(0.01, "length of a difference, in widths of the box, above 0", "Bhagoji et al. 2018")
    relative_step: float | None = parameter(
        None, "step as a share of eps; None: 1 for one step, else 2.5 / steps", "Madry et al. 2018"
    )
    momentum: float = parameter(0.0, "what the mean of the estimates keeps, in [0, 1)", "Bhagoji et al. 2018: none")
    loss: str = parameter("log-margin", "log-margin (logit loss) or ce", "Bhagoji et al. 2018: the stronger of the two")

    card: ClassVar[Card] = Card(
        title="Finite differences",
        rows=("E21", "T03"),
        paper="Bhagoji, He, Li, Song 2018, Practical Black-box Attacks on Deep Neural Networks using Efficient Query "
        "Mechanisms, ECCV, arXiv:1712.09491",
        section="2.2",
        summary="Gradient ascent on symmetric differences along groups of features or principal components.",
        access=Access.SOFT_LABEL,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.BUDGET,
        norms=(Norm.L2, Norm.LINF),
        affine_ratio={Norm.LINF: 1.05, Norm.L2: 1.05},
        failure_modes=(
            "A step costs 2 d / group queries, too many for large images without components.",
            "The features of a group move together, whatever their own gradients.",
        ),
        checked_by="FGSM for groups of one; exact query counts",
    )

    @property
    @override
    def parameters(self) -> AscentParameters:
        step = self.relative_step or (1.0 if self.steps == 1 else 2.5 / self.steps)
        return AscentParameters(queries=self.queries, rate=step, momentum=self.momentum, loss=self.loss)

    @property
    @override
    def iterations(self) -> int:
        return self.steps

    @property
    @override
    def passes(self) -> int:
        return self.queries

    @override
    def check(self, problem: Problem) -> None:
        super().check(problem)
        if self.components is not None and self.components.shape[1:] != problem.x.shape[1:]:
            raise UsageError(
                f"components of shape {tuple(self.components.shape[1:])} do not fit inputs of "
                f"{tuple(problem.x.shape[1:])}"
            )

    @override
    def estimator(self, problem: Problem) -> Estimator:
        h = coarse(problem, self.h)
        if self.components is not None:
            return Components(self.components, h)
        size = self.group or self._fitting(prod(problem.x.shape[1:]))
        return Coordinates(h) if size == 1 else Groups(size, h)

    def _fitting(self, d: int) -> int:
        """Features of a group with which all steps, or as many as can be, fit the queries."""
        pairs = (self.queries - 1) // self.steps // 2 - 1
        return -(-d // max(1, pairs))
