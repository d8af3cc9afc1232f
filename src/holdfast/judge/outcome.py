"""What a search leaves behind, before any referee has seen it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from holdfast.judge.gradients import Gradients
from holdfast.judge.ledger import Ledger

__all__ = ["Outcome"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What an attack found; not yet judged by the referee (`holdfast.judge.judged.judged` has it judged).

    Attributes:
        x: (n, \\*features) the witness of each sample, or its clean input.
        found: (n,) bool: a witness is known.
        distance: (n,) float64 its distance; inf if none.
        found_at: (n,) int64 queries spent when the first witness was found; -1 if none.
        low_margin: (n,) float64 the least margin of any row that was asked, inside the set or not; inf if none was.
        ledger: what each sample cost.
        slots: slots in the end; fewer than asked for if memory ran out.
        trace: (calls, n) passes so far and (calls, n) distances after each call, if they were to be kept.
        gradients: what the gradients were like that the search was given.
        failed: (n,) bool: the model raised on a point of this sample; it was searched no further.
        fault: what the model raised first.
        unusable: (n,) int64 points whose scores cannot be judged (`holdfast.core.criterion.usable`); never a witness.
        no_answer: (n, \\*features) the nearest such point in the set of each sample that has one; None if none has.
        no_answer_at: (n,) float64 its distance; inf if none.
    """

    x: Tensor
    found: Tensor
    distance: Tensor
    found_at: Tensor
    low_margin: Tensor
    ledger: Ledger
    slots: int
    trace: tuple[Tensor, Tensor] | None = None
    gradients: Gradients | None = None
    failed: Tensor | None = None
    fault: str | None = None
    unusable: Tensor | None = None
    no_answer: Tensor | None = None
    no_answer_at: Tensor | None = None

    @property
    def blind(self) -> Tensor:
        """(n,) bool: samples that a gradient attack searched without a gradient: zero or not finite (`Gradients.useless`)."""
        if self.gradients is None:
            return torch.zeros_like(self.found)
        return self.gradients.useless(self.found)

    def away_from_clean(self) -> Outcome:
        """The same without the claims that a clean input is adversarial as it is."""
        return replace(self, found=self.found & (self.distance > 0))
