"""Changes of colour and light, alike for all pixels of an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.core.errors import UnsupportedError
from holdfast.transforms.transform import Axis, ImageTransform

__all__ = ["BrightnessContrast", "HueSaturation", "Lightness", "from_hsv", "to_hsv"]


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
        super().__init__(
            Axis(name="hue", unit="degrees", extent=hue), Axis(name="saturation", unit="shift", extent=saturation)
        )

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
        super().__init__(Axis(name="lightness", unit="shift", extent=lightness))

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
        super().__init__(
            Axis(name="brightness", unit="shift", extent=brightness),
            Axis(name="contrast", unit="factor", extent=contrast, neutral=1.0),
        )

    @override
    def change(self, x: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        if "contrast" in values:
            x = x * values["contrast"].unsqueeze(1)
        if "brightness" in values:
            x = x + values["brightness"].unsqueeze(1)
        return x.clamp(0, 1)
