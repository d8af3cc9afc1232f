"""Options by kind: a command takes a dataclass, its user sees one option for each of the fields."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Annotated, Any, get_args, get_origin, get_type_hints

__all__ = ["Without", "spread"]


class Without:
    """``Annotated[ModelOptions, Without("anyway")]``: fields of a kind that a command does not have."""

    def __init__(self, *names: str) -> None:
        """Names them; they keep their defaults."""
        self.names = names


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """The command with one option for each field of the dataclasses that it takes."""
    hints, groups = get_type_hints(command, include_extras=True), dict[str, tuple[type, list[str]]]()
    options: list[Parameter] = []
    for one in signature(command).parameters.values():
        kind, left_out = _kind(hints[one.name])
        if kind is None:
            options.append(one.replace(annotation=hints[one.name], kind=Parameter.KEYWORD_ONLY))
            continue
        own = list(_options(kind, left_out))
        groups[one.name] = kind, [option.name for option in own]
        options += own

    @wraps(command)
    def run(**given: Any) -> None:
        for name, (kind, names) in groups.items():
            given[name] = kind(**{option: given.pop(option) for option in names})
        command(**given)

    run.__signature__ = Signature(options)  # type: ignore[attr-defined]  # what typer reads, as functools documents it
    run.__annotations__ = {option.name: option.annotation for option in options}
    del run.__wrapped__
    return run


def _kind(hint: Any) -> tuple[type | None, tuple[str, ...]]:
    """The dataclass that an annotation names, and what of it is left out."""
    about = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    plain = get_args(hint)[0] if about else hint
    if not (isinstance(plain, type) and is_dataclass(plain)):
        return None, ()
    return plain, next((a.names for a in about if isinstance(a, Without)), ())


def _options(kind: type, left_out: tuple[str, ...]) -> Iterator[Parameter]:
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        if field.name not in left_out:
            yield Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name])
