"""A model behind transforms drawn at random."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from typing_extensions import override

from holdfast.core.errors import UsageError, did_you_mean
from holdfast.transforms.colour import BrightnessContrast
from holdfast.transforms.geometry import RotationTranslation, Zoom
from holdfast.transforms.transform import Composition, ImageTransform, Transform

__all__ = ["RANGES", "RandomTransform", "random_view"]

RANGES = ("rotation", "translation", "scale", "brightness", "contrast", "noise")
"""What a random view may draw: degrees, a share of the side, a share of the size, a shift, a share, a standard deviation."""


class RandomTransform(nn.Module):
    """``f(T(x))`` with T drawn from a family: its parameters uniform in their ranges, and Gaussian pixel noise.

    Without a seed each row of each call has a T of its own, from PyTorch's global generator: a randomised model, to be
    attacked through EOT and judged by the referee's vote over fresh draws. With a seed one T serves every row of every
    call: a deterministic model, one domain of `Domains`.

    Example:
        >>> from holdfast.transforms.colour import BrightnessContrast
        >>> view = RandomTransform(nn.Flatten(), BrightnessContrast(0.2, 0.3), seed=1)
        >>> x = torch.full((2, 1, 2, 2), 0.5)
        >>> bool((view(x)[0] == view(x)[1]).all())
        True
    """

    def __init__(
        self, model: nn.Module, transform: Transform | None = None, *, noise: float = 0.0, seed: int | None = None
    ) -> None:
        """Wraps a model.

        Args:
            model: x (n, \\*features) -> scores (n, K).
            transform: of inputs of that shape; None for noise alone.
            noise: standard deviation of what is added to each feature after the transform.
            seed: fixes T.
        """
        super().__init__()
        if noise < 0 or (transform is None and noise == 0):
            raise UsageError("a random transform needs a transform, or noise above 0")
        self.model, self.transform, self.noise, self.seed = model, transform, noise, seed

    @override
    def extra_repr(self) -> str:
        """For the fingerprint."""
        axes = () if self.transform is None else self.transform.axes
        return f"axes={[(a.name, a.extent) for a in axes]}, noise={self.noise}, seed={self.seed}"

    @override
    def forward(self, x: Tensor) -> Tensor:
        """(n, \\*features) -> (n, K)."""
        generator, n = None, len(x)
        if self.seed is not None:  # drawn on the host: the same T on every device
            generator, n = torch.Generator().manual_seed(self.seed), 1
        device = x.device if generator is None else "cpu"

        def rows(draw: Callable[..., Tensor], *shape: int) -> Tensor:
            drawn = draw(n, *shape, generator=generator, device=device, dtype=torch.float32)
            return drawn.to(x).expand(len(x), *shape)

        if self.transform is not None:
            x = self.transform(x, 2 * rows(torch.rand, len(self.transform.axes)) - 1)
        if self.noise:
            x = x + self.noise * rows(torch.randn, *x.shape[1:])
        return self.model(x)


def random_view(
    model: nn.Module, shape: Sequence[int], ranges: Mapping[str, float], seed: int | None = None
) -> RandomTransform:
    """The model behind changes drawn from the ranges that are given; with a seed, behind one of them.

    Args:
        model: x (n, C, H, W) -> scores (n, K).
        shape: (C, H, W) of one input.
        ranges: how far each of `RANGES` goes, above 0.
        seed: fixes the change.

    Raises:
        UsageError: a range that does not exist, or nothing to draw.
        UnsupportedError: the inputs are no images, and a range other than noise is given.

    Example:
        >>> view = random_view(nn.Flatten(), (1, 8, 8), {"rotation": 20.0, "noise": 0.05})
        >>> [axis.name for axis in view.transform.axes], view.noise
        (['rotation'], 0.05)
    """
    unknown = sorted(set(ranges) - set(RANGES))
    if unknown:
        raise UsageError(f"a random view has no range '{unknown[0]}'. {did_you_mean(unknown[0], RANGES)}")

    def of(name: str) -> float:
        return ranges.get(name, 0.0)

    parts: list[ImageTransform] = []
    if "scale" in ranges:
        parts.append(Zoom(of("scale")))
    if {"rotation", "translation"} & ranges.keys():
        parts.append(RotationTranslation(shape, of("rotation"), of("translation")))
    if {"brightness", "contrast"} & ranges.keys():
        parts.append(BrightnessContrast(of("brightness"), of("contrast")))
    whole = Composition(*parts) if parts else None
    if whole is not None:
        whole.check(shape)
    return RandomTransform(model, whole, noise=of("noise"), seed=seed)
