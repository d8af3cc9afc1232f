"""The contract of a study.

from holdfast.testing import check_study
check_study("posthoc")
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from fractions import Fraction
from functools import lru_cache
from typing import Any

from torch import nn

from holdfast.core.kinds import is_dict, is_list_or_tuple
from holdfast.core.threat import Norm, ThreatModel
from holdfast.report.studies import page
from holdfast.session.opening import open_session
from holdfast.session.session import Session
from holdfast.studies.study import Study, StudyResult
from holdfast.testing._manners import leaving_alone, whole_card
from holdfast.testing._training_case import clean_digits, learnt, some
from holdfast.testing.contract import ContractSuite, require

__all__ = ["STUDY_CHECKS", "STUDY_SUITE", "check_study"]

_SAMPLES = 8
_MARK = "<model> & <data>"  # must come out of a page escaped
_TIMES = ("seconds", "megabytes")  # ends of the names of what a clock or the system measures


@lru_cache
def _models() -> dict[str, nn.Module]:
    return {f"seed {seed}": learnt(some(clean_digits()[0], 0, 200), seed, steps=60) for seed in (0, 1)}


@lru_cache
def _few() -> dict[str, object]:
    """What studies are given so that a run takes a second, where they are left at their defaults."""
    return {
        "attacks": ("fgsm",),
        "adjustments": ("temperature", "int8"),
        "queries": 10,
        "passes": 24,
        "samples": 2,
        "sizes": (20, 40),
        "epochs": 1,
        "regular_steps": 2,
        "depth": (1,),
        "width": (8,),
        "side": (8,),
        "train_data": some(clean_digits()[0], 0, 40),
        "models": _models(),
    }


def _small(tool: Study[Any]) -> Study[Any]:
    given: Any = tool
    usual = {f.name: f.default for f in fields(given)}
    left = {name: value for name, value in _few().items() if name in usual and getattr(given, name) == usual[name]}
    return replace(given, **left)


def _session(seed: int = 0) -> Session:
    data = some(clean_digits()[1], 0, _SAMPLES)
    return open_session(_models()["seed 0"], data, ThreatModel(norm=Norm.LINF, eps=Fraction(1, 20)), seed=seed)


def _answer(tool: Study[Any]) -> None:
    told: list[tuple[str, int, int]] = []
    result = _small(tool).run(_session(), progress=lambda stage, done, of: told.append((stage, done, of)))
    require(isinstance(result, StudyResult), "its answer is no StudyResult")
    try:
        json.dumps(result.to_dict(), allow_nan=False)
    except (TypeError, ValueError) as fault:
        require(
            False, f"its answer cannot be written as JSON: {fault}; give plain values, and None where there is none"
        )
    text = page(result, _MARK, _MARK)
    require("<model>" not in text, "its page shows a name of the caller's as markup: escape it")
    loads = [
        kind for kind in ('src="', "url(", "@import") if kind in text.replace('src="data:', "").replace("url(#", "")
    ]
    require(not loads, f"its page loads something ({', '.join(loads)}): it must open offline")
    require(all(0 <= done <= of for _, done, of in told), "it tells more done than there is to do")
    last = {stage: (done, of) for stage, done, of in told}
    open_ = [stage for stage, (done, of) in last.items() if done != of]
    require(not open_, f"it ends without telling that {open_} are done")


def _same_again(tool: Study[Any]) -> None:
    one, two = (_timeless(_small(tool).run(_session(3)).to_dict()) for _ in range(2))
    require(one == two, "the same seed gave another answer: key what is drawn by the session's seed")


def _timeless(value: Any) -> Any:
    if is_dict(value):
        return {k: _timeless(v) for k, v in value.items() if not str(k).endswith(_TIMES)}
    if is_list_or_tuple(value):
        return [_timeless(v) for v in value]
    return value


def _untouched(tool: Study[Any]) -> None:
    session = _session()
    with leaving_alone(session.data, *_models().values()):
        _small(tool).run(session)


CHECKS: dict[str, Callable[[Study[Any]], None]] = {
    "card": whole_card,
    "answer": _answer,
    "same-again": _same_again,
    "untouched": _untouched,
}

_CONTRACT: type[Study[Any]] = Study
STUDY_SUITE = ContractSuite("a study", _CONTRACT, CHECKS)

STUDY_CHECKS = tuple(CHECKS)
"""Names of the checks, in the order in which they run."""


def check_study(study: str | type[Study[Any]] | Study[Any], *, only: Iterable[str] | None = None) -> None:
    """Runs the contract of a study; each check is made, and all that fail are told together.

    Args:
        study: a registered name, a class that needs no arguments, or an instance.
        only: names of `STUDY_CHECKS`; all by default.

    Raises:
        ContractError: what is wrong, check by check.
        UsageError: no such method or check.

    Example:
        >>> check_study("posthoc", only=["card"])
    """
    STUDY_SUITE(study, only)
