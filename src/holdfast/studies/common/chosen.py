"""Attacks that a study is given, by name or as objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from holdfast.attacks.attack import Attack
from holdfast.core.registry import method, name_of

__all__ = ["attack_of", "attacks_of"]


def attack_of(given: str | Attack[Any, Any]) -> Attack[Any, Any]:
    """An attack, by its name with the defaults of its card.

    Raises:
        UsageError: it is the name of something else, or of nothing.

    Example:
        >>> attack_of("pgd").card.title
        'PGD'
    """
    if not isinstance(given, str):
        return given
    kind: Any = method(given, Attack)
    return kind()


def attacks_of(given: Sequence[str | Attack[Any, Any]]) -> dict[str, Attack[Any, Any]]:
    """Attacks by name, in the order given."""
    return {g if isinstance(g, str) else name_of(g): attack_of(g) for g in given}
