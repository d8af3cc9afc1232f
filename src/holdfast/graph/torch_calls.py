"""What PyTorch keeps behind underscores of the operations that a program calls, and has no other way to."""

from __future__ import annotations

from typing import Any, TypeAlias, cast

import torch
from torch import fx

__all__ = ["Overload", "PartOfProgram", "overload_name", "overload_of", "schema_of"]

_OVERLOAD = torch._ops.OpOverload  # pyright: ignore[reportPrivateUsage]

Overload: TypeAlias = "_OVERLOAD[..., Any]"
"""One operation with arguments of certain types, such as ``aten.add.Tensor``."""

PartOfProgram = torch._ops.HigherOrderOperator  # pyright: ignore[reportPrivateUsage]
"""An operation that runs a program of its own."""


def overload_of(node: fx.Node) -> Overload | None:
    """What a node calls if that is one operation, and None if it is anything else."""
    target = node.target
    return cast("Overload", target) if isinstance(target, _OVERLOAD) else None


def schema_of(target: Overload) -> Any:
    """Its arguments with their defaults, and whether it writes in place."""
    return target._schema  # pyright: ignore[reportPrivateUsage]


def overload_name(target: Overload) -> str:
    """Such as ``Tensor``."""
    return target._overloadname  # pyright: ignore[reportPrivateUsage]
