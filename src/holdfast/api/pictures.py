"""Pictures beside an answer: what was found, as people look at it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["save_picture", "save_strips"]

_SIDE, _GAP, _LINE = 160, 8, 14


def save_picture(path: Path, x: Tensor) -> None:
    """One picture (1 or 3, H, W) in [0, 1] as PNG."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(_pixels(x)).save(path)


def _pixels(x: Tensor) -> NDArray[np.uint8]:
    """(H, W) or (H, W, 3) levels of a picture (1 or 3, H, W)."""
    import numpy as np

    pixels = np.rint(np.clip(x.double().numpy(), 0, 1) * 255).astype(np.uint8)
    return pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))


def save_strips(
    folder: Path, x: Tensor, x_adv: Tensor, names: Sequence[int], captions: Sequence[tuple[str, str]] | None = None
) -> int:
    """Clean, adversarial and difference (magnified around grey) side by side with captions, one file a sample.

    Args:
        folder: where to.
        x: (n, C, H, W) in [0, 1]; nothing is written where they are no pictures.
        x_adv: likewise.
        names: of the samples.
        captions: what stands over the clean and the adversarial picture.

    Returns:
        How many were written.
    """
    import torch
    from PIL import Image, ImageDraw

    from holdfast.report.audits.pictures import magnification

    if x.ndim != 4 or x.shape[1] not in (1, 3) or not len(x):
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    zoom = max(1, -(-_SIDE // max(x.shape[2:])))
    height, width = (zoom * s for s in x.shape[2:])
    for k, (name, clean, adversarial) in enumerate(zip(names, x, x_adv, strict=True)):
        change = adversarial - clean
        scale = magnification(float(change.abs().max()))
        said = captions[k] if captions is not None else ("clean", "adversarial")
        strip = Image.new("RGB", (3 * width + 4 * _GAP, height + 2 * _GAP + _LINE), "white")
        panels = torch.stack([clean, adversarial, 0.5 + scale * change])
        for at, (panel, text) in enumerate(zip(panels, (*said, f"difference x {scale}"), strict=True)):
            left = _GAP + at * (width + _GAP)
            drawn = Image.fromarray(_pixels(panel)).convert("RGB").resize((width, height), Image.Resampling.NEAREST)
            strip.paste(drawn, (left, _GAP + _LINE))
            ImageDraw.Draw(strip).text((left, _GAP), text[: width // 6], fill="black")
        strip.save(folder / f"{int(name):06d}.png")
    return len(x)
