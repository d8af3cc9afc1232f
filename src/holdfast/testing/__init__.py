"""The contract suites, for Holdfast's own methods and for plug-ins."""

from holdfast.testing.attack import ATTACK_CHECKS, ContractError, check_attack
from holdfast.testing.certifier import CERTIFIER_CHECKS, check_certifier

__all__ = ["ATTACK_CHECKS", "CERTIFIER_CHECKS", "ContractError", "check_attack", "check_certifier"]
