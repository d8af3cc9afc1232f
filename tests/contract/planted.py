"""Breaches that are planted in methods: each stands beside the check that must notice it, and what the check must say."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest

from holdfast.testing import ContractError
from holdfast.testing._training_case import planted
from holdfast.testing.parametrize import checks_of

C = TypeVar("C", bound=type)


class Breaches:
    """The breaches of one file, in the order in which they stand there."""

    def __init__(self) -> None:
        self.cases: list[Any] = []

    def of(self, **messages: str) -> Callable[[C], C]:
        """Makes a frozen dataclass of a class, and a case of each check that must notice it.

        Args:
            **messages: by check, with underscores for hyphens, a pattern of what it says.
        """

        def plant(cls: C) -> C:
            method = dataclass(frozen=True)(cls)
            for name, message in messages.items():
                check = name.replace("_", "-")
                self.cases.append(pytest.param(method, check, message, id=f"{cls.__name__}-{check}"))
            return method

        return plant


def noticed(method: type, check: str, message: str) -> None:
    """Asserts that a check of the method's contract fails, for this reason."""
    with _same_networks(), pytest.raises(ContractError, match=message):
        dict(checks_of(method))[check](method)


@contextmanager
def _same_networks() -> Generator[None, None, None]:
    """A breach may change the networks that all checks share; they are put back."""
    kept = [(model, copy.deepcopy(model.state_dict())) for model in (planted().clean, planted().model)]
    try:
        yield
    finally:
        for model, state in kept:
            model.load_state_dict(state)
            model.eval()
            for module in model.modules():
                module._forward_hooks.clear()
