"""Every registered semantic attack under the public contract."""

from holdfast.testing import parametrize_with_checks


@parametrize_with_checks("semantic attack")
def test_a_semantic_attack_keeps_its_contract(method, check):
    check(method)
