"""Witnesses as 8-bit pictures: saved as PNG, loaded again, judged again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from holdfast.audits.context import Context

__all__ = ["altered", "in_8_bits", "load_png", "pictured", "save_png", "through_png"]

_FOLDER = "pictures"


def save_png(path: Path, x: Tensor) -> None:
    """Saves one image (1 or 3, H, W) in [0, 1], rounded to 8 bits."""
    pixels = (x.detach().cpu().double() * 255).round().clamp(0, 255).byte().numpy()
    Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(path)


def load_png(path: Path) -> Tensor:
    """Loads an image as (1 or 3, H, W) float32 in [0, 1]."""
    pixels = np.array(Image.open(path))
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return torch.as_tensor(np.ascontiguousarray(pixels)).float() / 255


def pictured(context: Context, x: Tensor) -> bool:
    """Whether (n, ...) witnesses can be pictures."""
    return x.ndim == 4 and x.shape[1] in (1, 3) and (context.plan.low, context.plan.high) == (0.0, 1.0)


def in_8_bits(x: Tensor) -> Tensor:
    """What comes back of images (n, 1 or 3, H, W) in [0, 1] when they are saved and loaded."""
    return (x.detach().double() * 255).round().clamp(0, 255).float() / 255


def altered(context: Context, ids: np.ndarray, x: Tensor) -> list[int]:
    """The ids of saved pictures that are there and show something else than these witnesses."""
    changed: list[int] = []
    for i, image in zip(ids.tolist(), in_8_bits(x).cpu(), strict=True):
        file = context.folder.path / _FOLDER / f"{i}.png"
        try:
            if file.exists() and not torch.equal(load_png(file), image):
                changed.append(i)
        except (OSError, ValueError):  # no picture any more
            changed.append(i)
    return changed


def through_png(context: Context, ids: np.ndarray, x: Tensor) -> Tensor | None:
    """Saves witnesses as ``pictures/ID.png`` in the run and loads them again; None if they are no pictures."""
    if not pictured(context, x):
        return None
    folder = context.folder.path / _FOLDER
    folder.mkdir(exist_ok=True)
    for i, image in zip(ids.tolist(), x, strict=True):
        save_png(folder / f"{i}.png", image)
    return torch.stack([load_png(folder / f"{i}.png") for i in ids.tolist()]).to(x.device)
