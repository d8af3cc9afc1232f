"""Rows cut into chunks."""

from __future__ import annotations

from holdfast.core.errors import UsageError

__all__ = ["ranges"]


def ranges(n: int, size: int) -> list[range]:
    """The rows 0..n-1 in consecutive ranges of ``size``, the last one shorter if need be.

    Example:
        >>> ranges(5, 2)
        [range(0, 2), range(2, 4), range(4, 5)]
    """
    if n < 0 or size < 1:
        raise UsageError(f"cannot cut {n} rows into chunks of {size}")
    return [range(i, min(i + size, n)) for i in range(0, n, size)]
