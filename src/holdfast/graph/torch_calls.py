"""What PyTorch keeps behind underscores of the operations that a program calls, and has no other way to."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["Overload", "PartOfProgram", "overload_name", "schema_of"]

Overload = torch._ops.OpOverload  # pyright: ignore[reportPrivateUsage]
"""One operation with arguments of certain types, such as ``aten.add.Tensor``."""

PartOfProgram = torch._ops.HigherOrderOperator  # pyright: ignore[reportPrivateUsage]
"""An operation that runs a program of its own."""


def schema_of(target: Overload) -> Any:
    """Its arguments with their defaults, and whether it writes in place."""
    return target._schema  # pyright: ignore[reportPrivateUsage]


def overload_name(target: Overload) -> str:
    """Such as ``Tensor``."""
    return target._overloadname  # pyright: ignore[reportPrivateUsage]
