"""ZO-signSGD: steps along the sign of a random gradient estimate (Liu, Chen, Chen, Hong 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from holdfast.attacks.families.zeroth import Ascent, AscentParameters, coarse
from holdfast.core.cards import Card, parameter
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.numerics.zeroth import Estimator, OneSided, Signed

__all__ = ["ZOSignSGD"]


@dataclass(frozen=True, kw_only=True)
class ZOSignSGD(Ascent):
    """``x <- project(x + rate * eps * sign(g))``, g the mean of q forward differences along random unit directions."""

    queries: int = parameter(10_000, "most queries of a sample, at least 1", "ours: the limit of Ilyas et al. 2018")
    q: int = parameter(30, "directions of an estimate, at least 1", "BlackboxBench; 9 in Liu et al. 2019")
    mu: float = parameter(0.01, "length of a difference, in widths of the box, above 0", "BlackboxBench")
    relative_step: float = parameter(0.1, "step as a share of eps, in (0, 1]", "ours; the paper tunes it per task")
    patience: int = parameter(
        5, "steps in which the loss must grow, else the step halves; 0: it never does", "Ilyas et al. 2018, code"
    )
    loss: str = parameter("log-margin", "log-margin or ce", "ours: ce is flat where the model is sure")

    card: ClassVar[Card] = Card(
        title="ZO-signSGD",
        rows=("E25", "T03"),
        paper="Liu, Chen, Chen, Hong 2019, signSGD via Zeroth-Order Oracle, ICLR",
        section="2.2",
        summary="Ascent along the sign of the mean of random finite differences.",
        access=Access.SOFT_LABEL,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.BUDGET,
        norms=(Norm.L2, Norm.LINF),
        affine_ratio={Norm.LINF: 1.25},
        failure_modes=(
            "The sign gives a feature of no influence a whole step: with few directions much of the budget is noise.",
            "In l2 a sign step wastes the budget on features that do not matter; NES keeps their sizes.",
        ),
        checked_by="the steps of iterated FGSM for many directions; exact query counts",
    )

    @property
    @override
    def parameters(self) -> AscentParameters:
        return AscentParameters(queries=self.queries, rate=self.relative_step, patience=self.patience, loss=self.loss)

    @override
    def estimator(self, problem: Problem) -> Estimator:
        return Signed(OneSided(self.q, coarse(problem, self.mu), "sphere"))
