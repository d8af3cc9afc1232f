"""The contract of an application.

from holdfast.testing import check_application
check_application("fingerprint")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from fractions import Fraction
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from holdfast.applications.application import Application, ApplicationResult
from holdfast.core.registry import name_of
from holdfast.core.threat import Access, Norm, ThreatModel
from holdfast.session.opening import open_session
from holdfast.session.session import Session
from holdfast.testing._manners import leaving_alone, whole_card
from holdfast.testing._training_case import clean_digits, planted, some
from holdfast.testing.contract import ContractSuite, reduced, require
from holdfast.testing.toys import Metered, Queried

__all__ = ["APPLICATION_CHECKS", "APPLICATION_SUITE", "check_application"]

_FEW = {"count": 12, "copies": 2, "steps": 10, "epochs": 2, "queries": 300}


class _Original(Metered):
    """A model of which a copy is another one, whose rows are not counted.

    Attributes:
        different: rows so far, those of a batch that are equal counted once: who fills a batch up asks nothing more.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.different = 0

    @override
    def forward(self, x: Tensor) -> Tensor:
        self.different += len({row.tobytes() for row in x.detach().flatten(1).numpy()})
        return super().forward(x)

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        """The model without its meter."""
        return deepcopy(self.model, memo)


def _small(tool: Application) -> Application:
    return reduced(tool, _FEW)


def _session(model: nn.Module | None = None, seed: int = 0) -> Session:
    data = some(clean_digits()[1], 0, 60)
    return open_session(model or planted().clean, data, ThreatModel(norm=Norm.LINF, eps=Fraction(1, 5)), seed=seed)


def _run(tool: Application, seed: int = 0) -> ApplicationResult:
    return _small(tool).run(_session(seed=seed))


def _control(tool: Application) -> None:
    result = _run(tool)
    require(result.figures, "it measures nothing")
    require(result.control, "its figures have no control: a random perturbation, an unmarked model, a frozen source")
    odd = [k for k, v in {**result.figures, **result.control}.items() if not isfinite(v)]
    require(not odd, f"{odd} are not finite")
    alone = sorted(set(result.control) - set(result.figures))
    require(not alone, f"the controls {alone} have no figure of their name to be held against")


def _result(tool: Application) -> None:
    session = _session()
    result = _small(tool).run(session)
    if result.artefact is not None:
        x, y, low, high = result.artefact.x, result.artefact.y, session.threat.low, session.threat.high
        require(
            x.shape[1:] == session.data.x.shape[1:] and x.dtype == session.data.x.dtype,
            f"it made samples of {tuple(x.shape[1:])} in {x.dtype}: the model takes them in the data's shape and type",
        )
        require(
            bool(x.isfinite().all()) and float(x.min()) >= low and float(x.max()) <= high,
            f"it made samples in [{float(x.min()):.3g}, {float(x.max()):.3g}], and inputs lie in [{low:g}, {high:g}]",
        )
        require(
            y.shape == (len(x),) and 0 <= int(y.min()) <= int(y.max()) < session.classes,
            "a label that it gave is no class",
        )
    name = name_of(tool)
    require(result.name == name, f"the result names {result.name}, and this is {name}; see `registry.name_of`")


def _same_again(tool: Application) -> None:
    one, two = _run(tool, 3), _run(tool, 3)
    same = dict(one.figures) == dict(two.figures) and dict(one.control) == dict(two.control)
    if one.artefact is not None and two.artefact is not None:
        same = same and torch.equal(one.artefact.x, two.artefact.x)
    require(same, "the same seed gave another result: key what is drawn by the session's seed")


def _cost(tool: Application) -> None:
    model = _Original(planted().clean)
    session = _session(model)
    session.classes  # asked on opening, whatever comes after  # noqa: B018
    before, without = model.total, model.different
    result = _small(tool).run(session)
    made, least = model.total - before, model.different - without
    require(least <= result.cost.forwards, f"{least} inputs went through the model, it tells {result.cost.forwards}")
    require(made or not result.cost.forwards, f"nothing went through the model, it tells {result.cost.forwards}")
    if tool.card.access in (Access.SOFT_LABEL, Access.HARD_LABEL):  # where queries are what it costs
        require(
            made == result.cost.queries, f"{made} rows went through the model, it tells {result.cost.queries} queries"
        )


def _untouched(tool: Application) -> None:
    session, model = _session(), planted().clean
    with leaving_alone(session.data, model):
        _small(tool).run(session)


def _access(tool: Application) -> None:
    if tool.card.access not in (Access.SOFT_LABEL, Access.HARD_LABEL):
        return
    _small(tool).run(_session(Queried(planted().clean, lambda scores: scores)))  # no gradient leads through it


CHECKS: dict[str, Callable[[Application], None]] = {
    "card": whole_card,
    "control": _control,
    "result": _result,
    "same-again": _same_again,
    "cost": _cost,
    "untouched": _untouched,
    "access": _access,
}

APPLICATION_SUITE = ContractSuite("an application", Application, CHECKS)

APPLICATION_CHECKS = tuple(CHECKS)
"""Names of the checks, in the order in which they run."""


def check_application(application: str | type[Application] | Application, *, only: Iterable[str] | None = None) -> None:
    """Runs the contract of an application; each check is made, and all that fail are told together.

    Args:
        application: a registered name, a class that needs no arguments, or an instance.
        only: names of `APPLICATION_CHECKS`; all by default.

    Raises:
        ContractError: what is wrong, check by check.
        UsageError: no such method or check.

    Example:
        >>> check_application("fingerprint", only=["control"])
    """
    APPLICATION_SUITE(application, only)
