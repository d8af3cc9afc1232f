"""Better bounds of parts: Adam on slopes and on the multipliers of splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic

import torch
from torch import Tensor

from holdfast.certifiers.branch_and_bound.passes import chords, evaluate
from holdfast.certifiers.branch_and_bound.reduced import LinearRows, NeuronState, Reduced

__all__ = ["Climb", "ascend"]

_MEAN, _SQUARE = 0.1, 0.001  # how fast Adam's moments follow the gradients
_LOOK = 4  # after so many steps each it is looked who is done


@dataclass(frozen=True, kw_only=True)
class Climb:
    """How far bounds are made better.

    Attributes:
        iterations: passes back and forth, at least 0; one more says how good the last one was.
        step: of slopes; multipliers take as large a part of their activation's coefficient.
        decay: what it is multiplied by at each step.
        depth: how many layers the rows depend on; all if missing.
        target: rows beyond it are left alone.
        until: on the clock of `time.monotonic`.
    """

    iterations: int
    step: float
    decay: float
    depth: int | None = None
    target: float = torch.inf
    until: float = torch.inf


def ascend(reduced: Reduced, rows: LinearRows, state: NeuronState, climb: Climb) -> tuple[Tensor, NeuronState]:
    """Adam on slopes and multipliers, upwards; the best of each row is kept.

    Args:
        reduced: the graph.
        rows: (n, ...).
        state: of n parts; where it starts.
        climb: how far.

    Returns:
        Bounds (n,) and the state that they were found at.
    """
    best = _Best(rows.c.new_full((len(rows.c),), -torch.inf), [t.clone() for t in state.variables])
    index = torch.arange(len(rows.c), device=rows.c.device)
    whole, state = state, state.replaced([t.clone() for t in state.variables])
    given = chords(reduced, state)
    adam = _Adam(reduced.flat.nan_to_num(0.0), state.variables)
    for t in range(1, climb.iterations + 2):
        last = evaluate(reduced, rows, state, given, climb.depth, gradients=t <= climb.iterations)
        best.keep(index, last.bound, state.variables)
        if t > climb.iterations or monotonic() > climb.until:
            break
        if t == 1:  # a multiplier is worth as much as the coefficient of its activation
            size = last.a.abs()
            adam.scale = torch.maximum(size.gather(1, state.cuts.unit), 0.1 * size.mean(1, keepdim=True))
        adam.move(state.variables, last.gradients, t, climb.step * climb.decay ** (t - 1))
        if t % _LOOK == 0 and t < climb.iterations and climb.target < torch.inf:
            left = (~(best.bound[index] > climb.target)).nonzero().squeeze(1)
            if not len(left):
                break
            if 4 * len(left) < 3 * len(index):
                index, rows, state = index[left], rows[left], state.pick(left)
                given = chords(reduced, state)
                adam.pick(left)
    return best.bound, whole.replaced(best.variables)


@dataclass(eq=False)
class _Best:
    """The best bound of each row so far, and the variables that gave it."""

    bound: Tensor
    variables: list[Tensor]

    def keep(self, index: Tensor, bound: Tensor, variables: Sequence[Tensor]) -> None:
        """Takes what is better, of the rows ``index``."""
        better = bound > self.bound[index]
        risen = index[better]
        self.bound[risen] = bound[better]
        for mine, now in zip(self.variables, variables, strict=True):
            mine[risen] = now[better]


class _Adam:
    """Adam on the variables of a state, in place and within their ranges: [flat, 1], at least 0, and [0, 1].

    Args:
        flat: the least slopes.
        variables: slopes, multipliers, alphas.

    Attributes:
        scale: of a step of each multiplier.
    """

    def __init__(self, flat: Tensor, variables: Sequence[Tensor]) -> None:
        self._flat = flat
        self._moments = [(torch.zeros_like(t), torch.zeros_like(t)) for t in variables]
        self.scale = torch.zeros_like(variables[1])

    def pick(self, rows: Tensor) -> None:
        """Goes on with some of the rows."""
        self.scale = self.scale[rows]
        self._moments = [(mean[rows], square[rows]) for mean, square in self._moments]

    def move(self, variables: Sequence[Tensor], gradients: Sequence[Tensor], t: int, rate: float) -> None:
        """The t-th step, from 1 on."""
        for k, (variable, (mean, square)) in enumerate(zip(variables, self._moments, strict=True)):
            if not variable.numel():
                continue
            mean.lerp_(gradients[k], _MEAN)
            square.mul_(1 - _SQUARE).addcmul_(gradients[k], gradients[k], value=_SQUARE)
            move = mean / (square / (1 - (1 - _SQUARE) ** t)).sqrt_().add_(1e-12)
            if k == 1:
                move *= self.scale
            variable.add_(move, alpha=rate / (1 - (1 - _MEAN) ** t))
            if k == 0:
                torch.maximum(variable.clamp_(max=1), self._flat, out=variable)
            elif k == 1:
                variable.clamp_(min=0)
            else:
                variable.clamp_(0, 1)
