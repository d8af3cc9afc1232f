"""The one table: what every method of bounds knows about each operation of the graph."""

from __future__ import annotations

from holdfast.certify.bounds._activations import LeakyRelu, MaxPool, Sigmoid, Tanh
from holdfast.certify.bounds._operation import (
    Add,
    Affine,
    Concat,
    Conv,
    Linear,
    Mean,
    Operation,
    Pad,
    Permute,
    Reshape,
    Select,
)
from holdfast.core.errors import UnsupportedError

__all__ = ["TABLE", "operation"]

TABLE: dict[str, Operation] = {
    "linear": Linear(),
    "conv": Conv(),
    "affine": Affine(),
    "relu": LeakyRelu(),
    "leaky_relu": LeakyRelu(),
    "sigmoid": Sigmoid(),
    "tanh": Tanh(),
    "add": Add(1),
    "sub": Add(-1),
    "reshape": Reshape(),
    "permute": Permute(),
    "select": Select(),
    "pad": Pad(),
    "concat": Concat(),
    "max_pool": MaxPool(),
    "mean": Mean(),
}


def operation(name: str) -> Operation:
    """The entry of an operation.

    Raises:
        UnsupportedError: there is none; a bound that nobody proved is never given.

    Example:
        >>> operation("softmax")
        Traceback (most recent call last):
        ...
        holdfast.core.errors.UnsupportedError: no bound is known for 'softmax'
    """
    if name not in TABLE:
        raise UnsupportedError(f"no bound is known for '{name}'")
    return TABLE[name]
