"""The contract suites, for Holdfast's own methods and for plug-ins."""

from holdfast.testing.attack import ATTACK_CHECKS, ContractError, check_attack

__all__ = ["ATTACK_CHECKS", "ContractError", "check_attack"]
