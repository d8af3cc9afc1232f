"""The contract of an inspection of models.

from holdfast.testing import check_inspector
check_inspector("neural_cleanse")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import lru_cache
from math import isfinite

import torch
from torch import Tensor, nn
from typing_extensions import override

from holdfast.core.arrays import fingerprint_arrays
from holdfast.core.errors import UsageError
from holdfast.core.registry import name_of
from holdfast.data.dataset import Dataset
from holdfast.defences.inspector import Inspector, ScanFinding
from holdfast.testing._manners import leaving_alone, whole_card
from holdfast.testing._training_case import clean_digits, forgetful, planted, reached, some, watched
from holdfast.testing.contract import ContractSuite, reduced, require

__all__ = ["INSPECTOR_CHECKS", "INSPECTOR_SUITE", "check_inspector"]

_FEW = {"steps": 150, "samples": 100}
_BRIEF = {"steps": 40, "samples": 5}
_CARRIES, _MORE = 0.5, 0.2
_TURN = 3


def _small(tool: Inspector) -> Inspector:
    """With little effort: the backdoor of the check is a plain one."""
    return reduced(tool, _FEW)


def _clean() -> Dataset:
    return some(clean_digits()[1], 0, 200)


class _Turned(nn.Module):
    """A model whose class k is another's class k + 3 of 10."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).roll(_TURN, 1)


@lru_cache(maxsize=8)
def _finding_of(tool: Inspector, backdoored: bool, turn: int = 0) -> ScanFinding:
    """Asked once for all checks: an inspection takes seconds. Frozen dataclasses are told apart by their parameters."""
    model, data = planted().model if backdoored else planted().clean, _clean()
    if turn:
        y = (data.y + turn) % 10
        model, data = _Turned(model), replace(data, y=y, sha256=fingerprint_arrays(data.x, y))
    return _small(tool).inspect(model, data)


def _finding(tool: Inspector) -> None:
    for backdoored in (True, False):
        finding = _finding_of(tool, backdoored)
        require(isfinite(finding.score) and isfinite(finding.threshold), "score and threshold must be finite")
        require(finding.target is None or 0 <= finding.target < 10, f"the target {finding.target} is no class of 10")
        require(finding.by_class is None or finding.by_class.shape == (10,), "one score for each class, or none")
        require(
            finding.by_class is None or bool(finding.by_class.isfinite().all()), "the score of a class is not finite"
        )
        require(finding.p_value is None or 0 <= finding.p_value <= 1, f"a p-value of {finding.p_value}")
        name = name_of(tool)
        require(
            finding.detector == name,
            f"the finding names {finding.detector}, and this is {name}; see `registry.name_of`",
        )


def _finds(tool: Inspector) -> None:
    for turn in (0, _TURN):
        finding = _finding_of(tool, True, turn)
        require(
            finding.flagged,
            f"a backdoored network scores {finding.score:.3g}, below the threshold of {finding.threshold:.3g}",
        )
        target = (planted().backdoor.target + turn) % 10
        require(finding.target in (None, target), f"the backdoor's target is {target}, and it tells {finding.target}")


def _spares(tool: Inspector) -> None:
    finding = _finding_of(tool, False)
    require(
        not finding.flagged,
        f"a clean network scores {finding.score:.3g}, above the threshold of {finding.threshold:.3g}",
    )


def _trigger(tool: Inspector) -> None:
    finding = _finding_of(tool, True)
    if finding.trigger is None:
        return
    target = planted().backdoor.target if finding.target is None else finding.target
    carried = reached(planted().model, finding.trigger, target, clean_digits()[1])
    require(carried >= _CARRIES, f"the trigger that it tells carries {carried:.0%} of other classes to its target")
    control = reached(planted().clean, finding.trigger, target, clean_digits()[1])
    require(
        carried >= control + _MORE,
        f"the trigger that it tells carries {control:.0%} on a clean network too, and {carried:.0%} on the backdoored one: "
        "it shows the class, not the backdoor",
    )


def _same_again(tool: Inspector) -> None:
    one, two = _finding_of(tool, True), _small(tool).inspect(planted().model, _clean())
    require((one.score, one.target) == (two.score, two.target), "the same model has another finding the second time")


def _blind(tool: Inspector) -> None:
    _brief(tool, planted().model, watched(_clean()))


def _mode(tool: Inspector) -> None:
    model, data = forgetful(planted().model), _clean()
    with torch.no_grad():  # a caller's, who takes none of its gradients
        one, two = (_brief(tool, model.train(mode), data) for mode in (False, True))
    require(
        (one.score, one.target) == (two.score, two.target),
        "a model in training mode has another finding: it is asked in evaluation mode, whatever it comes in",
    )


def _untouched(tool: Inspector) -> None:
    data, model = _clean(), planted().model
    with leaving_alone(data, model):
        _brief(tool, model, data)


def _brief(tool: Inspector, model: nn.Module, data: Dataset | None) -> ScanFinding:
    """With hardly any effort: how it behaves is seen from the first steps."""
    return reduced(tool, _BRIEF).inspect(model, data)


def _without_data(tool: Inspector) -> None:
    try:
        finding = _brief(tool, planted().model, None)
    except UsageError:
        return  # it needs data, and says so
    require(isfinite(finding.score), "without data its score is not finite")


CHECKS: dict[str, Callable[[Inspector], None]] = {
    "card": whole_card,
    "finding": _finding,
    "finds": _finds,
    "spares": _spares,
    "trigger": _trigger,
    "same-again": _same_again,
    "mode": _mode,
    "blind": _blind,
    "untouched": _untouched,
    "without-data": _without_data,
}

INSPECTOR_SUITE = ContractSuite("an inspector", Inspector, CHECKS)

INSPECTOR_CHECKS = tuple(CHECKS)
"""Names of the checks, in the order in which they run."""


def check_inspector(inspector: str | type[Inspector] | Inspector, *, only: Iterable[str] | None = None) -> None:
    """Runs the contract of an inspector; each check is made, and all that fail are told together.

    Args:
        inspector: a registered name, a class that needs no arguments, or an instance.
        only: names of `INSPECTOR_CHECKS`; all by default.

    Raises:
        ContractError: what is wrong, check by check.
        UsageError: no such method or check.

    Example:
        >>> check_inspector("neural_cleanse", only=["card", "without-data"])
    """
    INSPECTOR_SUITE(inspector, only)
