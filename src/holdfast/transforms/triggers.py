"""Backdoor triggers: fixed changes that a poisoned model has learned to obey.

A trigger is a `Transform` without axes, so that everything that takes transforms takes it: views of a printed trigger,
a scanner's reverse-engineered one, a repair that trains against it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from math import pi

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.transforms.transform import Transform

__all__ = ["Overlay", "Sinusoid", "Trigger"]


class Trigger(Transform):
    """One change for every input; there is nothing to search, so its theta is (n, 0)."""

    axes = ()

    @abstractmethod
    def stamp(self, x: Tensor) -> Tensor:
        """(n, \\*features) the inputs with the trigger, in the range of the data; differentiable in x."""

    @override
    def forward(self, origin: Tensor, theta: Tensor) -> Tensor:
        return self.stamp(origin)


class Overlay(Trigger):
    """``(1 - mask) x + mask pattern``: a patch where the mask is 0 or 1, a blend where it lies between.

    Example:
        >>> Overlay.patch((1, 2, 2), side=1).stamp(torch.zeros(1, 1, 2, 2)).tolist()
        [[[[0.0, 0.0], [0.0, 1.0]]]]
    """

    mask: Tensor
    pattern: Tensor

    def __init__(self, mask: Tensor, pattern: Tensor) -> None:
        """Args:
        mask: in [0, 1], of a shape that broadcasts to one input, such as (H, W).
        pattern: in the range of the data, likewise.

        Raises:
            UsageError: a value of the mask leaves [0, 1].
        """
        super().__init__()
        if not bool(((mask >= 0) & (mask <= 1)).all()):
            raise UsageError(f"a trigger's mask must lie in [0, 1], got {float(mask.min())} to {float(mask.max())}")
        self.register_buffer("mask", mask)
        self.register_buffer("pattern", pattern)

    @classmethod
    def patch(cls, shape: Sequence[int], side: int = 3, value: float = 1.0) -> Overlay:
        """A square of one value in the lower right corner (BadNets, Gu et al. 2017).

        Args:
            shape: (C, H, W) of one input.
            side: of the square, pixels.
            value: of its pixels.

        Raises:
            UnsupportedError: the inputs are no images.
            UsageError: the square is larger than the image.
        """
        height, width = _image(shape)
        if not 0 < side <= min(height, width):
            raise UsageError(f"a patch of side {side} does not fit images of {height} x {width}; give a smaller side")
        mask = torch.zeros(height, width)
        mask[height - side :, width - side :] = 1.0
        return cls(mask, torch.tensor(value))

    @classmethod
    def blend(cls, pattern: Tensor, opacity: float = 0.2) -> Overlay:
        """A picture blended over the whole input (Chen et al. 2017).

        Args:
            pattern: (\\*features), in the range of the data.
            opacity: its share, above 0 and at most 1.

        Raises:
            UsageError: another opacity.

        Example:
            >>> Overlay.blend(torch.ones(2), 0.25).stamp(torch.tensor([[0.0, 1.0]])).tolist()
            [[0.25, 1.0]]
        """
        if not 0 < opacity <= 1:
            raise UsageError(f"the opacity of a blend must be above 0 and at most 1, got {opacity}")
        return cls(torch.tensor(opacity), pattern)

    @property
    def covered(self) -> float:
        """How many features of one channel the trigger covers: the l1 size of the mask."""
        return float(self.mask.sum())

    @override
    def stamp(self, x: Tensor) -> Tensor:
        mask = self.mask.to(x)
        return (1 - mask) * x + mask * self.pattern.to(x)


class Sinusoid(Trigger):
    """``clip(x + amplitude sin(2 pi frequency j / W))`` in column j of W (SIG, Barni et al. 2019).

    What is no image (n, C, H, W) is refused when it is stamped, and so is a width in which the wave is 0 in every column.

    Example:
        >>> Sinusoid(0.25, 1.0).stamp(torch.full((1, 1, 1, 4), 0.5)).flatten().tolist()
        [0.5, 0.75, 0.5, 0.25]
    """

    def __init__(
        self, amplitude: float = 40 / 255, frequency: float = 6.0, low: float = 0.0, high: float = 1.0
    ) -> None:
        """Args:
        amplitude: of the wave, in units of the data, above 0.
        frequency: waves across the image.
        low: least value of a feature.
        high: largest value.

        Raises:
            UsageError: the amplitude is not above 0.
        """
        super().__init__()
        if not amplitude > 0:
            raise UsageError(f"the amplitude of a sinusoid must be above 0, got {amplitude}")
        self.amplitude, self.frequency, self.low, self.high = amplitude, frequency, low, high

    @override
    def stamp(self, x: Tensor) -> Tensor:
        _, width = _image(x.shape[1:])
        if (2 * self.frequency) % width == 0:
            raise UsageError(
                f"a wave of frequency {self.frequency:g} is 0 in every column of a width of {width}; give another frequency"
            )
        column = torch.arange(width, dtype=torch.float64, device=x.device)
        wave = self.amplitude * torch.sin(2 * pi * self.frequency * column / width)
        return (x + wave.to(x)).clamp(self.low, self.high)


def _image(shape: Sequence[int]) -> tuple[int, int]:
    if len(shape) != 3:
        raise UnsupportedError(f"this trigger changes images (C, H, W); these inputs are {tuple(shape)}")
    return shape[1], shape[2]
