"""What a suite says of a method that fails: each failure once, and of a crash where it was."""

from __future__ import annotations

import pytest
import torch

from holdfast.testing.contract import ContractError, require, run_checks


def _crashes(case: None) -> None:
    raise TypeError("no number")


def _refuses(case: None) -> None:
    require(False, "it must say why")


def test_one_failure_of_several_checks_is_told_once_and_with_its_line() -> None:
    checks = {"inside": _crashes, "words": _refuses, "order": _crashes}
    with pytest.raises(ContractError) as told:
        run_checks("PGD breaks the contract", checks, None, None)
    first, second, third = str(told.value).splitlines()
    assert first == "PGD breaks the contract:"
    assert second.startswith("  inside, order: TypeError: no number (test_told.py, line ")
    assert third == "  words: it must say why"


def _crashes_in_torch(case: None) -> None:
    torch.nn.Linear(2, 2)(torch.zeros(3, 3))


def test_a_crash_inside_a_library_is_told_with_the_line_that_called_it() -> None:
    with pytest.raises(ContractError, match=r"RuntimeError: .* \(test_told\.py, line \d+\)"):
        run_checks("PGD breaks the contract", {"inside": _crashes_in_torch}, None, None)
