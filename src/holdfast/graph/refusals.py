"""Refusals say what was met, where, and what to do: whatever a handler says, the operation is named and the way on added."""

from __future__ import annotations

from holdfast.core.errors import UnsupportedError

__all__ = ["advised", "named", "unreadable"]

_WAY_ON = "write the model with operations and settings that are served (holdfast verify --operations lists them)"


def named(refusal: UnsupportedError, operation: str, where: str = "") -> UnsupportedError:
    """A handler's refusal with the name of the operation, of the same class."""
    said = str(refusal)
    at = "" if where in said else where
    return refusal if f"'{operation}'" in said else type(refusal)(f"'{operation}'{at}: {said}")


def advised(refusal: UnsupportedError) -> UnsupportedError:
    """A refusal that ends with what to do, of the same class; one that says more than what was met stays as it is."""
    said = str(refusal)
    return refusal if "; " in said else type(refusal)(f"{said}; {_WAY_ON}")


def unreadable(operation: str, where: str, error: Exception) -> UnsupportedError:
    """What is said where a handler or PyTorch stumbles over a setting that nobody thought of."""
    lines = str(error).strip().splitlines()
    cause = f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
    return UnsupportedError(
        f"'{operation}'{where} is set in a way that cannot be read ({cause}); served are the settings of its schema, with "
        "sizes that are fixed and fit: write them out, or export the model again"
    )
