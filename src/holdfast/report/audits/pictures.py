"""Pictures of clean and adversarial inputs and their difference, as PNG data URIs."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from math import ceil

import numpy as np
from PIL import Image

from holdfast.audits.document import Document
from holdfast.report.markup import measure

__all__ = ["MOST", "Picture", "cards", "magnification"]

MOST = 12
_SIDE = 80
_SCALES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A broken sample as the page shows it.

    Attributes:
        id: id of the sample.
        label: its class.
        prediction: what the model says of the clean input.
        adversarial_prediction: what it says of the adversarial one; None where nobody wrote it down.
        distance: between the two, in the threat model's norm.
        attack: name of the method that found it.
        clean: (C, H, W) in [0, 1].
        adversarial: likewise.
    """

    id: int
    label: int
    prediction: int
    adversarial_prediction: int | None
    distance: float
    attack: str
    clean: np.ndarray
    adversarial: np.ndarray


def cards(document: Document, pictures: Sequence[Picture]) -> list[dict[str, object]]:
    """What the template shows of the first dozen pictures that are grey or RGB; others are left out."""
    names = dict(enumerate(document.data.class_names))
    titles = {a.name: a.title for a in document.suite.attacks}
    out: list[dict[str, object]] = []
    for p in [p for p in pictures if _shows(p)][:MOST]:
        clean, adversarial = _small(p.clean), _small(p.adversarial)
        change = p.adversarial.astype(np.float64) - p.clean.astype(np.float64)
        most = float(np.abs(change).max())
        scale = magnification(most)
        height, width = p.clean.shape[1:]
        after = p.adversarial_prediction
        out.append(
            {
                "id": p.id,
                "label": names.get(p.label, str(p.label)),
                "before": names.get(p.prediction, str(p.prediction)),
                "after": "another class" if after is None else names.get(after, str(after)),
                "distance": measure(p.distance),
                "attack": titles.get(p.attack, p.attack),
                "scale": scale,
                "most": measure(most, 3),
                "shrunk": f"{width} × {height}" if clean.shape != p.clean.shape else None,
                "clean": _uri(clean),
                "adversarial": _uri(adversarial),
                "difference": _uri(_small(0.5 + scale * change)),
            }
        )
    return out


def magnification(most: float) -> int:
    """How much a difference of at most ``most`` is magnified around grey, so that it stays within black and white.

    Example:
        >>> magnification(8 / 255)
        10
    """
    return max([s for s in _SCALES if s * most <= 0.5001], default=1)


def _shows(p: Picture) -> bool:
    a, b = p.clean, p.adversarial
    return a.ndim == 3 and a.shape == b.shape and a.shape[0] in (1, 3) and a.size > 0 and bool(np.isfinite(a + b).all())


def _small(image: np.ndarray) -> np.ndarray:
    """The image, averaged over square blocks when it is larger than the page can afford."""
    block = ceil(max(image.shape[1:]) / _SIDE)
    if block == 1:
        return image
    c, h, w = (image.shape[0], *(max(1, n // block) for n in image.shape[1:]))
    rows, columns = min(block, image.shape[1]), min(block, image.shape[2])
    return image[:, : h * rows, : w * columns].reshape(c, h, rows, w, columns).mean((2, 4))


def _uri(image: np.ndarray) -> str:
    values = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    picture = Image.fromarray(values[0]) if len(values) == 1 else Image.fromarray(values.transpose(1, 2, 0).copy())
    file = BytesIO()
    picture.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + b64encode(file.getvalue()).decode()
