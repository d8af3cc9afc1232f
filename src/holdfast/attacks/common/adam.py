"""Adam for a batch in which each sample is at a step of its own."""

from __future__ import annotations

from torch import Tensor

__all__ = ["adam"]

_DECAYS = 0.9, 0.999
_SMALL = 1e-8


def adam(grad: Tensor, mean: Tensor, square: Tensor, inner: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Adam's direction (Kingma & Ba 2015) for a batch in which each sample has its own count of steps.

    Args:
        grad: (n, \\*features).
        mean: first moments, likewise.
        square: second moments, likewise.
        inner: (n,) int64 steps made before this one; at 0 the moments start anew, whatever they are.

    Returns:
        The direction, to be multiplied by minus the rate, and both moments.

    Example:
        >>> import torch
        >>> g, old, none = torch.tensor([[4.0], [-2.0]]), torch.ones(2, 1), torch.tensor([0, 0])
        >>> adam(g, old, old, none)[0].round(decimals=4).tolist()  # the first step is the sign
        [[1.0], [-1.0]]
    """
    shape = (-1, *[1] * (grad.ndim - 1))
    a, b = _DECAYS
    kept = (inner > 0).view(shape).to(grad.dtype)
    mean = (mean * kept).lerp(grad, 1 - a)
    square = (square * kept).lerp(grad.square(), 1 - b)
    t = inner.double() + 1
    lift_mean, lift_square = (1 - a**t).to(grad.dtype).view(shape), (1 - b**t).sqrt().to(grad.dtype).view(shape)
    return (mean / lift_mean) / (square.sqrt() / lift_square + _SMALL), mean, square
