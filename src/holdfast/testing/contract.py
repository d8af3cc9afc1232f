"""What all contract suites share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from traceback import extract_tb
from typing import Any, Generic, TypeVar

from holdfast.core.errors import UsageError
from holdfast.core.registry import method

__all__ = ["ContractError", "ContractSuite", "instance_of", "reduced", "refuses", "require", "run_checks"]

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
        same: dict[str, list[str]] = {}
        for name, error in wrong.items():
            same.setdefault(_told(error), []).append(name)
        lines = [f"  {', '.join(names)}: {told}" for told, names in same.items()]
        raise ContractError("\n".join([f"{subject}:", *lines])) from next(iter(wrong.values()))


def _told(error: Exception) -> str:
    """What is wrong; of a crash also where, since its traceback is one of several."""
    if isinstance(error, ContractError):
        return str(error)
    frames = extract_tb(error.__traceback__)
    last = next(
        (f for f in reversed(frames) if "site-packages" not in f.filename), frames[-1]
    )  # not a library's inside
    return f"{type(error).__name__}: {error} ({Path(last.filename).name}, line {last.lineno})"


def refuses(call: Callable[[], object], error: type[Exception], what: str) -> None:
    """Requires that a call is refused by this error.

    Raises:
        ContractError: it is not refused.
    """
    try:
        call()
    except error:
        return
    raise ContractError(f"it must refuse {what}, in words")


def reduced(tool: C, limits: Mapping[str, Any]) -> C:
    """A method with the parameters of these names at most so large: little effort, where the claim is the same."""
    given: Any = tool
    names = {f.name for f in fields(given)}
    return replace(given, **{k: min(v, getattr(given, k)) for k, v in limits.items() if k in names})


def instance_of(given: Any, of: type[C]) -> C:
    """A method from a registered name, a class that needs no arguments, or an instance.

    Raises:
        UsageError: no such method, or one of another kind.
    """
    made: Any = method(given) if isinstance(given, str) else given
    made = made() if isinstance(made, type) else made
    if not isinstance(made, of):
        raise UsageError(f"{given} is no {of.__name__}; its class must derive from it")
    return made


@dataclass(frozen=True)
class ContractSuite(Generic[C]):
    """The contract of one kind of method: what its checks are, and what they are made on.

    Attributes:
        kind: as people say it, with its article: ``a poisoner``.
        of: the contract's class.
        checks: by name, in the order in which they run.
    """

    kind: str
    of: type[C]
    checks: Mapping[str, Callable[[C], None]]

    def __call__(self, given: object, only: Iterable[str] | None = None) -> None:
        """Makes the checks on a method; see `instance_of` and `run_checks`."""
        tool = instance_of(given, self.of)
        title: Any = tool
        run_checks(f"{title.card.title} breaks the contract of {self.kind}", self.checks, tool, only)
