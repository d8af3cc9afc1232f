"""Changes of where an image's pixels lie; bilinear, black beyond the edges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import pi

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from holdfast.core.errors import UsageError
from holdfast.transforms.transform import Axis, ImageTransform

__all__ = ["RotationTranslation", "Zoom"]


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
            Axis(name="rotation", unit="degrees", extent=rotation),
            Axis(name="right", unit="pixels", extent=translation * width),
            Axis(name="down", unit="pixels", extent=translation * height),
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


class Zoom(ImageTransform):
    """Images about their middle, larger or smaller; bilinear, black beyond the edges.

    Example:
        >>> Zoom(0.5)(torch.ones(1, 1, 2, 2), torch.tensor([[-1.0]])).flatten().tolist()
        [0.25, 0.25, 0.25, 0.25]
    """

    def __init__(self, scale: float = 0.1) -> None:
        """Args:
        scale: largest change of the factor to either side of 1, below 1.
        """
        if not 0 < scale < 1:
            raise UsageError(f"the range of a zoom must lie between 0 and 1, got {scale}")
        super().__init__(Axis(name="scale", unit="factor", extent=scale, neutral=1.0))

    @override
    def change(self, x: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        factor = values["scale"].to(x.dtype)
        none = torch.zeros_like(factor)
        rows = torch.cat([1 / factor, none, none], 2), torch.cat([none, 1 / factor, none], 2)
        grid = F.affine_grid(torch.cat(rows, 1), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
