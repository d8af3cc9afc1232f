"""The contract suites, for Holdfast's own methods and for plug-ins.

A ``check_*`` a kind of method: `check_attack`, `check_certifier`, `check_poisoner`, ...; `parametrize_with_checks` makes a
pytest test of each check.
"""

from holdfast.testing.adversary import ADVERSARY_CHECKS, check_adversary
from holdfast.testing.aggregator import AGGREGATOR_CHECKS, check_aggregator
from holdfast.testing.application import APPLICATION_CHECKS, check_application
from holdfast.testing.attack import ATTACK_CHECKS, check_attack
from holdfast.testing.backdoor import BACKDOOR_CHECKS, check_backdoor
from holdfast.testing.certifier import CERTIFIER_CHECKS, check_certifier
from holdfast.testing.contract import ContractError
from holdfast.testing.detector import DETECTOR_CHECKS, check_detector
from holdfast.testing.inspector import INSPECTOR_CHECKS, check_inspector
from holdfast.testing.learner_certifier import LEARNER_CERTIFIER_CHECKS, check_learner_certifier
from holdfast.testing.parametrize import parametrize_with_checks
from holdfast.testing.poisoner import POISONER_CHECKS, check_poisoner
from holdfast.testing.repair import REPAIR_CHECKS, check_repair
from holdfast.testing.sanitiser import SANITISER_CHECKS, check_sanitiser
from holdfast.testing.semantic_attack import SEMANTIC_ATTACK_CHECKS, check_semantic_attack
from holdfast.testing.set_certifier import SET_CERTIFIER_CHECKS, check_set_certifier
from holdfast.testing.shared_attack import SHARED_ATTACK_CHECKS, check_shared_attack
from holdfast.testing.study import STUDY_CHECKS, check_study
from holdfast.testing.training_defence import TRAINING_DEFENCE_CHECKS, check_training_defence

__all__ = [
    "ADVERSARY_CHECKS",
    "AGGREGATOR_CHECKS",
    "APPLICATION_CHECKS",
    "ATTACK_CHECKS",
    "BACKDOOR_CHECKS",
    "CERTIFIER_CHECKS",
    "DETECTOR_CHECKS",
    "INSPECTOR_CHECKS",
    "LEARNER_CERTIFIER_CHECKS",
    "POISONER_CHECKS",
    "REPAIR_CHECKS",
    "SANITISER_CHECKS",
    "SEMANTIC_ATTACK_CHECKS",
    "SET_CERTIFIER_CHECKS",
    "SHARED_ATTACK_CHECKS",
    "STUDY_CHECKS",
    "TRAINING_DEFENCE_CHECKS",
    "ContractError",
    "check_adversary",
    "check_aggregator",
    "check_application",
    "check_attack",
    "check_backdoor",
    "check_certifier",
    "check_detector",
    "check_inspector",
    "check_learner_certifier",
    "check_poisoner",
    "check_repair",
    "check_sanitiser",
    "check_semantic_attack",
    "check_set_certifier",
    "check_shared_attack",
    "check_study",
    "check_training_defence",
    "parametrize_with_checks",
]
