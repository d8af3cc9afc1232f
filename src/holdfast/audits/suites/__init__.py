"""The suites of attacks, one file each: a suite's name is its file's, with hyphens.

This file imports nothing of them, so that a command's help can name them at once.
"""

from pathlib import Path

__all__ = ["suite_names"]


def suite_names() -> list[str]:
    """The names of all suites.

    Example:
        >>> suite_names()
        ['black-box', 'fast', 'minimal', 'standard']
    """
    return sorted(file.stem.replace("_", "-") for file in Path(__file__).parent.glob("[!_]*.py"))
