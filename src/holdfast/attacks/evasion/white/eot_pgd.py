"""EOT-PGD: projected ascent on the mean gradient of a model that answers at random (Athalye & Sutskever 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from holdfast.attacks.families.projected_gradient import ProjectedGradient, ProjectedState
from holdfast.core.cards import Card, parameter
from holdfast.core.errors import UsageError
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.judge.asks import WhiteBoxAsk
from holdfast.numerics.losses import pick_loss

__all__ = ["EotPGD"]


@dataclass(frozen=True)
class EotPGD(ProjectedGradient[ProjectedState]):
    """PGD whose gradient is the mean of ``draws`` backwards at the same point.

    The randomness is the model's own: `RandomTransform`, dropout or noise at test time, a randomised defence. A point
    counts as adversarial only if most of the step's draws are, so that no lucky draw ends the search.
    """

    loss: str = parameter("margin", "ce, margin or dlr", "ours: a mean of cross-entropies is led by a few draws")
    draws: int = parameter(
        10, "forwards and backwards that a step averages, at least 1", "Athalye & Sutskever 2018: 10 to 30"
    )

    card: ClassVar[Card] = Card(
        title="EOT-PGD",
        rows=("E17", "T03"),
        paper="Athalye, Engstrom, Ilyas, Kwok 2018, Synthesizing Robust Adversarial Examples, arXiv:1707.07397; Athalye, "
        "Carlini, Wagner 2018, arXiv:1802.00420, section 4.2",
        section="2.2",
        summary="PGD on the expected loss over the model's randomness, by the mean gradient of several draws.",
        access=Access.WHITE_BOX,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.BUDGET,
        norms=(Norm.L1, Norm.L2, Norm.LINF),
        affine_ratio={Norm.L1: 1.1, Norm.L2: 1.02, Norm.LINF: 1.02},
        failure_modes=(
            "Few draws: the mean gradient is noise where the answers vary much; its variance falls as 1 / draws.",
            "A majority of the step's own draws can be luck: judge with more, fresh draws, as the referee does.",
            "On a model that answers always the same it is PGD at draws times the price.",
        ),
        checked_by="draws = 1 gives PGD; the variance of the gradient; held-out draws of random transformations",
    )

    @property
    @override
    def votes(self) -> int:
        return self.draws

    @property
    @override
    def passes(self) -> int:
        return self.draws * (self.rounds * (2 * self.steps + 1) + 1)

    @override
    def check(self, problem: Problem) -> None:
        super().check(problem)
        if self.draws < 1:
            raise UsageError(f"draws of {self.card.title} must be at least 1, got {self.draws}")

    @override
    def start(self, ask: WhiteBoxAsk) -> ProjectedState:
        return self.initial(ask.problem)

    @override
    def ascent(self, ask: WhiteBoxAsk, state: ProjectedState) -> tuple[Tensor, ProjectedState]:
        loss, _ = pick_loss(self.loss, ask.problem.goal, ask.classes)
        answer = ask.gradient(self._drawn(state.x), loss)  # points that the budget left out have gradient 0
        count = answer.answered.sum(1).clamp_min(1).to(state.x.dtype)
        return answer.grad.sum(1) / ask.problem.flat(count), state

    @override
    def finalize(self, ask: WhiteBoxAsk, state: ProjectedState) -> None:
        ask.scores(self._drawn(state.x))

    def _drawn(self, x: Tensor) -> Tensor:
        """(n, draws, \\*features) each point as often as it is asked."""
        return x.unsqueeze(1).expand(-1, self.draws, *x.shape[1:])
