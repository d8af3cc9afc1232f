"""Pictures beside an answer: what was found, as people look at it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["save_picture", "save_strips"]


def save_picture(path: Path, x: Tensor) -> None:
    """One picture (1 or 3, H, W) in [0, 1] as PNG."""
    import numpy as np
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.rint(np.clip(x.double().numpy(), 0, 1) * 255).astype(np.uint8)
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(path)


def save_strips(folder: Path, x: Tensor, x_adv: Tensor, names: Sequence[int]) -> int:
    """Clean, adversarial and difference (around grey) side by side, one file a sample; none where they are no images.

    Returns:
        How many were written.
    """
    import torch

    if x.ndim != 4 or x.shape[1] not in (1, 3) or not len(x):
        return 0
    for name, clean, adversarial in zip(names, x, x_adv, strict=True):
        strip = torch.cat([clean, adversarial, (adversarial - clean) / 2 + 0.5], dim=2)
        save_picture(folder / f"{int(name):06d}.png", strip)
    return len(x)
