"""Every registered semantic attack under the public contract."""

import pytest

from holdfast.core.registry import names
from holdfast.testing import SEMANTIC_ATTACK_CHECKS, check_semantic_attack


@pytest.mark.parametrize("check", SEMANTIC_ATTACK_CHECKS)
@pytest.mark.parametrize("name", names("semantic attack"))
def test_a_semantic_attack_keeps_its_contract(name, check):
    check_semantic_attack(name, only=[check])
