"""The contract of a detector of adversarial inputs.

from holdfast.testing import check_detector
check_detector("feature_squeezing")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from holdfast.attacks.engine import run
from holdfast.attacks.evasion.white.pgd import PGD
from holdfast.core.errors import UsageError
from holdfast.core.problem import Problem
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.data.dataset import Dataset
from holdfast.defences.detector import Detector
from holdfast.testing._manners import leaving_alone, whole_card
from holdfast.testing._training_case import clean_digits, forgetful, planted, some, watched
from holdfast.testing.contract import ContractSuite, refuses, require

__all__ = ["DETECTOR_CHECKS", "DETECTOR_SUITE", "check_detector"]

_EPS, _ABOVE_CHANCE, _SLACK = 0.15, 0.55, 0.05


def _data() -> tuple[Dataset, Dataset]:
    """Clean digits to fit on, and others."""
    test = clean_digits()[1]
    return some(test, 0, 250), some(test, 250, 500)


@lru_cache
def _attacked() -> Tensor:
    """The other digits, attacked without a thought of detectors."""
    fresh = _data()[1]
    ball = LpBall.uniform(Norm.LINF, _EPS, len(fresh))
    return run(PGD(steps=20), Problem.of(fresh.x, fresh.y, ball), planted().clean).x


def _fitted(tool: Detector) -> Detector:
    return tool.fit(planted().clean, _data()[0])


def _fits(tool: Detector) -> None:
    given: Any = tool
    before = repr(given)
    fitted = _fitted(tool)
    require(fitted is not tool and repr(given) == before, "fitting changed the detector itself; give a new one")
    require(type(fitted) is type(tool), f"fitting gave a {type(fitted).__name__}")
    refuses(lambda: tool.score(planted().clean, _data()[1].x[:4]), UsageError, "a score before it is fitted")
    other, x = _data()[1], _data()[1].x[:12]
    anew, fresh = (one.fit(planted().clean, other).score(planted().clean, x) for one in (fitted, tool))
    require(torch.equal(anew, fresh), "fitted anew on other data, it keeps something of the fit before")


def _false_positives(tool: Detector) -> None:
    fresh = _data()[1]
    flagged = float((_fitted(tool).score(planted().clean, fresh.x) > 0).double().mean())
    most = 2 * tool.false_positives + _SLACK
    require(
        flagged <= most, f"it flags {flagged:.0%} of new clean inputs, and allows itself {tool.false_positives:.0%}"
    )
    given: Any = tool
    half = _fitted(replace(given, false_positives=0.5))
    flagged = float((half.score(planted().clean, fresh.x) > 0).double().mean())
    require(0.25 <= flagged <= 0.75, f"it flags {flagged:.0%} of new clean inputs where it is allowed half of them")


def _tells_apart(tool: Detector) -> None:
    fitted, fresh = _fitted(tool), _data()[1]
    clean, odd = fitted.score(planted().clean, fresh.x), fitted.score(planted().clean, _attacked())
    require(bool(clean.isfinite().all() and odd.isfinite().all()), "a score is not finite")
    above = (odd.unsqueeze(1) > clean).double().mean() + 0.5 * (odd.unsqueeze(1) == clean).double().mean()
    require(
        above > _ABOVE_CHANCE,
        f"an attacked input scores above a clean one in {float(above):.0%} of all pairs; chance is 50 %",
    )


def _alone(tool: Detector) -> None:
    fitted, x = _fitted(tool), _data()[1].x[:12]
    together = fitted.score(planted().clean, x)
    require(together.shape == (12,), f"12 inputs have scores of the shape {tuple(together.shape)}")
    alone = torch.cat([fitted.score(planted().clean, one) for one in torch.split(x, 1)])
    require(torch.allclose(together, alone, rtol=1e-4, atol=1e-5), "an input has another score alone than among others")
    require(fitted.score(planted().clean, x[:0]).shape == (0,), "no inputs have no scores: it must give (0,)")


def _mode(tool: Detector) -> None:
    clean, fresh = _data()
    model = forgetful(planted().clean)
    one, two = (tool.fit(model.train(mode), clean).score(model.train(mode), fresh.x[:12]) for mode in (False, True))
    require(
        torch.allclose(one, two, rtol=1e-4, atol=1e-5),
        "a model in training mode has other scores: it is asked in evaluation mode, whatever it comes in",
    )


def _same_again(tool: Detector) -> None:
    x = _data()[1].x[:12]
    one, two = (_fitted(tool).score(planted().clean, x) for _ in range(2))
    require(torch.equal(one, two), "fitted twice on the same data, it scores differently")


def _blind(tool: Detector) -> None:
    tool.fit(planted().clean, watched(_data()[0]))


def _untouched(tool: Detector) -> None:
    (clean, fresh), model = _data(), planted().clean
    with leaving_alone(clean, fresh, model):
        tool.fit(model, clean).score(model, fresh.x)


CHECKS: dict[str, Callable[[Detector], None]] = {
    "card": whole_card,
    "fits": _fits,
    "false-positives": _false_positives,
    "tells-apart": _tells_apart,
    "alone": _alone,
    "mode": _mode,
    "same-again": _same_again,
    "blind": _blind,
    "untouched": _untouched,
}

DETECTOR_SUITE = ContractSuite("a detector", Detector, CHECKS)

DETECTOR_CHECKS = tuple(CHECKS)
"""Names of the checks, in the order in which they run."""


def check_detector(detector: str | type[Detector] | Detector, *, only: Iterable[str] | None = None) -> None:
    """Runs the contract of a detector; each check is made, and all that fail are told together.

    Args:
        detector: a registered name, a class that needs no arguments, or an instance.
        only: names of `DETECTOR_CHECKS`; all by default.

    Raises:
        ContractError: what is wrong, check by check.
        UsageError: no such method or check.

    Example:
        >>> check_detector("feature_squeezing", only=["fits", "false-positives"])
    """
    DETECTOR_SUITE(detector, only)
