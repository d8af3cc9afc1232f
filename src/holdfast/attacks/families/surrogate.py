"""A model of the attacker's own, searched by momentum steps as a part of another attack."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from typing_extensions import override

from holdfast.attacks.common.gradient_transform import GradientTransform
from holdfast.attacks.families.momentum import MomentumSteps
from holdfast.core.problem import Problem
from holdfast.judge.inquiry import Inquiry
from holdfast.judge.oracles import WhiteBoxOracle
from holdfast.judge.units import ScoreUnits
from holdfast.numerics.evaluation import evaluating

__all__ = ["PlainMomentum", "searched"]


@dataclass(frozen=True)
class PlainMomentum(MomentumSteps):
    """MI-FGSM as a part of other attacks."""

    @property
    @override
    def transform(self) -> GradientTransform:
        return GradientTransform()


def searched(model: nn.Module, problem: Problem, steps: int) -> Tensor:
    """(n, \\*features) the last iterates of MI-FGSM on a model of one's own; nobody else is asked."""
    alone = replace(problem, rows=torch.arange(len(problem), device=problem.x.device))
    attack = PlainMomentum(steps=steps)
    ask = WhiteBoxOracle(Inquiry.of(model, alone, None, units=ScoreUnits(alone, None))).on(alone)
    with evaluating(model):
        state = attack.start(ask)
        for _ in range(steps):
            state = replace(attack.step(ask, state), step=state.step + 1)
    return state.x
