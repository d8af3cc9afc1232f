"""What an attack is asked to solve, for a batch of samples."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from holdfast.core.arrays import on_device, outside_inference_mode, plain, whole_numbers
from holdfast.core.criterion import Criterion, Misclassified, Targeted
from holdfast.core.draws import SampleDraws
from holdfast.core.errors import DataError, UsageError
from holdfast.core.levels import on_levels
from holdfast.core.sets import LpBall
from holdfast.core.threat import Goal

__all__ = ["Problem"]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Samples, criterion and set; the first dimension of all tensors is the sample.

    Attributes:
        x: (n, \\*features) clean inputs.
        y: (n,) int64 labels.
        target: (n,) int64 targets; -1 where there is none.
        criterion: when an answer is adversarial.
        set: where a perturbed input may lie.
        ids: (n,) int64 on the host, the sample's row in its data set; keys the draws.
        rows: (n,) int64, the sample's row in its chunk: the index that oracle calls take.
        round: (n,) int64 on the host, the restart or target round of each sample.
        draws: keyed draws of these samples in these rounds; None until an engine binds them.
        unit: what a feature value of 1 stands for in the data; an attack counts in it whatever the range of the data.
    """

    x: Tensor
    y: Tensor
    target: Tensor
    criterion: Criterion
    set: LpBall
    ids: np.ndarray
    rows: Tensor
    round: np.ndarray
    draws: SampleDraws | None = None
    unit: float = 1.0

    @classmethod
    def of(
        cls,
        x: Tensor | np.ndarray,
        y: Tensor | np.ndarray,
        set: LpBall,
        *,
        target: Tensor | np.ndarray | None = None,
        criterion: Criterion | None = None,
        ids: object = None,
    ) -> Problem:
        """A problem from its parts; untargeted without a target.

        Arrays are taken as tensors; labels and targets of any integer type, or floats that are whole, as int64.

        Args:
            x: (n, \\*features) clean inputs, inside the set's box; with a grid, what is off a level by rounding is put on it.
            y: (n,) labels from 0 on; whether they are below K is seen when the model first answers.
            set: where a perturbed input may lie.
            target: (n,) targets, none of them the label.
            criterion: when an answer is adversarial; by default another class than y, or the target.
            ids: (n,) what keys the draws; by default 0 to n - 1.

        Raises:
            DataError: x is not a finite floating tensor inside the box, or labels are not (n,) whole numbers.
            UsageError: the sizes do not agree, or a target is missing, of no class, or the label.
        """
        with outside_inference_mode():  # what is made here must be fit for autograd
            x = plain(x)
            n = len(x)
            _check_inputs(x, set)
            if len(set.eps) != n:
                raise UsageError(f"the set has {len(set.eps)} radii for {n} samples; give one for each")
            set = set.to(x.device)
            x = on_levels(set, x)
            if not bool((set.eps >= 0).all()):
                raise UsageError("a radius of the set is negative or not a number; eps must be at least 0")
            kind = criterion or (Misclassified() if target is None else Targeted())
            y = plain(y) if not kind.counts_classes else whole_numbers(y, n, "labels")
            if y.shape != (n,):
                raise DataError(f"a regression has one number for each of {n} samples, got the shape {tuple(y.shape)}")
            y = y.to(x.device)
            if kind.counts_classes and bool((y < 0).any()):
                raise DataError(
                    f"labels must count from 0, got {int(y.min())}; mark no sample by a negative label, leave it out"
                )
            t = _targets(target, y, kind)
            names = np.arange(n) if ids is None else np.asarray(ids, dtype=np.int64)
            if names.shape != (n,):
                raise UsageError(f"ids must be {n} integers, one for each sample, got the shape {names.shape}")
            return cls(
                x=x,
                y=y,
                target=t,
                criterion=kind,
                set=set,
                ids=names,
                rows=torch.arange(n, device=x.device),
                round=np.zeros(n, dtype=np.int64),
            )

    def __len__(self) -> int:
        return len(self.x)

    @property
    def goal(self) -> Goal:
        """Targeted if the criterion asks for a target."""
        return Goal.TARGETED if self.criterion.targeted else Goal.UNTARGETED

    @property
    def keyed(self) -> SampleDraws:
        """The draws, for methods that need them."""
        if self.draws is None:
            raise UsageError("this problem has no draws; run it through the engine")
        return self.draws

    @property
    def ball(self) -> LpBall:
        """The set without its grid, to search in: projecting on a grid after each step would undo every smaller step."""
        return self.set if self.set.grid is None else replace(self.set, grid=None)

    def in_units(self) -> Problem:
        """The same problem counted in the width of its box (`LpBall.unit`), so that no step or radius depends on it.

        What is given beside it as the data are, such as inputs to start from, goes through `counted`.
        The unit is a power of two: every value is the same but for its exponent. float16 has too few of those and stays.
        """
        unit = self.set.unit
        if unit == 1 or self.x.dtype == torch.float16:
            return self
        return replace(self, x=self.x / unit, set=self.set.scaled(1 / unit), unit=self.unit * unit)

    def counted(self, values: Tensor) -> Tensor:
        """Inputs, or differences of inputs, that somebody gave as the data are, counted in ``unit`` as x is."""
        values = values.to(self.x)
        return values if self.unit == 1 else values / self.unit

    def select(self, rows: np.ndarray) -> Problem:
        """The sub-problem of the samples at ``rows`` (host integers)."""
        at = on_device(rows, self.x.device)
        return replace(
            self,
            x=self.x[at],
            y=self.y[at],
            target=self.target[at],
            set=self.set.select(at),
            ids=self.ids[rows],
            rows=self.rows[at],
            round=self.round[rows],
            draws=None if self.draws is None else self.draws.select(rows),
        )

    def chunk(self, rows: np.ndarray) -> Problem:
        """The samples at ``rows`` (host integers) as a chunk of its own, whose rows count from 0 on."""
        part = self.select(rows)
        return replace(part, rows=torch.arange(len(part), device=self.x.device))

    def flat(self, values: Tensor) -> Tensor:
        """A per-sample vector (n,) shaped to broadcast with x."""
        return values.view(-1, *[1] * (self.x.ndim - 1))


