"""Names of a package that are imported when they are used, so that a help text waits for nothing heavy."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

__all__ = ["lazily"]


def lazily(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package.

    Declare the names under ``TYPE_CHECKING`` too, and take ``__getattr__`` only otherwise, else a misspelt name would pass a
    type checker.

    Args:
        package: its full name.
        homes: by name, the module below ``holdfast`` that has it.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        value = getattr(import_module(f"holdfast.{homes[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted(homes)
