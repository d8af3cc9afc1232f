"""Evaluation mode for the time being: whoever asks a model leaves it, and the caller's random state, as they were."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from holdfast.core.arrays import outside_inference_mode
from holdfast.core.draws import seeded

__all__ = ["evaluate", "evaluating", "evaluation_mode"]

_ROWS = 256


@contextmanager
def evaluation_mode(*models: object) -> Generator[None, None, None]:
    """Puts models into their evaluation mode and puts every submodule's own mode back.

    ``eval()`` decides what the mode is: a module that overrides ``train`` may switch more than flags, or keep some on.
    Where it cannot be called (exported programs), the flags are set. What is no module is left alone.

    Example:
        >>> model = nn.Sequential(nn.Dropout()).train()
        >>> with evaluation_mode(model):
        ...     model[0].training
        False
        >>> model[0].training
        True
    """
    roots = [m for m in models if isinstance(m, nn.Module)]
    # a frozen ScriptModule has no mode
    modes = [(m, m.training) for root in roots for m in root.modules() if hasattr(m, "training")]
    was = [getattr(root, "training", False) for root in roots]
    for root in roots:
        _switch(root, on=False)
    try:
        yield
    finally:
        for root, mode in zip(roots, was, strict=True):
            if mode:
                _switch(root, on=True)
        for module, mode in modes:
            module.training = mode


@contextmanager
def evaluating(*models: object) -> Generator[None, None, None]:
    """As `evaluation_mode`, outside of inference mode and from one random state; the caller's own is put back."""
    with evaluation_mode(*models), outside_inference_mode(), seeded(0):
        yield


def evaluate(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """(n, K) scores of x (n, \\*features) in evaluation mode, without a gradient, so many rows at once as memory holds.

    The model gets copies, since some write into what they are given; it is not asked where there is nothing to ask.

    Example:
        >>> evaluate(nn.Dropout(0.5), torch.ones(2, 1)).tolist()
        [[1.0], [1.0]]
    """
    if not len(x):
        return x.new_zeros(0, 2)
    with torch.no_grad(), evaluating(model):
        return torch.cat([model(part.clone()) for part in torch.split(x, _ROWS)])


def _switch(root: nn.Module, *, on: bool) -> None:
    try:
        root.train(on) if on else root.eval()
    except NotImplementedError:  # a module of torch.export
        for module in root.modules():
            module.training = on
    except AttributeError:  # a frozen ScriptModule, whose mode was fixed then
        if hasattr(root, "training"):
            raise
