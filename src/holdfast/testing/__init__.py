"""The contract suites, for Holdfast's own methods and for plug-ins."""

from holdfast.testing.attack import ATTACK_CHECKS, ContractError, check_attack
from holdfast.testing.certifier import CERTIFIER_CHECKS, check_certifier
from holdfast.testing.semantic_attack import SEMANTIC_ATTACK_CHECKS, check_semantic_attack
from holdfast.testing.shared_attack import SHARED_ATTACK_CHECKS, check_shared_attack

__all__ = [
    "ATTACK_CHECKS",
    "CERTIFIER_CHECKS",
    "SEMANTIC_ATTACK_CHECKS",
    "SHARED_ATTACK_CHECKS",
    "ContractError",
    "check_attack",
    "check_certifier",
    "check_semantic_attack",
    "check_shared_attack",
]
