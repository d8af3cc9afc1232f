"""What all contract suites share."""

from __future__ import annotations

__all__ = ["ContractError", "require"]


class ContractError(AssertionError):
    """A method breaks its contract."""


def require(condition: object, message: str) -> None:
    """Raises a `ContractError` with the message unless the condition holds."""
    if not bool(condition):
        raise ContractError(message)
