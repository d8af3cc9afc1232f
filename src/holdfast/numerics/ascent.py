"""The projected step that gradient attacks, adversarial training and the contract suites share."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.numerics.distance import per_sample
from holdfast.numerics.project import project
from holdfast.numerics.steps import steepest

__all__ = ["step"]


def step(
    ball: LpBall,
    x: Tensor,
    grad: Tensor,
    origin: Tensor,
    length: float | Tensor,
    *,
    sparsity: float | Tensor = 0.0,
    pinned: Tensor | None = None,
    bounds: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """One step of projected steepest ascent: ``project(x + length * steepest(grad))``.

    No direction is steepest for l0: there the gradient is scaled so that its largest entry moves by ``length``. A length
    that crosses the box is the right one, since shorter steps never displace a feature that is in; the projection keeps
    the features that gain most (Croce & Hein 2019).

    Args:
        ball: the set of each of the n samples.
        x: (n, \\*features), the iterate; it is left as it is.
        grad: (n, \\*features), what to ascend; not a number counts as 0 but for l0.
        origin: (n, \\*features), the clean inputs that the set lies around.
        length: lp size of the step before the projection, a number or a tensor that broadcasts with x.
        sparsity: l1 only: the share of the features that move, at least one does; a number or (n,).
        pinned: bool (n, \\*features), not read for l0: features that must not move, see
            `holdfast.numerics.steps.pinned_by_box`.
        bounds: linf only: `holdfast.numerics.project.linf_bounds` of the ball where they are at hand, so that a loop
            computes them once.

    Returns:
        (n, \\*features), inside the set.

    Example:
        >>> ball, x = LpBall.uniform(Norm.LINF, 0.25, 1), torch.tensor([[0.5, 0.9]])
        >>> step(ball, x, torch.tensor([[-2.0, 0.1]]), x, 0.125).tolist()
        [[0.375, 1.0]]
    """
    if ball.norm is Norm.L0:
        largest = per_sample(grad.flatten(1).abs().amax(1), grad).clamp_min(torch.finfo(grad.dtype).tiny)
        moved = x + length * grad / largest
    else:
        moved = x + length * steepest(ball.norm, grad, share=sparsity, pinned=pinned)
    if bounds is not None:
        return moved.clamp_(*bounds)
    return project(ball, moved, origin)
