"""Attack spaces: coordinates in which a query-limited search moves, and the pixels that they stand for.

A space lifts its coordinates to a perturbation of the input; distances are always those of the pixels. Fewer coordinates
need fewer queries for an estimate, and smooth perturbations suit images (Chen et al. 2017; Tu et al. 2019).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from holdfast.core.errors import UsageError

__all__ = ["Bilinear", "Decoder", "Pixels", "Space", "Tiles"]


class Space(ABC):
    """Coordinates u and the perturbation that they lift to.

    Attributes:
        of_data: what it lifts to is counted as the data are; False: in whatever unit the coordinates are.
    """

    of_data: ClassVar[bool] = True

    @abstractmethod
    def shape(self, features: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the coordinates for inputs of a shape."""

    @abstractmethod
    def lift(self, u: Tensor, features: tuple[int, ...]) -> Tensor:
        """(m, \\*features) the perturbation at the coordinates u (m, \\*shape)."""


@dataclass(frozen=True)
class Pixels(Space):
    """The features themselves."""

    of_data = False

    @override
    def shape(self, features: tuple[int, ...]) -> tuple[int, ...]:
        return features

    @override
    def lift(self, u: Tensor, features: tuple[int, ...]) -> Tensor:
        return u


@dataclass(frozen=True)
class _Resized(Space):
    """An image of another size for each channel. Inputs that are no images keep their features.

    Attributes:
        size: height and width of the coordinates, or one number for both; an axis shorter than that keeps its length.
    """

    of_data = False
    size: int | tuple[int, int]

    def __post_init__(self) -> None:
        if min(self._sides) < 1:
            raise UsageError(f"a space of size {self.size} has no coordinates")

    @property
    def _sides(self) -> tuple[int, int]:
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @override
    def shape(self, features: tuple[int, ...]) -> tuple[int, ...]:
        if len(features) != 3:
            return features
        return (features[0], *(min(a, b) for a, b in zip(self._sides, features[1:], strict=True)))


@dataclass(frozen=True)
class Tiles(_Resized):
    """Tiles of equal value, ``size`` of them along each side.

    Example:
        >>> import torch
        >>> Tiles(2).lift(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), (1, 4, 4))[0, 0, 1].tolist()
        [1.0, 1.0, 2.0, 2.0]
    """

    @override
    def lift(self, u: Tensor, features: tuple[int, ...]) -> Tensor:
        return u if len(features) != 3 else F.interpolate(u, size=features[1:], mode="nearest-exact")


@dataclass(frozen=True)
class Bilinear(_Resized):
    """A small image, resized bilinearly: the data-free decoder of AutoZOOM.

    Example:
        >>> import torch
        >>> Bilinear(2).lift(torch.ones(1, 3, 2, 2), (3, 8, 8)).shape
        torch.Size([1, 3, 8, 8])
    """

    @override
    def lift(self, u: Tensor, features: tuple[int, ...]) -> Tensor:
        if len(features) != 3:
            return u
        return F.interpolate(u, size=features[1:], mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class Decoder(Space):
    """The perturbations that a decoder makes, as a rule the second half of an autoencoder of clean inputs.

    Attributes:
        decode: (m, \\*latent) -> (m, \\*features).
        latent: the shape of the coordinates.
    """

    decode: Callable[[Tensor], Tensor]
    latent: tuple[int, ...]

    @override
    def shape(self, features: tuple[int, ...]) -> tuple[int, ...]:
        return self.latent

    @override
    def lift(self, u: Tensor, features: tuple[int, ...]) -> Tensor:
        delta = self.decode(u)
        if tuple(delta.shape[1:]) != features:
            raise UsageError(f"the decoder makes {tuple(delta.shape[1:])}, the inputs are {features}")
        return delta
