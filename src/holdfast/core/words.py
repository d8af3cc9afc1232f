"""Numbers of things and the numbering of classes, as a person would write them."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["counted", "numbered", "sentences"]

_SHOWN = 20


def counted(number: int, noun: str) -> str:
    """So many of something.

    Example:
        >>> counted(1, "sample"), counted(1200, "sample"), counted(2, "class")
        ('1 sample', '1,200 samples', '2 classes')
    """
    many = "" if number == 1 else "es" if noun.endswith(("s", "x")) else "s"
    return f"{number:,} {noun}{many}"


def numbered(names: Sequence[str], most: int = _SHOWN) -> str:
    """Classes with their numbers; names that are just these numbers are not said twice.

    Example:
        >>> numbered(["cat", "dog"]), numbered(["0", "1", "2"])
        ('0 cat, 1 dog', '0 to 2')
    """
    if all(name == str(k) for k, name in enumerate(names)):
        return f"0 to {len(names) - 1}" if len(names) > 1 else "0"
    return ", ".join(f"{k} {name}" for k, name in enumerate(names[:most])) + (", ..." if len(names) > most else "")


def sentences(*parts: str) -> str:
    """Parts that follow one another, each with its full stop; after one, a plain word has a capital.

    Example:
        >>> sentences("linf <= 0.1 is much", "give a smaller one", "--anyway goes on.")
        'linf <= 0.1 is much. Give a smaller one. --anyway goes on.'
    """
    told: list[str] = []
    for part in filter(None, map(str.strip, parts)):
        first = part.split()[0].rstrip(",;:")
        said = part[0].upper() + part[1:] if told and first.isalpha() and first.islower() else part
        told.append(said if said[-1] in ".!?" else f"{said}.")
    return " ".join(told)
