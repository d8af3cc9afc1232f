"""Rows of a question and the samples that they belong to: ``index`` (m,) says which."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["first_of", "rank", "reads_freely"]


def reads_freely(x: Tensor) -> bool:
    """Whether the host learns the values of a tensor without waiting for a device: what is decided by them may then be
    decided by row, which elsewhere would cost more than working on all rows.
    """
    return x.device.type == "cpu"


def first_of(index: Tensor, wins: Tensor, samples: int) -> Tensor:
    """(samples,) the first winning row of each sample; the number of rows where none is."""
    m = len(index)
    row = torch.arange(m, device=index.device).masked_fill(~wins, m)
    return torch.full((samples,), m, device=index.device).scatter_reduce(0, index, row, "amin")


def rank(index: Tensor) -> Tensor:
    """(m,) how many earlier rows have the same index."""
    if reads_freely(index) and bool((index[1:] > index[:-1]).all()):
        return torch.zeros_like(index)  # one row a sample, the usual case
    order = index.argsort(stable=True)
    sorted_index = index[order]
    position = torch.arange(len(index), device=index.device)
    starts = torch.searchsorted(sorted_index, sorted_index, side="left")
    return torch.empty_like(index).index_copy_(0, order, position - starts)
