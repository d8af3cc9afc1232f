"""Host arrays on the device: step counters and choices of rows are NumPy on the host, what is computed with is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["on_device"]


def on_device(array: np.ndarray[Any, Any], device: torch.device | str) -> Tensor:
    """A NumPy array as a tensor on a device, without waiting for the copy.

    Example:
        >>> on_device(np.arange(3), "cpu").tolist()
        [0, 1, 2]
    """
    whole = np.ascontiguousarray(array)
    return torch.from_numpy(whole).to(device, non_blocking=True)  # pyright: ignore[reportUnknownMemberType]
