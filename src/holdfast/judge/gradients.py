"""Gradients with respect to inputs, and what they were like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.judge.asking import ModelFault

__all__ = ["Gradient", "Gradients", "Jacobian", "input_gradient"]


class Gradient(NamedTuple):
    """Scores (m, K), loss (m,) and its gradient (m, \\*features) with respect to the input."""

    scores: Tensor
    value: Tensor
    grad: Tensor
    answered: Tensor


class Jacobian(NamedTuple):
    """Scores (m, K) and the gradients (m, k, \\*features) of k chosen logits."""

    scores: Tensor
    grad: Tensor
    answered: Tensor


@dataclass(frozen=True)
class Gradients:
    """What the gradients were like that an attack was given, (n,) int64 each.

    Attributes:
        asked: rows that a gradient was asked for.
        zero: those whose gradient was 0 in every feature.
        broken: those whose gradient was not finite.
    """

    asked: Tensor
    zero: Tensor
    broken: Tensor

    @classmethod
    def none(cls, like: Tensor) -> Gradients:
        """Nothing was asked."""
        return cls(torch.zeros_like(like), torch.zeros_like(like), torch.zeros_like(like))

    def note(self, grad: Tensor, index: Tensor, counts: Tensor) -> None:
        """Adds the gradients (m, \\*features) of the rows that count; no synchronisation."""
        largest = grad.flatten(1).abs().amax(1)
        for total, which in ((self.asked, counts), (self.zero, largest == 0), (self.broken, ~largest.isfinite())):
            total.index_add_(0, index, (which & counts).to(total.dtype))

    def useless(self, found: Tensor) -> Tensor:
        """(n,) bool: samples whose gradients said nothing: none of them, or, where nothing was found, at most half."""
        dead = self.zero + self.broken
        return (self.asked > 0) & ((dead == self.asked) | (~found & (2 * dead >= self.asked)))


def input_gradient(value: Tensor, x: Tensor, *, keep: bool = False) -> Tensor:
    """Gradient of value (m,) with respect to x alone; zero where the model's graph does not lead back to its input."""
    if not value.requires_grad:
        return torch.zeros_like(x)
    try:
        return torch.autograd.grad(value.sum(), x, retain_graph=keep, materialize_grads=True)[0]
    except (RuntimeError, NotImplementedError) as fault:
        if isinstance(fault, torch.OutOfMemoryError):
            raise
        raise ModelFault(
            f"{type(fault).__name__} in the backward pass: {' '.join(str(fault).split())[:300]}"
        ) from fault
