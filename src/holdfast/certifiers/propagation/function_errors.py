"""How far functions of one variable may be from what they compute, in the type in which they run.

Each bound is ``16 u |f|`` (8 units in the last place: PyTorch's vectorised exp, tanh, sin and pow are within 1 to 4, CUDA's
within 1 to 4, its programming guide says) and what the way that a function is usually computed loses more:

- sigmoid and tanh: rational approximations that end at some argument, and there are off by a part of u;
- erf: PyTorch's vectorised one is Abramowitz & Stegun 7.1.26, off by 1.5e-7 whatever the value (5 u measured in float32);
- gelu: ``x / 2 (1 + erf(x / sqrt 2))`` cancels for negative x, so the error is a part of x, not of the value;
- softplus, log and elu: ``log(1 + exp x)``, ``log x`` near 1 and ``exp x - 1`` lose units of 1;
- sin and cos: the argument is reduced, so units of 1, and beyond 10^4 nothing is claimed.

The tests compare each with PyTorch's kernels on every number that float16 and bfloat16 have.
"""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.certifiers.propagation.region import Box
from holdfast.core.errors import UnsupportedError
from holdfast.graph.model import Node

__all__ = ["function_error"]

_UNITS = 16
_FAR = 1e4  # radians


def function_error(node: Node, x: Box, y: Box, dtype: torch.dtype) -> Tensor:
    """How far the value of a function may be from the exact one at the argument that it gets.

    Args:
        node: the node.
        x: box of its argument, as it runs.
        y: box of its exact value.
        dtype: the type in which it runs.

    Returns:
        (n, \\*shape), infinite where nothing is known.

    Raises:
        UnsupportedError: the function is none of those that are known.
    """
    info = torch.finfo(dtype)
    u, tiny, value, reach = info.eps / 2, info.tiny, y.magnitude, x.magnitude
    # what is flushed to zero, before or after; no slope is above 1.2 but those that are treated below
    error = _UNITS * u * value + 8 * tiny
    small = (x.lower < tiny) & (x.upper > -tiny)  # the argument may be flushed
    if node.op in ("exp", "tanh", "sigmoid"):
        return error + 2 * u * reach.clamp(max=1) if node.op != "exp" else error
    if node.op == "silu":
        # x / (1 + exp(-x)): where exp overflows the quotient is 0
        return error + 2 * u * reach + 2 * reach / info.max
    if node.op == "erf":
        return error + _UNITS * u
    if node.op == "gelu":  # x (1 + erf) is twice the value before it is halved
        return torch.where(reach <= info.max / 2.1, error + _UNITS * u * reach, torch.inf)
    if node.op in ("softplus", "elu"):
        alpha = abs(float(node.attributes["alpha"])) if node.op == "elu" else 1.0
        return error + (_UNITS * u + 8 * tiny) * alpha
    if node.op in ("sin", "cos"):
        return torch.where(reach <= _FAR, error + _UNITS * u, torch.inf)
    if node.op == "leaky_relu":
        slope = torch.tensor(float(node.attributes["slope"]), dtype=torch.float64)
        moved = float((slope.to(dtype).double() - slope).abs()) + tiny * (abs(float(slope)) < tiny)
        return (4 * u * abs(float(slope)) + moved) * reach + 8 * tiny
    if node.op == "sign":
        between = torch.where((x.lower <= -tiny) & (x.upper >= tiny), 2 * tiny / reach, 1.0)
        return torch.where(small & ((x.lower != 0) | (x.upper != 0)), between, 0.0)
    if node.op == "sqrt":
        return torch.where(small, error + tiny**0.5, error)
    if node.op == "log":
        return torch.where(small, torch.inf, error + _UNITS * u)
    if node.op in ("reciprocal", "power"):
        return _power_error(node, error, small, value, x, dtype)
    raise UnsupportedError(
        f"it is not known how '{node.op}' rounds when it runs in {str(dtype).removeprefix('torch.')}"
    )


def _power_error(node: Node, error: Tensor, small: Tensor, value: Tensor, x: Box, dtype: torch.dtype) -> Tensor:
    """Of ``x ** p``, by products or by a function of its own: |p| roundings more, and p is itself stored in the type."""
    info = torch.finfo(dtype)
    p = -1.0 if node.op == "reciprocal" else float(node.attributes["exponent"])
    error = error + 2 * abs(p) * info.eps / 2 * value
    exponent = torch.tensor(p, dtype=torch.float64)
    shifted = float((exponent.to(dtype).double() - exponent).abs())
    if shifted:  # x ** (p + d) = x ** p exp(d log x); only of positive numbers
        decades = torch.maximum(x.lower.clamp(min=info.tiny).log().abs(), x.upper.clamp(min=info.tiny).log().abs())
        error = error + torch.expm1(shifted * decades) * 1.1 * value
    reach = x.magnitude
    if p < 0:  # 1 over a positive power, which may underflow, and be flushed, where the quotient is large
        return torch.where(small | (value > 0.9 / info.tiny), torch.inf, error)
    if p < 1:
        return torch.where(small, error + 2 * info.tiny**p, error) if p else torch.zeros_like(error)
    # a whole power by products: the argument's own flush, and that of products on the way, grow by what follows
    return error + 8 * p * info.tiny * (1 + reach.clamp(min=1) ** (p - 1))
