"""Min-max attack over domains: the perturbation against weights that follow the hardest (Wang et al. 2021, APGDA)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.families.projected_gradient import ProjectedGradient, ProjectedState
from holdfast.core.cards import Card, parameter
from holdfast.core.errors import UsageError
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.judge.asks import WhiteBoxAsk
from holdfast.numerics.losses import Loss, clipped, pick_loss
from holdfast.numerics.project import project_on_simplex

__all__ = ["MinMax", "MinMaxState"]


@dataclass(frozen=True)
class MinMaxState(ProjectedState):
    """The iterate and its opponent.

    Attributes:
        weight: (n, domains) float64, on the simplex.
    """

    weight: Tensor


@dataclass(frozen=True, kw_only=True)
class MinMax(ProjectedGradient[MinMaxState]):
    """``x <- project(x + step * steepest(grad sum_i w_i loss_i))``, then
    ``w <- simplex(w - rate * (loss + gamma * (w - 1 / K)))``: the weights leave the domains that are fooled already.

    Domains are the rows of a `Domains` model: several models, or one model under several transformations; judge it with
    ``AllOf``. On an ordinary model there is one domain, and this is PGD.
    """

    steps: int = parameter(40, "gradient steps of a restart, at least 1", "ours: as PGD; Wang et al. 2021 make 20")
    loss: str = parameter("margin", "ce, margin or dlr, of each domain", "Wang et al. 2021, section 4: C&W")
    stop: float = parameter(
        50.0, "at which the loss of a domain stops, 0 or more", "Wang et al. 2021, the authors' code: confidence 50"
    )
    rate: float = parameter(
        1 / 40, "step of the weights, 1 / beta, 0 or more; 0 leaves them equal", "Wang et al. 2021, MNIST: beta 40"
    )
    gamma: float = parameter(3.0, "pull of the weights toward 1 / K, 0 or more", "Wang et al. 2021, MNIST")

    card: ClassVar[Card] = Card(
        title="Min-max (APGDA)",
        rows=("E16", "E17", "E18", "T03"),
        paper="Wang, Zhang, Liu, Chen, Xu, Fardad, Li 2021, Adversarial Attack Generation Empowered by Min-Max "
        "Optimization, arXiv:1906.03563",
        section="2.2",
        summary="One perturbation against the worst of several models or transformations, by weights on the simplex.",
        access=Access.WHITE_BOX,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.BUDGET,
        norms=(Norm.L1, Norm.L2, Norm.LINF),
        affine_ratio={Norm.L1: 1.1, Norm.L2: 1.02, Norm.LINF: 1.02},
        failure_modes=(
            "Losses of unlike scale: the domain with the large logits gets all the weight; use loss=dlr.",
            "Weights that follow too fast (a large rate, a small gamma) let the perturbation circle between domains.",
        ),
        checked_by="one domain gives PGD; weights on the simplex; worst domain against equal weights",
    )
    serves_domains: ClassVar[bool] = True

    @override
    def check(self, problem: Problem) -> None:
        super().check(problem)
        if min(self.rate, self.gamma, self.stop) < 0:
            raise UsageError(f"rate, gamma and stop must be at least 0, got {self.rate}, {self.gamma} and {self.stop}")

    @override
    def start(self, ask: WhiteBoxAsk) -> MinMaxState:
        problem = ask.problem
        domains = ask.clean.shape[1] if problem.criterion.domains else 1
        even = problem.set.eps.new_full((len(problem), domains), 1 / domains)
        return MinMaxState(**vars(self.initial(problem)), weight=even)

    @override
    def ascent(self, ask: WhiteBoxAsk, state: MinMaxState) -> tuple[Tensor, MinMaxState]:
        problem = ask.problem
        plain, _ = pick_loss(self.loss, problem.goal, ask.classes)
        loss = clipped(plain, self.stop)

        def weighted(scores: Tensor, y: Tensor, target: Tensor, weight: Tensor) -> Tensor:
            return (weight * _each(loss, scores, y, target)).sum(1)

        weight = state.weight.to(state.x.dtype)
        g = ask.gradient(state.x, weighted, weight)
        return g.grad, replace(state, weight=self._follow(loss, g.scores, problem, state.weight))

    def _follow(self, loss: Loss, scores: Tensor, problem: Problem, weight: Tensor) -> Tensor:
        """The weights after a step toward the domains of least loss."""
        value = _each(loss, scores, problem.y, problem.target).double().nan_to_num(0.0)
        pull = self.gamma * (weight - 1 / weight.shape[1])
        return project_on_simplex(weight - self.rate * (value + pull))


def _each(loss: Loss, scores: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """(m, domains) the loss of each domain; scores are (m, domains, K), or (m, K) of one domain."""
    every = scores if scores.ndim == 3 else scores.unsqueeze(1)
    return torch.stack([loss(s, y, target) for s in every.unbind(1)], dim=1)