def _check_inputs(x: Tensor, set: LpBall) -> None:
    if not x.ndim:
        raise DataError("inputs must have the sample as their first dimension, got one number")
    if not len(x):
        return
    if not x.is_floating_point() or not bool(x.isfinite().all()):
        raise DataError(
            f"inputs must be finite floating-point numbers, got {str(x.dtype).removeprefix('torch.')}"
            f"{'' if not x.is_floating_point() else ' with NaN or infinity'}; convert and clean x first"
        )
    # What the dtype of x cannot tell from an edge is on it.
    low, high = (edge.to(x.device, x.dtype) for edge in (set.lower, set.upper))
    outside = (x < low) | (x > high)
    if set.mask is not None:
        outside = outside & set.mask.to(x.device)  # what cannot change is in no danger of leaving the box
    if bool(outside.any()):
        rows = int(outside.flatten(1).any(1).sum())
        raise DataError(
            f"{rows} of {len(x)} inputs lie outside the box: their values go from {float(x.min()):.4g} to "
            f"{float(x.max()):.4g} and the set allows {float(set.lower.min()):.4g} to {float(set.upper.max()):.4g}; "
            "declare the range that the features really have (low and high), or scale the inputs into it"
        )


def _targets(target: Tensor | np.ndarray | None, y: Tensor, criterion: Criterion) -> Tensor:
    """(n,) int64 the targets that the criterion needs; -1 where it needs none."""
    n = len(y)
    if target is None:
        if criterion.targeted:
            raise UsageError("a targeted criterion needs a target for each sample; give target=")
        return torch.full((n,), -1, dtype=torch.int64, device=y.device)
    t = whole_numbers(target, n, "targets").to(y.device)
    if not criterion.targeted:
        if bool((t >= 0).any()):
            raise UsageError("targets were given and the criterion looks at none; take Targeted(), or leave them out")
        return t
    if bool((t < 0).any()):
        raise UsageError(f"targets must be classes, counted from 0, got {int(t.min())}")
    if bool((t == y).any()):
        raise UsageError("a target equals its label; a targeted attack needs t != y")
    return t
