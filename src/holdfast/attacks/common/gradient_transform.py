"""Which gradient of a surrogate to follow, so that what is found there holds on other models too.

A transfer attack follows momentum of a gradient, and the papers differ in which: asked further along the path (NI), through
random resizing (DI), of several brightnesses (SI), smoothed as if of shifted inputs (TI), or evened out over neighbours (VMI).
The pieces are linear maps of the input, so that each asks the model at a mapped point and maps the gradient back, and any
of them go together. Inputs that are no images are strips of height 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import exp, inf, prod

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.attacks.common.image_view import image_view
from holdfast.core.errors import UsageError
from holdfast.core.problem import Problem
from holdfast.core.threat import Norm
from holdfast.transforms.resizing import placing, resized

__all__ = ["Ask", "GradientTransform", "ahead", "gaussian", "resizing", "smoothed"]

Ask = Callable[[Tensor], Tensor]
"""Points (n, \\*features) -> gradients (n, \\*features) of the loss there."""

_KERNEL_SHARE = 15 / 299  # Dong et al. 2019 smooth over 15 of 299 pixels
_RANGES = {
    "diversity": (0, 1),
    "least_size": (1e-3, 1),
    "kernel": (1, inf),
    "scales": (1, 64),
    "neighbours": (0, inf),
    "reach": (0, inf),
}


@dataclass(frozen=True, kw_only=True)
class GradientTransform:
    """A composition; the defaults change nothing.

    Attributes:
        look_ahead: NI: ask where the momentum alone would lead.
        diversity: DI: chance that an input is resized and padded before it is asked.
        least_size: DI: its least size, as a share of the side.
        kernel: TI: side of the Gaussian kernel, odd; 1 leaves the gradient as it is, None is the paper's share of the side.
        scales: SI: copies, the input divided by 1, 2, 4, ...
        neighbours: VMI: points around the iterate over which its gradient is evened out.
        reach: VMI: how far they may lie, as a share of eps.
    """

    look_ahead: bool = False
    diversity: float = 0.0
    least_size: float = 0.9
    kernel: int | None = 1
    scales: int = 1
    neighbours: int = 0
    reach: float = 1.5

    @property
    def asks(self) -> int:
        """Gradients asked for one sample in one step."""
        return self.scales * (1 + self.neighbours)

    def check(self, title: str) -> None:
        """Refuses what is out of range.

        Raises:
            UsageError: the message names the parameter and its range.

        Example:
            >>> GradientTransform(kernel=4).check("TI-FGSM")
            Traceback (most recent call last):
            holdfast.core.errors.UsageError: kernel of TI-FGSM must be odd, for it has a middle; got 4
        """
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise UsageError(f"{name} of {title} must lie in [{least:g}, {most:g}], got {value}")
        if self.kernel is not None and self.kernel % 2 == 0:
            raise UsageError(f"kernel of {title} must be odd, for it has a middle; got {self.kernel}")

    def gradient(self, ask: Ask, problem: Problem, x: Tensor, asked: np.ndarray) -> Tensor:
        """(n, \\*features) the gradient at x through all pieces but the neighbours.

        Args:
            ask: the plain gradient.
            problem: the samples in the slots.
            x: where to ask.
            asked: (n,) how many gradients were asked before; keys the draws.
        """
        total = torch.zeros_like(x)
        for k in range(self.scales):
            shrunk = x / 2**k
            if self.diversity:
                down, across = resizing(problem, self.diversity, self.least_size, asked + k)
                there = _mapped(problem, shrunk, down, across)
                back = _mapped(problem, ask(there), down.transpose(1, 2), across.transpose(1, 2))
            else:
                back = ask(shrunk)
            total = total + back.nan_to_num(0.0) / 2**k
        return smoothed(problem, total, self.kernel)

    def spread(self, ask: Ask, problem: Problem, x: Tensor, asked: np.ndarray) -> Tensor:
        """(n, \\*features) the mean gradient over the neighbours: uniform in a ball of ``reach * eps`` around x."""
        total = torch.zeros_like(x)
        reach = problem.flat(self.reach * problem.set.eps).to(x.dtype)
        for k in range(1, self.neighbours + 1):
            at = asked + k * self.scales
            near = x + _free(problem, reach * _in_unit_ball(problem, at))
            total = total + self.gradient(ask, problem, near, at)
        return total / self.neighbours


def ahead(problem: Problem, velocity: Tensor, momentum: float, step: Tensor) -> Tensor:
    """(n, \\*features) where the momentum alone leads in one step: NI's ``alpha mu v``.

    ``velocity`` is a sum of gradients of unit l1 size. It is scaled so that a gradient with even entries moves as far as a
    step does: by d in linf, as the authors' code has it (it divides by the mean where the paper writes the l1 norm, under
    which there would be hardly anything to look at), and by the root of d in l2.
    """
    d = prod(velocity.shape[1:])
    return _free(problem, momentum * step * velocity * (d if problem.set.norm is Norm.LINF else d**0.5))


def _free(problem: Problem, delta: Tensor) -> Tensor:
    """(n, \\*features) delta where the mask lets the input change, 0 elsewhere."""
    return delta if problem.set.mask is None else delta * problem.set.mask


def resizing(problem: Problem, probability: float, least: float, asked: np.ndarray) -> tuple[Tensor, Tensor]:
    """DI's random resizing and zero padding as two matrices: ``down @ image @ across^T``.

    With this probability an input is resized bilinearly to between ``least`` of its sides and all of them, and put at a random
    place of a frame of its own size, for models take one size only.

    Returns:
        (n, H, H) and (n, W, W), the dtype of x.
    """
    _, h, w = image_view(problem)
    u = problem.keyed.uniform("resize", (4,), asked).to(problem.x.device, torch.float64)
    size, dtype = torch.where(u[:, 0] < probability, u[:, 1], 1.0), problem.x.dtype
    return placing(h, least, size, u[:, 2]).to(dtype), placing(w, least, size, u[:, 3]).to(dtype)


def _mapped(problem: Problem, x: Tensor, down: Tensor, across: Tensor) -> Tensor:
    return resized(x.reshape(-1, *image_view(problem)), down, across).reshape(x.shape)


def gaussian(kernel: int) -> Tensor:
    """(kernel,) float64 weights that sum to 1; the standard deviation is half the kernel over the root of 3 (Dong 2019).

    Example:
        >>> gaussian(1).tolist(), [round(v, 3) for v in gaussian(3).tolist()]
        ([1.0], [0.154, 0.691, 0.154])
    """
    half = kernel // 2
    weights = torch.tensor([exp(-1.5 * (k / max(half, 1)) ** 2) for k in range(-half, half + 1)], dtype=torch.float64)
    return weights / weights.sum()


def smoothed(problem: Problem, grad: Tensor, kernel: int | None) -> Tensor:
    """(n, \\*features) each channel convolved with the Gaussian of two dimensions (of one, for a strip)."""
    if kernel == 1:
        return grad
    _, h, w = image_view(problem)
    if kernel is None:
        kernel = max(3, 2 * round((_KERNEL_SHARE * max(h, w) - 1) / 2) + 1)
    weights, half = gaussian(kernel).to(grad.device, grad.dtype), kernel // 2
    planes = grad.reshape(-1, 1, h, w)
    if h > 1:
        planes = F.conv2d(planes, weights.view(1, 1, -1, 1), padding=(half, 0))
    if w > 1:
        planes = F.conv2d(planes, weights.view(1, 1, 1, -1), padding=(0, half))
    return planes.reshape(grad.shape)


def _in_unit_ball(problem: Problem, asked: np.ndarray) -> Tensor:
    """(n, \\*features) a uniform point of the unit ball of the norm; the box plays no part, as in the paper."""
    shape, x = tuple(problem.x.shape[1:]), problem.x
    if problem.set.norm is Norm.LINF:
        return (problem.keyed.uniform("neighbour", shape, asked) * 2 - 1).to(x.device, x.dtype)
    z = problem.keyed.normal("neighbour", shape, asked).to(x.device, torch.float64)
    size = z.flatten(1).square().sum(1).sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    u = problem.keyed.uniform("radius", (), asked).to(x.device, torch.float64)
    return (z * problem.flat(u ** (1 / max(1, prod(shape))) / size)).to(x.dtype)
