"""The unit in which an attack is told a sample's scores: a power of two that brings unusual logits to an ordinary size.

Multiplying all logits by a constant changes no decision, but weights of penalties, softmaxes and rates are made for logits
whose classes lie some units apart. Attacks count inputs in the width of the box (`Problem.in_units`) for the same reason.
"""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.core.problem import Problem
from holdfast.judge.rows import first_of, reads_freely
from holdfast.numerics.losses import complete

__all__ = ["ScoreUnits", "score_spread"]

_ORDINARY = 1.0, 64.0  # spreads that are told as they are
_FEW = 3  # a median of fewer gaps says little: a sample near an edge is no sample with small scores
_ORDINARY_OF_FEW = 2.0**-10, 2.0**10
_TOLD = 16.0  # others are told as this, or up to 1.42 times more or less: as those of well trained classifiers are
_MASKED = 1e6  # times the least gap: a class so far off is masked, and says nothing of the others
_MOST = {torch.float16: 12}  # exponent of a unit; else as many as float32 has, with room for a gradient


class ScoreUnits:
    """One unit for each sample, from the first answer about it, which is that about its clean input as a rule.

    Attributes:
        open: some samples have none yet: answers must be shown to `see`.
        plain: no sample needs one, as far as is known.
        values: (n,) float64 the units; 0 where there is none yet.
    """

    def __init__(self, problem: Problem, top_k: int | None, *, needed: bool = True) -> None:
        """Units of the samples of a problem.

        Args:
            problem: its criterion says whether scores have a scale of their own at all.
            top_k: how many classes the attack is shown: no more than those set the unit.
            needed: if not, the scores are told as they are.
        """
        self._criterion, self._top_k = problem.criterion, top_k
        self.open = needed and problem.criterion.blind_to_scale
        self.plain = True
        self.values = torch.zeros(len(problem), dtype=torch.float64, device=problem.x.device)

    def resume(self, values: Tensor) -> None:
        """Goes on with units (n,) from an earlier run; 0 where there is none yet."""
        self.values = values
        self.look()

    def see(self, scores: Tensor, index: Tensor) -> None:
        """Sets the units of the samples ``index`` (m,) that have none, each from the first of its rows of scores."""
        if not self.open or not len(scores):
            return
        scores = scores.detach()
        unit = self._fitting(scores)
        first = first_of(index, unit > 0, len(self.values))
        new = (self.values == 0) & (first < len(scores))
        self.values = torch.where(new, unit[first.clamp_max(len(scores) - 1)], self.values)
        if reads_freely(self.values):
            self.look()
        else:
            self.plain = False

    def told(self, scores: Tensor, index: Tensor) -> Tensor:
        """Scores (m, ...) in the units of the samples ``index``; differentiable."""
        if self.plain:
            return scores
        unit = self._of(index).view(-1, *[1] * (scores.ndim - 1))
        least = torch.finfo(scores.dtype).min / 2  # a masked class stays finite
        return (scores.double() * unit).clamp_min(least).to(scores.dtype)

    def log_probs(self, scores: Tensor, index: Tensor) -> Tensor:
        """Log-probabilities (m, K) of the logits in the units of the samples; -inf where a class is not shown.

        What is left to the classes that are not shown is shared among them before it is counted in another unit.
        """
        top_k = self._top_k
        if top_k is None or top_k >= scores.shape[-1]:
            return self.told(scores, index).log_softmax(-1)
        log_p = (scores if self.plain else scores.double()).log_softmax(-1)
        hidden = log_p < log_p.topk(top_k, dim=-1).values[..., -1:]
        log_p = log_p.masked_fill(hidden, float("-inf"))
        if self.plain:
            return log_p
        told = (complete(log_p) * self._of(index).unsqueeze(1)).log_softmax(-1)
        return told.masked_fill(hidden, float("-inf")).to(scores.dtype)

    def look(self) -> None:
        """Notes whether any sample has no unit, or one that counts: a synchronisation with an accelerator."""
        self.open = self.open and bool((self.values == 0).any())
        self.plain = bool(((self.values == 1) | (self.values == 0)).all())

    def _of(self, index: Tensor) -> Tensor:
        unit = self.values[index]
        return torch.where(unit == 0, 1.0, unit)

    def _fitting(self, scores: Tensor) -> Tensor:
        """(m,) float64 the power of two that fits each row; 0 where the row tells nothing."""
        most = _MOST.get(scores.dtype, 100)
        if self._criterion.detector:
            scores = scores[..., :-1]
        if self._top_k is not None and self._top_k < scores.shape[-1]:
            scores = scores.masked_fill(scores < scores.topk(self._top_k, dim=-1).values[..., -1:], float("-inf"))
        spread, others = score_spread(scores)
        few = others < _FEW
        low, high = (torch.where(few, rare, usual) for usual, rare in zip(_ORDINARY, _ORDINARY_OF_FEW, strict=True))
        exponent = (_TOLD / spread).log2().nan_to_num(0.0).round().clamp(-most, most)
        fitted = torch.where((spread >= low) & (spread < high), 1.0, exponent.exp2())
        return torch.where(spread > 0, fitted, 0.0)


def score_spread(scores: Tensor) -> tuple[Tensor, Tensor]:
    """(m,) float64 the median distance of a class to the best one, and (m,) int64 how many classes it is the median of.

    Neither a class that is masked by a large negative score counts, nor one as good as the best. Where none is left, or a
    score is no number, both are 0.

    Example:
        >>> far, others = score_spread(torch.tensor([[9.0, 8.0, 5.0, 1.0], [9.0, 8.0, -1e9, -torch.inf], [2.0, 2.0, 2.0, 2.0]]))
        >>> far.tolist(), others.tolist()
        ([4.0, 1.0, 0.0], [3, 1, 0])
    """
    wide = scores.double()
    gaps = (wide.amax(-1, keepdim=True) - wide).flatten(1)
    gaps = torch.where((gaps > 0) & gaps.isfinite(), gaps, torch.inf)
    gaps = torch.where(gaps <= _MASKED * gaps.amin(1, keepdim=True), gaps, torch.inf)
    others = gaps.isfinite().sum(1)
    middle = gaps.sort(1).values.gather(1, (others - 1).clamp_min(0).unsqueeze(1) // 2).squeeze(1)
    return torch.where(middle.isfinite(), middle, 0.0), others
