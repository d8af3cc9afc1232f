"""The least file that an attack needs: what someone who knows the paper, and not this house, has to write."""

from dataclasses import dataclass, replace
from typing import ClassVar

from holdfast.attacks import Access, Attack, Card, Formulation, Norm, State, WhiteBoxAsk, parameter
from holdfast.numerics import ascent


@dataclass(frozen=True)
class Newcomer(Attack[WhiteBoxAsk, State]):
    """``x <- project(x + 2 eps / steps * steepest(grad -margin))`` from the clean input."""

    steps: int = parameter(20, "gradient steps, at least 1", "the paper, section 2")

    card: ClassVar[Card] = Card(
        title="Newcomer",
        rows=(),
        paper="Madry et al. 2018, arXiv:1706.06083",
        section="2.2",
        summary="Projected gradient ascent on minus the margin.",
        access=Access.WHITE_BOX,
        formulation=Formulation.BUDGET,
        norms=(Norm.L2, Norm.LINF),
        failure_modes=("It starts once, at the clean input.",),
        checked_by="the contract",
    )

    def start(self, ask: WhiteBoxAsk) -> State:
        return State.at(ask.problem.x)

    def step(self, ask: WhiteBoxAsk, state: State) -> State:
        p, grad = ask.problem, ask.gradient(state.x).grad
        return replace(state, x=ascent.step(p.ball, state.x, grad, p.x, 2 / self.steps * p.flat(p.set.eps).to(grad)))
