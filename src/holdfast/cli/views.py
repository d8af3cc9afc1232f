"""``--views``: the model behind random changes of the input; and whether a model is randomised by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from holdfast.core.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from holdfast.judge.desk import Model
    from holdfast.transforms.random_transform import RandomTransform

__all__ = ["RANGES", "behind", "randomised", "ranges"]

RANGES = ("rotation", "translation", "scale", "brightness", "contrast", "noise")
"""What may be drawn: degrees, a share of the side, a share of the size, a shift, a share, a standard deviation."""

_ASKED = 8


def ranges(text: str) -> dict[str, float]:
    """``rotation=20,noise=0.05`` as numbers.

    Raises:
        UsageError: not of that form, or no such range.

    Example:
        >>> ranges("rotation=20, noise=0.05")
        {'rotation': 20.0, 'noise': 0.05}
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = part.strip().partition("=")
        if name not in RANGES:
            raise UsageError(f"--views has no range '{name}'. {did_you_mean(name, RANGES)}")
        try:
            found[name] = float(value) if equals else float("nan")
        except ValueError:
            found[name] = float("nan")
        if not found[name] > 0:
            raise UsageError(f"--views {part.strip()}: write {name}=NUMBER, above 0")
    return found


def behind(model: nn.Module, shape: Sequence[int], given: dict[str, float], seed: int | None = None) -> RandomTransform:
    """The model behind changes drawn from those ranges; with a seed, behind one of them."""
    from holdfast.transforms.random_transform import RandomTransform, Zoom
    from holdfast.transforms.semantic import BrightnessContrast, Composition, ImageTransform, RotationTranslation

    def of(name: str) -> float:
        return given.get(name, 0.0)

    parts: list[ImageTransform] = []
    if "scale" in given:
        parts.append(Zoom(of("scale")))
    if {"rotation", "translation"} & given.keys():
        parts.append(RotationTranslation(shape, of("rotation"), of("translation")))
    if {"brightness", "contrast"} & given.keys():
        parts.append(BrightnessContrast(of("brightness"), of("contrast")))
    whole = Composition(*parts) if parts else None
    if whole is not None:
        whole.check(shape)
    return RandomTransform(model, whole, noise=of("noise"), seed=seed)


def randomised(model: Model, x: Tensor) -> bool:
    """Whether two forwards of the same inputs differ."""
    import torch

    from holdfast.numerics.evaluation import evaluating

    with torch.no_grad(), evaluating(model):
        return not torch.equal(model(x[:_ASKED].clone()), model(x[:_ASKED].clone()))
