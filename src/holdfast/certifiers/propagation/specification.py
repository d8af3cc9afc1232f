"""Lower bounds of linear functions of a graph's output, from what is known of its nodes."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.certifiers.propagation.region import gamma
from holdfast.certifiers.propagation.substitution import Alphas, Coefficients, LinearBound, Substitution
from holdfast.certifiers.proved import numbers
from holdfast.core.errors import UnsupportedError

__all__ = ["best_specification", "linear_specification", "specification"]


def specification(
    bounds: Substitution,
    c: Tensor,
    d: Tensor | None = None,
    alphas: Alphas | None = None,
    *,
    extra: Coefficients | None = None,
    at_boxes: bool = False,
) -> Tensor:
    """Lower bounds of ``C f(x') + d`` from a propagation that has run: `linear_specification` without the functions.

    Returns:
        (n, rows).
    """
    return linear_specification(bounds, c, d, alphas, extra=extra, at_boxes=at_boxes).least


def best_specification(bounds: Substitution, c: Tensor, d: Tensor | None = None) -> Tensor:
    """The better of `specification` and its bound by intervals, (n, rows)."""
    return torch.maximum(specification(bounds, c, d), specification(bounds, c, d, at_boxes=True))


def linear_specification(
    bounds: Substitution,
    c: Tensor,
    d: Tensor | None = None,
    alphas: Alphas | None = None,
    *,
    extra: Coefficients | None = None,
    at_boxes: bool = False,
) -> LinearBound:
    """Lower bounds of ``C f(x') + d`` from a propagation that has run, with linear functions of the input below it.

    Args:
        bounds: the propagation.
        c: (n, rows, classes) or (rows, classes).
        d: (rows,) or (n, rows), 0 if missing.
        alphas: see `Substitution.minimum`.
        extra: see `Substitution.minimum`.
        at_boxes: see `Substitution.minimum`.

    Returns:
        Samples first: (n, rows), and (n, rows, features).

    Raises:
        UnsupportedError: the output is not a vector.
    """
    output = len(bounds.graph.nodes) - 1
    if len(bounds.graph.output_shape) != 1:
        raise UnsupportedError(f"a specification needs a vector as output, not {bounds.graph.output_shape}")
    n, reference = len(bounds.region.x), bounds.region.x
    rows = c.to(reference).expand(n, *c.shape[-2:]).transpose(0, 1)
    bound = bounds.linear_bound(output, rows, alphas, extra=extra, at_boxes=at_boxes)
    lower = bound.least.T
    coefficients = None if bound.coefficients is None else bound.coefficients.transpose(0, 1)
    if d is not None:
        lower = lower + d.to(reference)
        lower = numbers(lower - gamma(1) * lower.abs()) if bounds.sound else lower
    return LinearBound(lower, coefficients)
