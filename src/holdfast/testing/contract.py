"""What all contract suites share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from holdfast.core.errors import UsageError

__all__ = ["ContractError", "require", "run_checks"]

C = TypeVar("C")


class ContractError(AssertionError):
    """A method breaks its contract."""


def require(condition: object, message: str) -> None:
    """Raises a `ContractError` with the message unless the condition holds."""
    if not bool(condition):
        raise ContractError(message)


def run_checks(subject: str, checks: Mapping[str, Callable[[C], None]], case: C, only: Iterable[str] | None) -> None:
    """Makes each check, and tells all that fail together.

    Args:
        subject: whose contract it is, for example ``PGD breaks the contract of an attack``.
        checks: by name.
        case: what they are made on.
        only: names of the checks to make; all by default.

    Raises:
        ContractError: what is wrong, check by check.
        UsageError: no such check.
    """
    wrong: dict[str, Exception] = {}
    for name in checks if only is None else only:
        if name not in checks:
            raise UsageError(f"there is no check '{name}'; known: {', '.join(checks)}")
        try:
            checks[name](case)
        except Exception as error:  # a crash is a breach like any other, and the next check shall still run
            wrong[name] = error
    if wrong:
        lines = [
            f"  {name}: {error}" if isinstance(error, ContractError) else f"  {name}: {type(error).__name__}: {error}"
            for name, error in wrong.items()
        ]
        raise ContractError("\n".join([f"{subject}:", *lines])) from next(iter(wrong.values()))
