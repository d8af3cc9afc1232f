"""A check that nothing was ever planted for may check nothing."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import test_attacks
import test_breaches_of_applications
import test_breaches_of_attacks
import test_breaches_of_defences
import test_breaches_of_families
import test_breaches_of_set_certifiers
import test_breaches_of_training
import test_certifiers
import test_study_contract
from planted import noticed

from holdfast.core.registry import kind, method, names
from holdfast.testing.backdoor import CHECKS as OF_BACKDOORS
from holdfast.testing.parametrize import SUITES
from holdfast.testing.poisoner import CHECKS as OF_POISONERS

ROOMS = (
    test_attacks, test_breaches_of_applications, test_breaches_of_attacks, test_breaches_of_defences,
    test_breaches_of_families, test_breaches_of_set_certifiers, test_breaches_of_training, test_certifiers,
    test_study_contract,
)  # fmt: skip
BY_THE_ENGINE_ALONE = {("attack", "already-wrong")}  # an attack is not asked about such a sample at all


def planted() -> Iterator[tuple[str, str]]:
    """The kind of each method with a breach, and the check that must notice it."""
    for room in ROOMS:
        for test in vars(room).values():
            for mark in getattr(test, "pytestmark", []):
                if mark.name != "parametrize" or "message" not in mark.args[0]:
                    continue
                for case in mark.args[1]:
                    broken, check, _ = getattr(case, "values", case)
                    yield kind(broken), check
    yield from (("backdoor", name) for name, check in OF_POISONERS.items() if OF_BACKDOORS[name] is check)


@pytest.mark.parametrize("room", SUITES)
def test_a_breach_is_planted_for_each_check(room: str) -> None:
    covered = {check for of, check in planted() if of == room} | {"card"}
    covered |= {check for of, check in BY_THE_ENGINE_ALONE if of == room}
    assert not set(SUITES[room][0]) - covered


@pytest.mark.parametrize("room", SUITES)
def test_a_card_that_knows_no_failure_is_noticed(room: str) -> None:
    known = method(names(room)[0])
    boasts = dataclass(frozen=True)(type("Boasts", (known,), {"card": replace(known.card, failure_modes=())}))
    noticed(boasts, "card", "when it is (known to fail|loose or misleads)")
