"""The error tree: every error that Holdfast raises on purpose, each with the exit code of the command line.

HoldfastError                  2
├── UsageError                 2   a wrong argument, plan or combination; the message names the fix
│   └── UnsupportedError       2   asked of a method or operation that cannot have it, refused by name
├── DataError                  2   data that cannot be used as declared
├── ModelError                 2   a model that cannot be read or run
│   └── UnsafeFileError        4   opening the file could run code; `--trust` opens it
├── BudgetError                2   a declared budget or consent is missing
├── JournalError               3   a run folder that does not belong to this plan, or was altered
└── ContradictionError         3   a witness inside a sound certificate's radius
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "BudgetError",
    "ContradictionError",
    "DataError",
    "HoldfastError",
    "JournalError",
    "ModelError",
    "UnsafeFileError",
    "UnsupportedError",
    "UsageError",
    "did_you_mean",
]


class HoldfastError(Exception):
    """Root of the tree."""

    exit_code = 2


class UsageError(HoldfastError, ValueError):
    """A wrong argument, plan or combination."""


class UnsupportedError(UsageError):
    """A request that a method or an operation cannot have."""


class DataError(HoldfastError, ValueError):
    """Data that cannot be used as declared."""


class ModelError(HoldfastError):
    """A model that cannot be read or run."""


class UnsafeFileError(ModelError):
    """A file that could run code when it is opened."""

    exit_code = 4


class BudgetError(HoldfastError):
    """A declared budget or consent is missing."""


class JournalError(HoldfastError):
    """A run folder that does not belong to this plan, or was altered."""

    exit_code = 3


class ContradictionError(HoldfastError):
    """A witness lies inside a radius that was proved safe."""

    exit_code = 3


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A sentence for an unknown word: the near ones if there are any, all of them otherwise.

    Example:
        >>> did_you_mean("pdg", ["pgd", "fgsm"])
        'Did you mean pgd?'
    """
    names = sorted(known)
    near = get_close_matches(word, names, n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(names)}."
