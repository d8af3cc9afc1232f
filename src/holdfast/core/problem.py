"""What an attack is asked to solve, for a batch of samples."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from holdfast.core.arrays import on_device
from holdfast.core.criterion import Criterion, Misclassified, Targeted
from holdfast.core.draws import SampleDraws
from holdfast.core.errors import DataError, UsageError
from holdfast.core.sets import LpBall
from holdfast.core.threat import Goal

__all__ = ["Problem"]


@dataclass(frozen=True)
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

    @classmethod
    def of(
        cls,
        x: Tensor,
        y: Tensor,
        set: LpBall,
        *,
        target: Tensor | None = None,
        criterion: Criterion | None = None,
        ids: object = None,
    ) -> Problem:
        """A problem from its parts; untargeted without a target.

        Raises:
            DataError: x is not a finite floating tensor, or labels are not (n,) integers.
            UsageError: the sizes do not agree.
        """
        n = len(x)
        if n and (not x.is_floating_point() or not bool(x.isfinite().all())):
            raise DataError("inputs must be finite floating-point numbers; convert and clean x first")
        if y.shape != (n,) or (y.is_floating_point() and not hasattr(criterion, "tolerance")):
            raise DataError(
                f"labels must be {n} integers, got {y.dtype} of shape {tuple(y.shape)}; one-hot? use argmax(1)"
            )
        if len(set.eps) != n:
            raise UsageError(f"the set has {len(set.eps)} radii for {n} samples")
        given = target is not None
        t = target if target is not None else torch.full((n,), -1, dtype=torch.int64, device=x.device)
        if given and bool((t == y).any()):
            raise UsageError("a target equals its label; a targeted attack needs t != y")
        names = np.arange(n) if ids is None else np.asarray(ids, dtype=np.int64)
        return cls(
            x, y, t, criterion or (Targeted() if given else Misclassified()), set, names,
            torch.arange(n, device=x.device), np.zeros(n, dtype=np.int64),
        )  # fmt: skip

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

    def select(self, rows: np.ndarray) -> Problem:
        """The sub-problem of the samples at ``rows`` (host integers)."""
        at = on_device(rows, self.x.device)
        return replace(
            self, x=self.x[at], y=self.y[at], target=self.target[at], set=self.set.select(at), ids=self.ids[rows],
            rows=self.rows[at], round=self.round[rows], draws=None if self.draws is None else self.draws.select(rows),
        )  # fmt: skip

    def flat(self, values: Tensor) -> Tensor:
        """A per-sample vector (n,) shaped to broadcast with x."""
        return values.view(-1, *[1] * (self.x.ndim - 1))
