"""``--views``: what a model is put behind; and whether a model is randomised by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from holdfast.core.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

    from holdfast.judge.desk import Model

__all__ = ["randomised", "ranges"]

_ASKED = 8


def ranges(text: str) -> dict[str, float]:
    """``rotation=20,noise=0.05`` as numbers.

    Raises:
        UsageError: not of that form, or no such range.

    Example:
        >>> ranges("rotation=20, noise=0.05")
        {'rotation': 20.0, 'noise': 0.05}
    """
    from holdfast.transforms.random_transform import RANGES

    found: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = part.strip().partition("=")
        if name not in RANGES:
            raise UsageError(f"--views has no range '{name}'. {did_you_mean(name, RANGES)}")
        try:
            found[name] = float(value) if equals else float("nan")
        except ValueError:
            found[name] = float("nan")
        if not found[name] > 0:
            raise UsageError(f"--views {part.strip()}: write {name}=NUMBER, above 0")
    return found


def randomised(model: Model, x: Tensor) -> bool:
    """Whether two forwards of the same inputs differ."""
    import torch

    from holdfast.numerics.evaluation import evaluating

    with torch.no_grad(), evaluating(model):
        return not torch.equal(model(x[:_ASKED].clone()), model(x[:_ASKED].clone()))
