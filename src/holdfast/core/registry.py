"""Methods by name. A method's name is its file's name; its card stands in its class; nothing is listed twice.

A name is resolved by walking the folders below (files are only imported when they are asked for), then the entry points
``holdfast.methods`` of installed plug-ins.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from holdfast.core.cards import Card
from holdfast.core.errors import UsageError, did_you_mean

__all__ = ["card", "cards", "kind", "method", "names"]

# Kind and home, the particular before the general.
_HOUSES = (
    ("shared attack", "attacks/evasion/universal"),
    ("shared attack", "attacks/evasion/physical"),
    ("shared attack", "attacks/evasion/transfer/substitute.py"),
    ("semantic attack", "attacks/evasion/semantic"),
    ("attack", "attacks/evasion"),
    ("set certifier", "certifiers/sets"),
    ("certifier", "certifiers/bounds"),
    ("certifier", "certifiers/complete"),
    ("certifier", "certifiers/smoothing"),
    ("certifier", "certifiers/estimates"),
    ("defence", "defences"),
)


@cache
def _places() -> dict[str, tuple[str, str | EntryPoint]]:
    """Name -> (kind, module or entry point)."""
    root = Path(__file__).parent.parent
    found: dict[str, tuple[str, str | EntryPoint]] = {}
    for kind, house in _HOUSES:
        home = root / house
        for file in [home] if home.suffix else sorted(home.rglob("*.py")):
            if not file.stem.startswith("_") and len(file.relative_to(root).parts) > 2 and file.exists():
                module = ".".join(["holdfast", *file.relative_to(root).with_suffix("").parts])
                found.setdefault(file.stem, (kind, module))
    for point in entry_points(group="holdfast.methods"):
        found.setdefault(point.name, ("plug-in", point))
    return found


def names(kind: str | None = None, pattern: str = "*") -> list[str]:
    """Names of the methods of a kind (``attack``, ``shared attack``, ``certifier``, ...) that match a glob pattern."""
    return sorted(n for n, (k, _) in _places().items() if kind in (None, k) and fnmatch(n, pattern))


def kind(name: str) -> str:
    """What a method is: ``attack``, ``shared attack``, ``semantic attack``, ``certifier``, ``defence`` or ``plug-in``."""
    return _places()[name][0]


def method(name: str) -> type:
    """The class of a method.

    Raises:
        UsageError: there is no such method; the message names the near ones.

    Example:
        >>> method("pgd").card.title
        'PGD'
    """
    key = name.replace("-", "_").lower()
    if key not in _places():
        raise UsageError(f"there is no method '{name}'. {did_you_mean(key, _places())}")
    _, place = _places()[key]
    if isinstance(place, EntryPoint):
        return place.load()
    module = import_module(place)
    for value in vars(module).values():
        if isinstance(value, type) and value.__module__ == place and isinstance(getattr(value, "card", None), Card):
            return value
    raise UsageError(f"{place} declares no method: no class with a card")


def card(name: str) -> Card:
    """The card of a method."""
    return method(name).card  # type: ignore[attr-defined]


def cards(kind: str | None = None, pattern: str = "*") -> Iterator[tuple[str, Card]]:
    """(name, card) of each method; imports them."""
    for name in names(kind, pattern):
        yield name, card(name)
