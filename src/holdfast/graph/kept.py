"""What a model keeps between two answers outside of its tensors, so that no graph stands for it.

`torch.export` sees what PyTorch does, its random draws among it: a number that Python or NumPy counts or draws enters its
program as a constant.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
from torch import nn

from holdfast.core.errors import UnsupportedError

__all__ = ["unchanged_by_answers"]

_PLAIN = (bool, int, float, complex, str, bytes)
_MANY = 256  # entries of a list or dictionary that are looked at


@contextmanager
def unchanged_by_answers(module: nn.Module) -> Generator[None, None, None]:
    """Holds that the model, asked in between, draws no random numbers and changes no plain attribute of its own.

    Looked at are the random states of Python and NumPy, and of every submodule what is a number, a text, a
    generator of random numbers, or a list or dictionary of such.

    Raises:
        UnsupportedError: the model is another function at each call; the message names what changed.

    Example:
        >>> model = nn.Identity()
        >>> model.calls = 0
        >>> try:
        ...     with unchanged_by_answers(model):
        ...         model.calls += 1
        ... except UnsupportedError as error:
        ...     print(str(error)[:66])
        the model changes its attribute 'calls' as it answers (0, then 1),
    """
    generators, attributes = _generators(), _attributes(module)
    yield
    for name, state in _generators().items():
        if not np.array_equal(state, generators[name]):
            raise UnsupportedError(
                f"the model is random: it draws numbers from {name} in eval mode too, so no graph and no proof holds for it; "
                "switch the noise off in eval mode, or attack it as a randomised model"
            )
    for name, value in _attributes(module).items():
        before = attributes.get(name)
        if before != value:
            change = "" if isinstance(value, tuple) else f" ({before!r}, then {value!r})"[:80]
            raise UnsupportedError(
                f"the model changes its attribute '{name}' as it answers{change}, so it may be another function at each call; "
                "no graph stands for it: let eval mode leave it alone"
            )


def _generators() -> Mapping[str, Any]:
    _, words, place, *_ = np.random.get_state()
    return {
        "Python's random": np.array(random.getstate()[1]),
        "numpy.random": np.append(words, place),
    }


def _attributes(module: nn.Module) -> dict[str, object]:
    """What is plain among the attributes of a module and its parts, by its path."""
    found: dict[str, object] = {}
    for path, part in cast("Iterable[tuple[str, nn.Module]]", module.named_modules()):
        for name, value in vars(part).items():
            said = _plain(value)
            if said is not None:
                found[f"{path}.{name}" if path else name] = said
    return found


def _plain(value: object) -> object:
    """The value if it is plain, a copy of what a container of plain values holds, the state of a generator; else None."""
    if isinstance(value, _PLAIN):
        return repr(value) if isinstance(value, float) else value  # not a number equals itself then
    if isinstance(value, random.Random):
        return ("generator", value.getstate())
    if isinstance(value, np.random.Generator):
        return ("generator", repr(value.bit_generator.state))
    if isinstance(value, np.random.RandomState):
        return ("generator", repr(value.get_state()))
    if isinstance(value, np.ndarray) and value.nbytes <= 8 * _MANY:
        return ("array", value.tobytes())
    if not isinstance(value, list | tuple | dict):
        return None
    held = cast("list[Any] | tuple[Any, ...] | dict[Any, Any]", value)
    if len(held) <= _MANY:
        entries: list[tuple[Any, Any]] = [*held.items()] if isinstance(held, dict) else [*enumerate(held)]
        if entries and all(isinstance(k, _PLAIN) and isinstance(v, _PLAIN) for k, v in entries):
            return (type(held).__name__, *((k, repr(v)) for k, v in entries))
    return None
