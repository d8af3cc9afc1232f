"""Checks that an attack does not look away, whatever the model's scores mean and the units of its inputs are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from holdfast.core.cards import parameters_of
from holdfast.core.criterion import Misclassified, WithDetector
from holdfast.core.errors import UnsupportedError
from holdfast.core.problem import Problem
from holdfast.core.sets import LpBall
from holdfast.core.threat import Access, Norm
from holdfast.judge.outcome import Outcome
from holdfast.testing._attack_case import EPS, SAMPLES, AttackCase, breaks, of_digits
from holdfast.testing.contract import ContractError, require
from holdfast.testing.toys import digits, net

__all__ = ["MANNERS"]

_KAPPA = 2.0
_FEW = 8
_FURTHER = 1.5  # found within the budget, distances say little: attacks settle at their first witness


class _Told(nn.Module):
    """The network of digits behind something that changes what goes in or what comes out."""

    def __init__(
        self, before: Callable[[Tensor], Tensor] = lambda x: x, after: Callable[[Tensor], Tensor] = lambda s: s
    ):
        super().__init__()
        self.model, self.before, self.after = net(), before, after

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Scores (n, K)."""
        return self.after(self.model(self.before(x)))


def _with(*more: float) -> Callable[[Tensor], Tensor]:
    """Appends the same scores to every row."""
    return lambda s: torch.cat([s, s.new_tensor(more).expand(len(s), -1)], 1)


def _fewer(base: Outcome, out: Outcome, what: str) -> None:
    a, b = int(base.found.sum()), int(out.found.sum())
    require(b >= a - 1, f"{what}: {b} samples are broken where {a} are without")


def _masked_classes(case: AttackCase) -> None:
    """Classes that can never win say nothing about the others."""
    problem = of_digits(case)
    base = case.run(problem)
    for more in ((-1e9, -1e9), (-torch.inf,)):
        _fewer(base, case.run(problem, _Told(after=_with(*more))), f"with classes whose score is always {more[0]}")


def _units(case: AttackCase) -> None:
    """Inputs in [0, 256], or in [-1, 1], are those in [0, 1]: steps and widths count in the box."""
    x, y = digits(SAMPLES)
    base = case.run(Problem.of(x, y, case.ball(SAMPLES)))
    for unit, shift in ((256.0, 0.0), (2.0, -1.0)):
        eps = EPS[case.norm] * (1.0 if case.norm is Norm.L0 else unit)
        ball = LpBall.uniform(case.norm, eps, SAMPLES, shift, shift + unit, dtype=torch.float64)
        model = _Told(lambda x, unit=unit, shift=shift: (x - shift) / unit)
        out = case.run(Problem.of(x * unit + shift, y, ball), model)
        what = f"inputs in [{shift:g}, {shift + unit:g}]"
        _fewer(base, out, what)
        if shift == 0:  # a power of two: nothing rounds
            require(torch.equal(base.x * unit, out.x), f"{what}: other witnesses than those in [0, 1]")


def _scale(case: AttackCase) -> None:
    """All logits times a power of two are the same decisions: none is lost, and what is found is about as near.

    The labels alone do not show the scale, so this says nothing of attacks on those. A distance may differ: logits of
    usual size are told as they are, others in a unit that brings them there, in which a weight or a softmax that depends on
    the size is another one, as it is from one usual model to the next.
    """
    if case.card.access is Access.HARD_LABEL:
        return
    x, y = digits(_FEW)
    problem = Problem.of(x, y, case.ball(_FEW, 2 * EPS[case.norm]))
    base = case.run(problem)
    for power in (-20, 20):
        out = case.run(problem, _Told(after=lambda s, by=2.0**power: s * by))
        what = f"logits times 2^{power}"
        _fewer(base, out, what)
        far, near = (o.distance[base.found & out.found].sum() for o in (out, base))
        require(far <= _FURTHER * near, f"{what}: witnesses are {float(far / near):.3g} times as far as without")


def _kappa(case: AttackCase) -> None:
    """A confidence that was asked for is kept, and does not stop the search."""
    if "kappa" not in {p.name for p in parameters_of(type(case.small))}:
        return
    small: Any = case.small
    asked = replace(case, small=replace(small, kappa=_KAPPA))
    x, y = digits(SAMPLES)
    problem = Problem.of(x, y, case.ball(SAMPLES, 4 * EPS[case.norm]))
    base, out = case.run(problem), asked.run(problem)
    net().eval()
    with torch.no_grad():
        margin = problem.criterion.margin(net()(out.x), y, problem.target)[out.found & (out.distance > 0)]
    net().train()
    wanted = int((base.found & (base.distance > 0)).sum())
    require(
        2 * len(margin) >= wanted > 0,
        f"{len(margin)} of {wanted} samples that break reach a margin of kappa = {_KAPPA}: the search must go on until then",
    )
    require(
        (margin <= -_KAPPA + 1e-9).all(), f"a witness has a margin of {float(margin.max()):.3g} at kappa = {_KAPPA}"
    )


def _detector(case: AttackCase) -> None:
    """A detector is obeyed by an attack that serves it, and refused by one that does not."""
    x, y = digits(SAMPLES)
    problem = Problem.of(x, y, case.ball(SAMPLES), criterion=WithDetector(Misclassified()))
    quiet, loud = _Told(after=_with(-1.0)), _Told(after=_with(1.0))
    if not case.small.serves_detectors:
        try:
            case.run(problem, quiet)
        except UnsupportedError:
            return
        raise ContractError("it serves no detector, and must refuse one in `check`")
    require(breaks(case.run(problem, quiet)), "nothing found where the detector never rings")
    require(not case.run(problem, loud).found.any(), "found something where the detector rings at every input")


MANNERS: dict[str, Callable[[AttackCase], None]] = {
    "masked-classes": _masked_classes,
    "units": _units,
    "scale": _scale,
    "kappa": _kappa,
    "detector": _detector,
}
"""What a check of this module is called, and the check."""
