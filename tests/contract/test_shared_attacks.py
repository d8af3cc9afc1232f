"""Every registered shared attack under the public contract."""

from holdfast.testing import parametrize_with_checks


@parametrize_with_checks("shared attack")
def test_a_shared_attack_keeps_its_contract(method, check):
    check(method)
