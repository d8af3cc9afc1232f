"""What a value from elsewhere is, asked so that a type checker takes the answer too: JSON, YAML, a checkpoint."""

from __future__ import annotations

from typing import Any

from typing_extensions import TypeIs

__all__ = ["is_dict", "is_list", "is_list_or_tuple"]


def is_dict(value: object) -> TypeIs[dict[Any, Any]]:
    """Whether it is a dictionary, whose keys and values may be anything.

    Example:
        >>> is_dict({"a": 1}), is_dict([])
        (True, False)
    """
    return isinstance(value, dict)


def is_list(value: object) -> TypeIs[list[Any]]:
    """Whether it is a list, whose elements may be anything.

    Example:
        >>> is_list([1, "a"]), is_list((1, "a"))
        (True, False)
    """
    return isinstance(value, list)


def is_list_or_tuple(value: object) -> TypeIs[list[Any] | tuple[Any, ...]]:
    """Whether it is a list or a tuple, whose elements may be anything.

    Example:
        >>> is_list_or_tuple([1, "a"]), is_list_or_tuple((1, "a")), is_list_or_tuple("a")
        (True, True, False)
    """
    return isinstance(value, (list, tuple))
