"""The decorator that makes a test of each check of a contract."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from holdfast.core.errors import UsageError
from holdfast.core.registry import KINDS
from holdfast.defences.aggregation.median import Median
from holdfast.testing import AGGREGATOR_CHECKS, ContractError, parametrize_with_checks
from holdfast.testing.parametrize import SUITES, checks_of


@dataclass(frozen=True)
class Doubles(Median):
    """Doubles what all agree on."""

    def combine(self, updates, sizes, state):
        joined, state = super().combine(updates, sizes, state)
        return 2 * joined, state


@parametrize_with_checks([Median, Median()])
def test_own_methods_are_checked_as_classes_or_instances(method, check) -> None:
    check(method)


def test_every_check_of_every_method_of_a_kind_is_a_test_and_the_dear_are_marked() -> None:
    marked = parametrize_with_checks("aggregator", slow={"order": ("median",)}).mark
    names = [p.id for p in marked.args[1]]
    assert names == [f"{m}-{c}" for m in ("median", "trimmed_mean") for c in AGGREGATOR_CHECKS]
    assert [p.id for p in marked.args[1] if p.marks] == ["median-order"]


def test_a_check_of_a_method_that_breaks_its_contract_fails() -> None:
    failed = []
    for name, check in checks_of(Doubles):
        try:
            check(Doubles)
        except ContractError:
            failed.append(name)
    assert failed == ["unanimous"]


def test_every_kind_of_method_has_a_suite() -> None:
    assert set(SUITES) == set(KINDS)


def test_what_has_no_contract_has_no_checks() -> None:
    with pytest.raises(UsageError, match="fulfils no contract"):
        checks_of(dict)
    with pytest.raises(UsageError, match="no kind of method"):
        parametrize_with_checks("atack")


def test_a_test_of_nothing_is_refused_and_so_is_a_slow_pair_that_is_none() -> None:
    with pytest.raises(UsageError, match="no methods to check"):
        parametrize_with_checks([])
    for slow in ({"order": ("medain",)}, {"ordre": ("median",)}):
        with pytest.raises(UsageError, match=r"no method is checked so.*mend the names"):
            parametrize_with_checks("aggregator", slow=slow)
