"""Transforms of images with a few parameters, and the lift that turns an attack on those into an ordinary attack.

A transform has axes: named parameters in natural units (degrees, pixels). Its theta is scaled, so that [-1, 1] is the
natural range of each axis and 0 changes nothing. A lifted sample is ``z = (x, theta)``, the lifted model is
``f'(z) = f(T(x, theta))``, and the lifted set pins x and lets theta move: whatever attacks an lp ball attacks theta then.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import pi, prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from holdfast.core.criterion import Criterion
from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.core.problem import Problem
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm

__all__ = [
    "Axis",
    "BrightnessContrast",
    "Composition",
    "HueSaturation",
    "ImageTransform",
    "Lifted",
    "Lightness",
    "RotationTranslation",
    "Transform",
    "from_hsv",
    "lift",
    "to_hsv",
]


@dataclass(frozen=True)
class Axis:
    """One parameter of a transform.

    Attributes:
        name: for people.
        unit: of its natural values.
        reach: how far its natural range goes to either side of neutral, above 0.
        neutral: the natural value that changes nothing.
    """

    name: str
    unit: str
    reach: float
    neutral: float = 0.0

    def natural(self, theta: Tensor) -> Tensor:
        """Scaled values as natural ones.

        Example:
            >>> Axis("contrast", "factor", 0.5, neutral=1.0).natural(torch.tensor([-1.0, 0.0, 1.0])).tolist()
            [0.5, 1.0, 1.5]
        """
        return self.neutral + self.reach * theta


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

    Axes whose reach is 0 are left out.
    """

    def __init__(self, *axes: Axis) -> None:
        super().__init__()
        wrong = [a.name for a in axes if not 0 <= a.reach < float("inf")]
        if wrong:
            raise UsageError(f"the range of {', '.join(wrong)} must be a number of at least 0")
        self.axes = tuple(a for a in axes if a.reach > 0)
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


