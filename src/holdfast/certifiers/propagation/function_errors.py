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

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.certifiers.propagation.region import Box
from holdfast.core.errors import UnsupportedError
from holdfast.graph.model import Node
from holdfast.graph.operations import OPERATIONS, Rounding

__all__ = ["LOSSES", "FunctionRun", "function_error"]

_UNITS = 16
_FAR = 1e4  # radians


@dataclass(frozen=True, kw_only=True)
class FunctionRun:
    """A function as it runs.

    Attributes:
        node: the node.
        x: box of its argument, as it runs.
        y: box of its exact value.
        dtype: the type in which it runs.
    """

    node: Node
    x: Box
    y: Box
    dtype: torch.dtype

    @property
    def u(self) -> float:
        """Unit roundoff."""
        return torch.finfo(self.dtype).eps / 2

    @property
    def tiny(self) -> float:
        """The smallest normal number, below which anything may be flushed to zero."""
        return torch.finfo(self.dtype).tiny

    @property
    def usual(self) -> Tensor:
        """16 units of the value, and what is flushed to zero before or after."""
        return _UNITS * self.u * self.y.magnitude + 8 * self.tiny

    @property
    def flushed(self) -> Tensor:
        """Where the argument may be flushed to zero."""
        return (self.x.lower < self.tiny) & (self.x.upper > -self.tiny)


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
        UnsupportedError: nothing is known about how the function rounds.
    """
    run = FunctionRun(node=node, x=x, y=y, dtype=dtype)
    if node.op in LOSSES:
        return LOSSES[node.op](run)
    operation = OPERATIONS.get(node.op)
    if operation is None or operation.rounding is not Rounding.ULPS:
        raise UnsupportedError(
            f"it is not known how '{node.op}' rounds when it runs in {str(dtype).removeprefix('torch.')}"
        )
    return run.usual


def _rational(run: FunctionRun) -> Tensor:
    return run.usual + 2 * run.u * run.x.magnitude.clamp(max=1)


def _silu(run: FunctionRun) -> Tensor:
    """``x / (1 + exp(-x))``: where exp overflows the quotient is 0."""
    reach = run.x.magnitude
    return run.usual + 2 * run.u * reach + 2 * reach / torch.finfo(run.dtype).max


def _gelu(run: FunctionRun) -> Tensor:
    """``x (1 + erf)`` is twice the value before it is halved."""
    reach = run.x.magnitude
    return torch.where(reach <= torch.finfo(run.dtype).max / 2.1, run.usual + _UNITS * run.u * reach, torch.inf)


def _units_of_one(run: FunctionRun) -> Tensor:
    return run.usual + (_UNITS * run.u + 8 * run.tiny)


def _elu(run: FunctionRun) -> Tensor:
    return run.usual + (_UNITS * run.u + 8 * run.tiny) * abs(float(run.node.attributes["alpha"]))


def _wave(run: FunctionRun) -> Tensor:
    return torch.where(run.x.magnitude <= _FAR, run.usual + _UNITS * run.u, torch.inf)


def _leaky_relu(run: FunctionRun) -> Tensor:
    """The slope is stored in the type, where it may be flushed."""
    slope = torch.tensor(float(run.node.attributes["slope"]), dtype=torch.float64)
    moved = float((slope.to(run.dtype).double() - slope).abs()) + run.tiny * (abs(float(slope)) < run.tiny)
    return (4 * run.u * abs(float(slope)) + moved) * run.x.magnitude + 8 * run.tiny


def _sign(run: FunctionRun) -> Tensor:
    low, high = run.x
    between = torch.where((low <= -run.tiny) & (high >= run.tiny), 2 * run.tiny / run.x.magnitude, 1.0)
    return torch.where(run.flushed & ((low != 0) | (high != 0)), between, 0.0)


def _power(run: FunctionRun, p: float) -> Tensor:
    """Of ``x ** p``, by products or by a function of its own: |p| roundings more, and p is itself stored in the type."""
    tiny, value, x = run.tiny, run.y.magnitude, run.x
    error = run.usual + 2 * abs(p) * torch.finfo(run.dtype).eps / 2 * value
    exponent = torch.tensor(p, dtype=torch.float64)
    shifted = float((exponent.to(run.dtype).double() - exponent).abs())
    if shifted:  # x ** (p + d) = x ** p exp(d log x); only of positive numbers
        decades = torch.maximum(x.lower.clamp(min=tiny).log().abs(), x.upper.clamp(min=tiny).log().abs())
        error = error + torch.expm1(shifted * decades) * 1.1 * value
    if p < 0:  # 1 over a positive power, which may underflow, and be flushed, where the quotient is large
        return torch.where(run.flushed | (value > 0.9 / tiny), torch.inf, error)
    if p < 1:
        return torch.where(run.flushed, error + 2 * tiny**p, error) if p else torch.zeros_like(error)
    # a whole power by products: the argument's own flush, and that of products on the way, grow by what follows
    return error + 8 * p * tiny * (1 + x.magnitude.clamp(min=1) ** (p - 1))


LOSSES: dict[str, Callable[[FunctionRun], Tensor]] = {
    "sigmoid": _rational,
    "tanh": _rational,
    "silu": _silu,
    "erf": lambda run: run.usual + _UNITS * run.u,
    "gelu": _gelu,
    "softplus": _units_of_one,
    "elu": _elu,
    "sin": _wave,
    "cos": _wave,
    "leaky_relu": _leaky_relu,
    "sign": _sign,
    "sqrt": lambda run: torch.where(run.flushed, run.usual + run.tiny**0.5, run.usual),
    "log": lambda run: torch.where(run.flushed, torch.inf, run.usual + _UNITS * run.u),
    "reciprocal": lambda run: _power(run, -1.0),
    "power": lambda run: _power(run, float(run.node.attributes["exponent"])),
}
"""What functions lose that are not within 16 units of their value."""
