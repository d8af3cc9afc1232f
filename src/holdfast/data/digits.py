"""The embedded data set: 1,797 handwritten digits of 8x8 pixels, shipped with scikit-learn."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from holdfast.core.errors import UsageError, did_you_mean
from holdfast.data.dataset import Dataset

__all__ = ["SPLITS", "load_digits"]

SPLITS = ("all", "train", "test")
_TRAIN = 1297


def load_digits(split: str = "all") -> Dataset:
    """The digits as (n, 1, 8, 8) float32 in [0, 1], ten classes (Alpaydin & Kaynak, 1998).

    Args:
        split: ``all`` (1,797, original order), ``train`` (1,297) or ``test`` (500); the split never changes.

    Raises:
        UsageError: another split.

    Example:
        >>> load_digits("test").x.shape
        torch.Size([500, 1, 8, 8])
    """
    if split not in SPLITS:
        raise UsageError(f"digits have no split '{split}'. {did_you_mean(split, SPLITS)}")
    # slow to import, and only the demo needs it; scikit-learn comes without types
    from sklearn.datasets import load_digits as bundled  # pyright: ignore[reportMissingTypeStubs]

    images, labels = cast(tuple[Any, Any], bundled(return_X_y=True))
    x = (np.asarray(images) / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    y = np.asarray(labels, np.int64)
    if split != "all":
        order = np.random.RandomState(0).permutation(
            len(x)
        )  # the legacy generator: NumPy promises that it never changes
        rows = order[:_TRAIN] if split == "train" else order[_TRAIN:]
        x, y = x[rows], y[rows]
    return Dataset.of(x, y, name=f"digits:{split}", classes=[str(d) for d in range(10)])
