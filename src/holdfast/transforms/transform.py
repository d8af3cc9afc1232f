"""Transforms of inputs with a few parameters: what EOT, semantic sets, triggers and augmentation share.

A transform has axes: named parameters in natural units (degrees, pixels). Its theta is scaled, so that [-1, 1] is the
natural range of each axis and 0 changes nothing.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from typing_extensions import override

from holdfast.core.errors import UnsupportedError, UsageError

__all__ = ["Axis", "Composition", "ImageTransform", "Transform"]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One parameter of a transform.

    Attributes:
        name: for people.
        unit: of its natural values.
        extent: how far its natural range goes to either side of neutral, above 0.
        neutral: the natural value that changes nothing.
    """

    name: str
    unit: str
    extent: float
    neutral: float = 0.0

    def natural(self, theta: Tensor) -> Tensor:
        """Scaled values as natural ones.

        Example:
            >>> Axis(name="contrast", unit="factor", extent=0.5, neutral=1.0).natural(torch.tensor([-1.0, 0.0, 1.0])).tolist()
            [0.5, 1.0, 1.5]
        """
        return self.neutral + self.extent * theta


class Transform(nn.Module):
    """``T(origin, theta)``, differentiable in theta (n, k), one column for each axis; every row for itself."""

    axes: tuple[Axis, ...]

    @abstractmethod
    @override
    def forward(self, origin: Tensor, theta: Tensor) -> Tensor:
        """(n, \\*shape) and (n, k) in [-1, 1] -> (n, \\*features) what the model is asked."""

    def natural(self, theta: Tensor) -> dict[str, Tensor]:
        """(n,) natural values by the axes' names."""
        return {axis.name: axis.natural(theta[:, k]) for k, axis in enumerate(self.axes)}


class ImageTransform(Transform):
    """A transform of images (n, C, H, W) in [0, 1] that is exactly the identity at theta = 0.

    Axes whose extent is 0 are left out.
    """

    def __init__(self, *axes: Axis) -> None:
        super().__init__()
        wrong = [a.name for a in axes if not 0 <= a.extent < float("inf")]
        if wrong:
            raise UsageError(f"the range of {', '.join(wrong)} must be a number of at least 0")
        self.axes = tuple(a for a in axes if a.extent > 0)
        if not self.axes:
            raise UsageError(f"{' and '.join(a.name for a in axes)} have no range: nothing can change")

    def check(self, shape: Sequence[int]) -> None:
        """Refuses inputs of another shape than it can change.

        Raises:
            UnsupportedError: no images, or too few channels.
        """
        if len(shape) != 3:
            raise UnsupportedError(f"{type(self).__name__} changes images (C, H, W); these inputs are {tuple(shape)}")

    @abstractmethod
    def change(self, x: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """x changed by natural values (n, 1, 1); axes that were left out are absent."""

    @override
    def forward(self, origin: Tensor, theta: Tensor) -> Tensor:
        values = {name: v.view(-1, 1, 1) for name, v in self.natural(theta).items()}
        changed = self.change(origin, values)
        # Interpolation and colour conversion round: at theta = 0 the value is x to the bit, the slope that of T.
        still = (theta == 0).all(1).view(-1, 1, 1, 1)
        return torch.where(still, origin + (changed - changed.detach()), changed)


class Composition(ImageTransform):
    """Transforms one after the other; their axes in that order.

    Example:
        >>> from holdfast.transforms.colour import BrightnessContrast
        >>> from holdfast.transforms.geometry import RotationTranslation
        >>> [a.name for a in Composition(BrightnessContrast(), RotationTranslation((1, 8, 8))).axes]
        ['brightness', 'contrast', 'rotation', 'right', 'down']
    """

    def __init__(self, *parts: ImageTransform) -> None:
        super().__init__(*(axis for part in parts for axis in part.axes))
        if len({a.name for a in self.axes}) < len(self.axes):
            raise UsageError("two parts of a composition have an axis of one name")
        self.parts = nn.ModuleList(parts)

    @override
    def check(self, shape: Sequence[int]) -> None:
        for part in self._each():
            part.check(shape)

    @override
    def change(self, x: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        for part in self._each():
            x = part.change(x, {a.name: values[a.name] for a in part.axes})
        return x

    def _each(self) -> list[ImageTransform]:
        return [part for part in self.parts if isinstance(part, ImageTransform)]
