"""Inputs as images, for methods that move windows, resize or smooth."""

from __future__ import annotations

from math import prod

from holdfast.core.problem import Problem

__all__ = ["image_view"]


def image_view(problem: Problem) -> tuple[int, int, int]:
    """Channels, height and width: images as they are, a matrix as one channel, all else as one strip."""
    features = tuple(problem.x.shape[1:])
    if len(features) == 3:
        return features
    return (1, *features) if len(features) == 2 else (1, 1, prod(features))
