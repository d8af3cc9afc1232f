"""What a plan that was read from a file may not decide: to run code, to send data, to spend queries, to use a token.

A plan may come from somebody else, with the run folder that it lies in. Names of files are taken from it; what would run code
or ask a service needs the word of whoever calls.
"""

from __future__ import annotations

from collections.abc import Iterator

from holdfast.audits.plan import Plan, names_of
from holdfast.core.errors import BudgetError, UnsafeFileError
from holdfast.models import zoo

__all__ = ["admit", "names_code", "needs_trust"]

_OURS = "holdfast.models.zoo"
_CODE = frozenset({"model", "arch", "surrogate", "surrogate_arch"})


def names_code(text: str) -> bool:
    """Whether a name that a plan gives is one of code to import: not so for timm's architectures and our own zoo.

    Example:
        >>> [names_code(t) for t in ("net.py:build", "package.net:build", "timm:resnet18", "holdfast.models.zoo:digits_cnn")]
        [True, True, False, False]
        >>> [names_code(t) for t in ("model.safetensors", "https://here.example:8000/predict")]
        [False, False]
    """
    if text.startswith(("timm:", "http://", "https://")):
        return False
    source, colon, name = text.rpartition(":")
    return bool(colon) and name.isidentifier() and not (source == _OURS and name in zoo.__all__)


def admit(plan: Plan, *, given: bool = False) -> None:
    """Refuses what only the file says; ``given``: the model itself was handed over, and none will be opened.

    Raises:
        UnsafeFileError: code to import, without trust.
        BudgetError: a prediction API that the caller did not name.
    """
    for name, value in _code(plan, given=given):
        if not plan.trust:
            flag = name.replace("_", "-")
            raise UnsafeFileError(
                f"the plan's '{name}' names code, {value}, and a plan file is no consent to run it; "
                f"read that code, then add --trust or --{flag} {value} to this command"
            )
    if plan.remote and "model" in plan.theirs and not (given or plan.may_ask):
        raise BudgetError(
            f"the plan's model is an API, and a plan file is no consent to send data to it; to ask it, "
            f"and to send it HOLDFAST_API_TOKEN if that is set, add --model {plan.model} to this command"
        )


def needs_trust(plan: Plan) -> bool:
    """Whether the plan names code, so that whoever goes on with its run from the folder alone has to say --trust."""
    return any(names_code(v) for name in _CODE for v in names_of(getattr(plan, name)))


def _code(plan: Plan, *, given: bool) -> Iterator[tuple[str, str]]:
    for name in sorted(plan.theirs & _CODE):
        if given and name in ("model", "arch"):
            continue
        for value in names_of(getattr(plan, name)):
            if names_code(value):
                yield name, value
