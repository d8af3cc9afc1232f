"""Every registered shared attack under the public contract."""

import pytest

from holdfast.core.registry import names
from holdfast.testing import SHARED_ATTACK_CHECKS, check_shared_attack


@pytest.mark.parametrize("check", SHARED_ATTACK_CHECKS)
@pytest.mark.parametrize("name", names("shared attack"))
def test_a_shared_attack_keeps_its_contract(name, check):
    check_shared_attack(name, only=[check])
