"""What a classifier makes of its inputs before its last linear layer."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.core.errors import UnsupportedError
from holdfast.numerics.evaluation import evaluating

__all__ = ["penultimate"]

_BATCH = 512


def penultimate(model: nn.Module, x: Tensor) -> Tensor:
    """(n, d) float64 on the host: the input of the last linear layer that runs, in evaluation mode.

    Args:
        model: x (n, \\*features) -> scores (n, K).
        x: on any device; it goes to the model's, batch by batch.

    Raises:
        UnsupportedError: no linear layer runs.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> torch.equal(penultimate(net, torch.ones(1, 2)), net[:2](torch.ones(1, 2)).detach().double())
        True
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    kept: list[Tensor] = []
    with torch.no_grad(), evaluating(model), _last_input(model) as last:
        for part in torch.split(x, _BATCH):
            last.clear()
            model(part.to(device))
            if not last:
                raise UnsupportedError("the model runs no linear layer, whose input would be its representation")
            kept.append(last[-1].flatten(1).double().cpu())
    return torch.cat(kept)


@contextmanager
def _last_input(model: nn.Module) -> Generator[list[Tensor], None, None]:
    """The inputs of linear layers in the order in which they run."""
    seen: list[Tensor] = []

    def remember(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.append(inputs[0].detach())

    handles = [m.register_forward_pre_hook(remember) for m in model.modules() if isinstance(m, nn.Linear)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
