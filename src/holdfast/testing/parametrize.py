"""One test for each method and check, as scikit-learn's ``parametrize_with_checks`` gives one for each estimator.

from holdfast.testing import parametrize_with_checks

@parametrize_with_checks([MyAttack, MyOtherAttack(steps=10)])
def test_my_attacks_keep_the_contract(method, check):
    check(method)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from holdfast.core.errors import UsageError
from holdfast.core.registry import kind, names
from holdfast.testing.adversary import ADVERSARY_CHECKS, check_adversary
from holdfast.testing.aggregator import AGGREGATOR_CHECKS, check_aggregator
from holdfast.testing.application import APPLICATION_CHECKS, check_application
from holdfast.testing.attack import ATTACK_CHECKS, check_attack
from holdfast.testing.backdoor import BACKDOOR_CHECKS, check_backdoor
from holdfast.testing.certifier import CERTIFIER_CHECKS, check_certifier
from holdfast.testing.detector import DETECTOR_CHECKS, check_detector
from holdfast.testing.inspector import INSPECTOR_CHECKS, check_inspector
from holdfast.testing.learner_certifier import LEARNER_CERTIFIER_CHECKS, check_learner_certifier
from holdfast.testing.poisoner import POISONER_CHECKS, check_poisoner
from holdfast.testing.repair import REPAIR_CHECKS, check_repair
from holdfast.testing.sanitiser import SANITISER_CHECKS, check_sanitiser
from holdfast.testing.semantic_attack import SEMANTIC_ATTACK_CHECKS, check_semantic_attack
from holdfast.testing.set_certifier import SET_CERTIFIER_CHECKS, check_set_certifier
from holdfast.testing.shared_attack import SHARED_ATTACK_CHECKS, check_shared_attack
from holdfast.testing.study import STUDY_CHECKS, check_study
from holdfast.testing.training_defence import TRAINING_DEFENCE_CHECKS, check_training_defence

if TYPE_CHECKING:
    import pytest

__all__ = ["SUITES", "checks_of", "parametrize_with_checks"]

SUITES: Mapping[str, tuple[tuple[str, ...], Callable[..., None]]] = {
    "attack": (ATTACK_CHECKS, check_attack),
    "shared attack": (SHARED_ATTACK_CHECKS, check_shared_attack),
    "semantic attack": (SEMANTIC_ATTACK_CHECKS, check_semantic_attack),
    "poisoner": (POISONER_CHECKS, check_poisoner),
    "backdoor": (BACKDOOR_CHECKS, check_backdoor),
    "adversary": (ADVERSARY_CHECKS, check_adversary),
    "certifier": (CERTIFIER_CHECKS, check_certifier),
    "set certifier": (SET_CERTIFIER_CHECKS, check_set_certifier),
    "learner certifier": (LEARNER_CERTIFIER_CHECKS, check_learner_certifier),
    "training defence": (TRAINING_DEFENCE_CHECKS, check_training_defence),
    "detector": (DETECTOR_CHECKS, check_detector),
    "sanitiser": (SANITISER_CHECKS, check_sanitiser),
    "inspector": (INSPECTOR_CHECKS, check_inspector),
    "repair": (REPAIR_CHECKS, check_repair),
    "aggregator": (AGGREGATOR_CHECKS, check_aggregator),
    "application": (APPLICATION_CHECKS, check_application),
    "study": (STUDY_CHECKS, check_study),
}
"""Kind of method -> names of the checks of its contract, and the function that makes them."""


def checks_of(given: object) -> list[tuple[str, Callable[[object], None]]]:
    """The checks of a method's contract, by name; each takes the method.

    Args:
        given: a registered name, a class or an instance.

    Raises:
        UsageError: it fulfils no contract.

    Example:
        >>> [name for name, _ in checks_of("median")][:3]
        ['card', 'shape', 'order']
    """
    cls: Any = given if isinstance(given, str | type) else type(given)
    checks, suite = SUITES[kind(cls)]

    def one(name: str) -> Callable[[object], None]:
        return lambda tool: suite(tool, only=[name])

    return [(name, one(name)) for name in checks]


def parametrize_with_checks(
    methods: str | Iterable[Any], *, slow: Mapping[str, Sequence[str]] | None = None
) -> pytest.MarkDecorator:
    """Parametrises a test by methods and their checks; the test takes ``method`` and ``check`` and calls ``check(method)``.

    Args:
        methods: a kind, for every registered method of it, or names, classes and instances, of any kinds.
        slow: by check the names of methods that take long with it; these pairs are marked ``slow``.

    Raises:
        UsageError: no such kind, a method without a contract, no methods at all (pytest would skip the test), or a slow
            pair that is none.
    """
    import pytest

    dear = {(name, check) for check, named in (slow or {}).items() for name in named}
    pairs: list[Any] = []
    open_ = set(dear)
    for given in names(methods) if isinstance(methods, str) else methods:
        name = given if isinstance(given, str) else _title(given)
        for check, call in checks_of(given):
            marks = [pytest.mark.slow] if (name, check) in dear else []
            pairs.append(pytest.param(given, call, marks=marks, id=f"{name}-{check}"))
            open_.discard((name, check))
    if not pairs:
        raise UsageError("there are no methods to check; name a kind that has some, or give classes or instances")
    if open_:
        raise UsageError(f"no method is checked so: {sorted(open_)}; mend the names in `slow`")
    return pytest.mark.parametrize(("method", "check"), pairs)


def _title(given: object) -> str:
    return given.__name__ if isinstance(given, type) else type(given).__name__
