"""Host arrays on the device: step counters and choices of rows are NumPy on the host, what is computed with is not.

Sorting is the exception: on a CPU NumPy sorts with vector instructions, several times faster than PyTorch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["falling_order", "on_device", "rising"]


def on_device(array: np.ndarray[Any, Any], device: torch.device | str) -> Tensor:
    """A NumPy array as a tensor on a device, without waiting for the copy.

    Example:
        >>> on_device(np.arange(3), "cpu").tolist()
        [0, 1, 2]
    """
    whole = np.ascontiguousarray(array)
    return torch.from_numpy(whole).to(device, non_blocking=True)  # pyright: ignore[reportUnknownMemberType]


def rising(values: Tensor) -> Tensor:
    """The values of each row, the least first.

    Example:
        >>> rising(torch.tensor([[3.0, 1.0, 2.0]])).tolist()
        [[1.0, 2.0, 3.0]]
    """
    if values.device.type != "cpu":
        return values.sort(dim=-1).values
    return torch.from_numpy(np.sort(values.detach().numpy(), axis=-1))  # pyright: ignore[reportUnknownMemberType]


def falling_order(values: Tensor) -> Tensor:
    """int64 indices that put each row in falling order; equal values come in an order that their row alone decides.

    Example:
        >>> falling_order(torch.tensor([[3.0, 1.0, 2.0]])).tolist()
        [[0, 2, 1]]
    """
    if values.device.type != "cpu":
        return values.argsort(dim=-1, descending=True, stable=True)
    return torch.from_numpy(np.argsort(-values.detach().numpy(), axis=-1))  # pyright: ignore[reportUnknownMemberType]
