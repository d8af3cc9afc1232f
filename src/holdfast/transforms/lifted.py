"""The lift that turns an attack on a transform's parameters into an ordinary attack.

A lifted sample is ``z = (x, theta)``, the lifted model is ``f'(z) = f(T(x, theta))``, and the lifted set pins x and lets
theta move: whatever attacks an lp ball attacks theta then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor, nn
from typing_extensions import override

from holdfast.core.criterion import Criterion
from holdfast.core.problem import Problem
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.transforms.transform import Transform

__all__ = ["Lifted", "lift"]


class Lifted(nn.Module):
    """``f'(z) = f(T(origin, theta))`` of lifted samples z (n, d + k): the d numbers of the origin, then theta.

    Gradients reach theta alone: the origin is pinned, and its gradient would take its share of every normalised step.

    Example:
        >>> from holdfast.transforms.colour import BrightnessContrast
        >>> f = Lifted(nn.Flatten(), BrightnessContrast(0.2, 0.0), (1, 1, 2))
        >>> f(torch.tensor([[0.3, 0.5, 1.0]])).tolist()
        [[0.5, 0.699999988079071]]
    """

    def __init__(self, model: Callable[[Tensor], Tensor], transform: Transform, shape: Sequence[int]) -> None:
        """Args:
        model: x (n, \\*features) -> scores (n, K).
        transform: what theta does.
        shape: of one origin.
        """
        super().__init__()
        self.model, self.transform, self.shape = model, transform, tuple(shape)
        self.differentiable = bool(getattr(model, "differentiable", True))

    def theta(self, z: Tensor) -> Tensor:
        """(n, k) the scaled parameters of lifted samples."""
        return z[:, prod(self.shape) :]

    def transformed(self, z: Tensor) -> Tensor:
        """(n, \\*features) what the model is asked."""
        origin = z[:, : prod(self.shape)].detach().view(-1, *self.shape)
        return self.transform(origin, self.theta(z))

    @override
    def forward(self, z: Tensor) -> Tensor:
        """(n, d + k) -> (n, K)."""
        return self.model(self.transformed(z))


def lift(
    origin: Tensor,
    y: Tensor,
    axes: int,
    norm: Norm = Norm.LINF,
    eps: float = 1.0,
    *,
    target: Tensor | None = None,
    criterion: Criterion | None = None,
    ids: object = None,
) -> Problem:
    """The problem of lifted samples: the origin is pinned, theta lies in [-1, 1] and in the lp ball of radius eps around 0.

    Args:
        origin: (n, \\*shape) what the transform starts from, as a rule the images.
        y: (n,) labels.
        axes: k, how many parameters the transform has.
        norm: of theta.
        eps: radius; 1 in linf is the whole range.
        target: (n,) targets of a targeted attack.
        criterion: when an answer is adversarial, if not by label or target alone.
        ids: of the samples.

    Example:
        >>> lift(torch.zeros(2, 1, 3, 3), torch.tensor([0, 1]), 2).x.shape
        torch.Size([2, 11])
    """
    z = torch.cat([origin.flatten(1), origin.new_zeros(len(origin), axes)], 1)
    mask = torch.zeros(1, z.shape[1], dtype=torch.bool, device=z.device)
    mask[:, z.shape[1] - axes :] = True
    ball = LpBall.uniform(norm, eps, len(z), -1.0, 1.0, mask=mask, device=z.device, dtype=z.dtype)
    return Problem.of(z, y, ball, target=target, criterion=criterion, ids=ids)