def to_hsv(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue in turns [0, 1), saturation and value (n, H, W) of RGB images (n, 3, H, W) in [0, 1].

    Grey has hue 0 and black saturation 0, with slopes of 0 there.

    Example:
        >>> [round(float(c), 3) for c in to_hsv(torch.tensor([0.0, 1.0, 0.5]).view(1, 3, 1, 1))]
        [0.417, 1.0, 1.0]
    """
    value, least = x.amax(1), x.amin(1)
    chroma = value - least
    red, green, blue = x.unbind(1)
    colourless = chroma == 0
    per = torch.where(colourless, 1.0, chroma)  # a division by 0 that is masked later would still spoil the gradient
    hue = torch.where(
        value == red, (green - blue) / per, torch.where(value == green, 2 + (blue - red) / per, 4 + (red - green) / per)
    )
    hue = torch.where(colourless, torch.zeros_like(hue), hue / 6).remainder(1.0)
    black = value == 0
    saturation = torch.where(black, torch.zeros_like(chroma), chroma / torch.where(black, 1.0, value))
    return hue, saturation, value


def from_hsv(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """RGB (n, 3, H, W) of hue in turns (any real), saturation and value in [0, 1].

    Example:
        >>> from_hsv(*(torch.tensor(v).view(1, 1, 1) for v in (1 / 3, 1.0, 0.5))).flatten().tolist()
        [0.0, 0.5, 0.0]
    """
    channels: list[Tensor] = []
    for offset in (5.0, 3.0, 1.0):
        k = (offset + 6 * hue).remainder(6.0)
        channels.append(value - value * saturation * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, 1)


class HueSaturation(ImageTransform):
    """One hue rotation and one saturation shift for all pixels, the value kept (Hosseini & Poovendran 2018).

    Example:
        >>> red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
        >>> [abs(round(v, 5)) for v in HueSaturation()(red, torch.tensor([[2 / 3, 0.0]])).flatten().tolist()]
        [0.0, 1.0, 0.0]
    """

    def __init__(self, hue: float = 180.0, saturation: float = 1.0) -> None:
        """Args:
        hue: largest rotation to either side, degrees; 180 is every hue.
        saturation: largest shift to either side; 1 reaches from grey to full.
        """
        super().__init__(Axis("hue", "degrees", hue), Axis("saturation", "shift", saturation))

    @override
    def check(self, shape: Sequence[int]) -> None:
        super().check(shape)
        if shape[0] != 3:
            raise UnsupportedError(
                f"hue and saturation need colour images of 3 channels (RGB); these have {shape[0]}. "
                "rotation_translation and brightness_contrast serve any number"
            )

    @override
    def change(self, x: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        hue, saturation, value = to_hsv(x)
        if "hue" in values:
            hue = hue + values["hue"] / 360
        if "saturation" in values:
            saturation = (saturation + values["saturation"]).clamp(0, 1)
        return from_hsv(hue, saturation, value)


class Lightness(ImageTransform):
    """One shift of the lightness of HSL for all pixels, hue and saturation kept (Mohapatra et al. 2020).

    Example:
        >>> half = torch.tensor([1.0, 0.5, 0.5]).view(1, 3, 1, 1)
        >>> [round(v, 5) for v in Lightness(0.25)(half, torch.tensor([[-1.0]])).flatten().tolist()]
        [1.0, 0.0, 0.0]
    """

    def __init__(self, lightness: float = 0.2) -> None:
        """Args:
        lightness: largest shift to either side; 1 reaches from black to white.
        """
        super().__init__(Axis("lightness", "shift", lightness))

    @override
    def check(self, shape: Sequence[int]) -> None:
        super().check(shape)
        if shape[0] != 3:
            raise UnsupportedError(f"lightness needs colour images of 3 channels (RGB); these have {shape[0]}")

    @override
    def change(self, x: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        most, least = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
        chroma, lightness = most - least, (most + least) / 2
        full = 1 - (2 * lightness - 1).abs()
        saturation = torch.where(full > 0, chroma / torch.where(full > 0, full, 1.0), torch.zeros_like(chroma))
        place = torch.where(chroma > 0, (x - least) / torch.where(chroma > 0, chroma, 1.0), torch.zeros_like(x))
        lightness = (lightness + values["lightness"].unsqueeze(1)).clamp(0, 1)
        return lightness + saturation * (1 - (2 * lightness - 1).abs()) * (place - 0.5)


class BrightnessContrast(ImageTransform):
    """``clip((1 + contrast) x + brightness)`` for all pixels.

    Example:
        >>> BrightnessContrast(0.2, 0.5)(torch.full((1, 1, 1, 1), 0.4), torch.tensor([[1.0, 1.0]])).item()
        0.800000011920929
    """

    def __init__(self, brightness: float = 0.2, contrast: float = 0.3) -> None:
        """Args:
        brightness: largest shift of a pixel to either side.
        contrast: largest change of the factor to either side of 1.
        """
        super().__init__(Axis("brightness", "shift", brightness), Axis("contrast", "factor", contrast, neutral=1.0))

    @override
    def change(self, x: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        if "contrast" in values:
            x = x * values["contrast"].unsqueeze(1)
        if "brightness" in values:
            x = x + values["brightness"].unsqueeze(1)
        return x.clamp(0, 1)


class RotationTranslation(ImageTransform):
    """A rotation about the middle, counter-clockwise, then a shift; bilinear, black beyond the edges (Engstrom et al. 2019).

    Example:
        >>> turn = RotationTranslation((1, 2, 2), rotation=90.0, translation=0.0)
        >>> turn(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), torch.tensor([[1.0]])).round().flatten().tolist()
        [2.0, 4.0, 1.0, 3.0]
    """

    def __init__(self, shape: Sequence[int], rotation: float = 30.0, translation: float = 0.1) -> None:
        """Args:
        shape: (C, H, W) of the images.
        rotation: largest angle to either side, degrees.
        translation: largest shift to either side, as a share of the image's side.
        """
        height, width = (shape[1], shape[2]) if len(shape) == 3 else (1, 1)
        super().__init__(
            Axis("rotation", "degrees", rotation),
            Axis("right", "pixels", translation * width),
            Axis("down", "pixels", translation * height),
        )

    def source(self, x: Tensor, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Where each pixel comes from: the shift and the rotation undone, in pixels from the middle, the second axis down.

        Args:
            x: images (n, C, H, W).
            values: see `change`.

        Returns:
            Two tensors (n, H, W).
        """
        height, width = x.shape[2:]
        none = x.new_zeros(len(x), 1, 1)
        angle = values.get("rotation", none) * (pi / 180)
        across = torch.arange(width, device=x.device, dtype=x.dtype) - (width - 1) / 2 - values.get("right", none)
        along = torch.arange(height, device=x.device, dtype=x.dtype) - (height - 1) / 2
        along = along.view(1, -1, 1) - values.get("down", none)
        return across * angle.cos() - along * angle.sin(), across * angle.sin() + along * angle.cos()

    @override
    def change(self, x: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        height, width = x.shape[2:]
        source_x, source_y = self.source(x, values)
        grid = torch.stack([2 * source_x / width, 2 * source_y / height], -1)
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


class Composition(ImageTransform):
    """Transforms one after the other; their axes in that order.

    Example:
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


class Lifted(nn.Module):
    """``f'(z) = f(T(origin, theta))`` of lifted samples z (n, d + k): the d numbers of the origin, then theta.

    Gradients reach theta alone: the origin is pinned, and its gradient would take its share of every normalised step.

    Example:
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
