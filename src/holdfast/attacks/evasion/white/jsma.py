"""JSMA: pairs of features picked by a saliency map, pushed to the edge of the box (Papernot et al. 2016, algorithm 2)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.attack import Attack, State
from holdfast.attacks.common.boundary import leave_a_class
from holdfast.attacks.common.sparse import finite_box, settle
from holdfast.core.arrays import on_device
from holdfast.core.cards import Card, parameter
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.judge.asks import WhiteBoxAsk
from holdfast.numerics.distance import box

__all__ = ["JSMA", "JSMAState", "best_pair"]


@dataclass(frozen=True, kw_only=True)
class JSMAState(State):
    """The iterate and where it heads.

    Attributes:
        aim: (n,) int64 the class to reach.
        way: (n, \\*features) 1 where a feature was raised, -1 where it was lowered, 0 where it was not touched.
        best: (n, \\*features) the adversarial iterate; x where there is none.
        over: (n,) bool: x is adversarial, or no feature is left to move.
        has_witness: (n,) bool: ``best`` is adversarial.
    """

    aim: Tensor
    way: Tensor
    best: Tensor
    over: Tensor
    has_witness: Tensor


@dataclass(frozen=True, kw_only=True)
class JSMA(Attack[WhiteBoxAsk, JSMAState]):
    """Each step moves the pair of features whose common effect is up on the aim's logit and down on all others',
    largest in product, by theta in one direction, until the class is left (or reached).
    """

    steps: int = parameter(
        100, "pairs moved in a round, at least 1", "ours; the paper's limit of 14.5 % is 56 pairs of MNIST's pixels"
    )
    targets: int = parameter(
        9, "untargeted: nearest classes to head for, one in a round, at least 1", "ours: all classes of MNIST"
    )
    theta: float = parameter(
        1.0, "move of a feature, in widths of the box, above 0", "Papernot et al. 2016, section IV"
    )
    candidates: int = parameter(
        128, "features whose pairs are compared, at least 1", "ours: bounds time and memory; the paper compares all"
    )
    search: int = parameter(10, "forwards of each of two final searches that drop features", "ours; the paper has none")

    card: ClassVar[Card] = Card(
        title="JSMA",
        rows=("E10", "T03"),
        paper="Papernot, McDaniel, Jha, Fredrikson, Celik, Swami 2016, The Limitations of Deep Learning in Adversarial "
        "Settings, arXiv:1511.07528",
        section="2.2",
        summary="Greedy saliency map attack: the pair of features that most helps one class against all others.",
        access=Access.WHITE_BOX,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.MINIMAL_DISTORTION,
        norms=(Norm.L0,),
        affine_ratio={},
        failure_modes=(
            "Greedy: a feature once moved is not taken back but by the final search; sigma-zero needs fewer.",
            "The saliency weighs all other classes alike, also those that are no rivals.",
            "On colour images it works on channels, as the paper's does on grey pixels, and costs two gradients a pair.",
        ),
        checked_by="pairs against brute force over all of them; order among the l0 attacks on real networks",
    )

    @property
    @override
    def rounds(self) -> int:
        return self.targets

    @property
    @override
    def passes(self) -> int:
        return self.rounds * (4 * self.steps + 2 * self.search) + 1

    @override
    def check(self, problem: Problem) -> None:
        super().check(problem)
        if problem.goal is not Goal.TARGETED:
            leave_a_class(self.card.title, problem)
        finite_box(self.card.title, problem)

    @override
    def start(self, ask: WhiteBoxAsk) -> JSMAState:
        problem = ask.problem
        which = on_device(problem.round, problem.x.device)
        if problem.goal is Goal.TARGETED:
            aim, over = problem.target, which > 0
        else:
            rivals = ask.clean.scatter(1, problem.y.unsqueeze(1), -inf)
            order = rivals.argsort(dim=1, descending=True, stable=True)[:, : max(rivals.shape[1] - 1, 1)]
            aim = order.gather(1, which.clamp_max(order.shape[1] - 1).unsqueeze(1)).squeeze(1)
            over = which >= order.shape[1]  # a model with fewer classes has fewer rounds
        return JSMAState.at(
            problem.x,
            aim=aim,
            way=torch.zeros_like(problem.x),
            best=problem.x,
            over=over,
            has_witness=torch.zeros_like(over),
        )

    @override
    def step(self, ask: WhiteBoxAsk, state: JSMAState) -> JSMAState:
        # A sample that is over, if it is not taken out at once, asks nothing new.
        problem = ask.problem
        g = ask.gradient(state.x, _own, target=state.aim)
        others = ask.gradient(state.x, _others, target=state.aim).grad
        hit = g.adversarial & ~state.over
        low, high = (edge.expand_as(state.x).flatten(1) for edge in box(problem.set, problem.x))
        here, way = state.x.flatten(1), state.way.flatten(1)
        toward, against = g.grad.nan_to_num(0.0).flatten(1), -others.nan_to_num(0.0).flatten(1)
        raised = (here < high) & (way >= 0)
        lowered = (here > low) & (way <= 0)
        p, q, gain = best_pair(toward, against, raised, self.candidates)
        p_down, q_down, gain_down = best_pair(-toward, -against, lowered, self.candidates)
        down = gain_down > gain
        sign = torch.where(down, -1.0, 1.0).to(here.dtype).unsqueeze(1)
        pair = torch.stack([torch.where(down, p_down, p), torch.where(down, q_down, q)], dim=1)
        over = state.over | hit | (torch.maximum(gain, gain_down) == -inf)
        chosen = torch.zeros_like(here).scatter(1, pair, 1.0) * (~over).to(here.dtype).unsqueeze(1) * sign
        width = (problem.set.upper - problem.set.lower).expand_as(state.x).flatten(1)
        moved = torch.minimum(torch.maximum(here + self.theta * width * chosen, low), high)
        return replace(
            state,
            x=moved.view_as(state.x),
            way=torch.where(chosen != 0, chosen, way).view_as(state.x),
            best=torch.where(problem.flat(hit), g.x, state.best),
            over=over,
            has_witness=state.has_witness | hit,
        )

    @override
    def finished(self, state: JSMAState) -> Tensor:
        return state.over

    @override
    def finalize(self, ask: WhiteBoxAsk, state: JSMAState) -> None:
        x_adv = torch.where(ask.problem.flat(state.has_witness), state.best, state.x)
        settle(ask, x_adv, state.has_witness, self.search)


def best_pair(toward: Tensor, against: Tensor, free: Tensor, candidates: int) -> tuple[Tensor, Tensor, Tensor]:
    """The pair of features with the largest product of summed effects, both sums positive.

    A feature may stand alone where no pair is better. Where no pair has both sums positive, the one with the largest
    smaller sum is taken, so that the search does not stop short; its gain is negative. Of more features than
    ``candidates``, those are compared whose effects, each over its largest, have the largest sum.

    Args:
        toward: (n, d) effect of each feature on the aim's logit.
        against: (n, d) minus its effect on the sum of the others.
        free: (n, d) bool: which may be moved.
        candidates: features whose pairs are compared.

    Returns:
        (n,) int64 both features, equal where one stands alone, and (n,) the gain; -inf where nothing is free.

    Example:
        >>> toward, against = torch.tensor([[3.0, 1.0, -1.0]]), torch.tensor([[-1.0, 2.0, 4.0]])
        >>> p, q, gain = best_pair(toward, against, torch.ones(1, 3).bool(), 3)
        >>> sorted([p.item(), q.item()]), gain.item()  # (3 - 1) * (-1 + 4), more than (3 + 1) * (2 - 1)
        ([0, 2], 6.0)
    """
    k = min(max(candidates, 1), toward.shape[1])
    tiny = torch.finfo(toward.dtype).tiny
    scaled = toward / toward.abs().amax(1, keepdim=True).clamp_min(tiny)
    scaled = scaled + against / against.abs().amax(1, keepdim=True).clamp_min(tiny)
    at = scaled.masked_fill(~free, -inf).topk(k, dim=1).indices
    a, b, open_ = (t.gather(1, at) for t in (toward, against, free))
    twice = torch.eye(k, dtype=a.dtype, device=a.device) + 1  # a feature alone counts once
    one, other = ((t.unsqueeze(2) + t.unsqueeze(1)) / twice for t in (a, b))
    least = torch.minimum(one, other)
    # Below every true gain, and in order: the less harm the better.
    gain = torch.where(least > 0, one * other, -1 - (-least).clamp_min(0))
    gain = gain.masked_fill(~(open_.unsqueeze(2) & open_.unsqueeze(1)), -inf).flatten(1)
    value, best = gain.max(1)
    return (
        at.gather(1, (best // k).unsqueeze(1)).squeeze(1),
        at.gather(1, (best % k).unsqueeze(1)).squeeze(1),
        value,
    )


def _own(scores: Tensor, y: Tensor, aim: Tensor) -> Tensor:
    return scores.gather(1, aim.unsqueeze(1)).squeeze(1)


def _others(scores: Tensor, y: Tensor, aim: Tensor) -> Tensor:
    return scores.sum(1) - _own(scores, y, aim)
