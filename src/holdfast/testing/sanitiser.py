"""The contract of a filter of training sets.

from holdfast.testing import check_sanitiser
check_sanitiser("spectral_signatures")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor

from holdfast.core.arrays import fingerprint_arrays
from holdfast.core.errors import UsageError
from holdfast.data.dataset import Dataset
from holdfast.defences.sanitiser import Sanitiser
from holdfast.testing._manners import leaving_alone, whole_card
from holdfast.testing._training_case import forgetful, planted, watched
from holdfast.testing.contract import ContractSuite, require

__all__ = ["SANITISER_CHECKS", "SANITISER_SUITE", "check_sanitiser"]

_CHANCE = 0.55


def _scores(tool: Sanitiser, data: Dataset | None = None) -> Tensor:
    return tool.scores(planted().poisoned.data if data is None else data, planted().model)


def _shape(tool: Sanitiser) -> None:
    data = planted().poisoned.data
    scores = _scores(tool)
    require(scores.shape == (len(data),), f"{len(data)} samples have scores of the shape {tuple(scores.shape)}")
    require(scores.dtype == torch.float64 and bool(scores.isfinite().all()), "scores must be finite float64")


def _ranks_poison_first(tool: Sanitiser) -> None:
    made, scores = planted().poisoned, _scores(tool)
    poison = torch.zeros(len(scores), dtype=torch.bool)
    poison[made.manifest.replaced] = True
    mine = made.data.y == planted().backdoor.target
    bad, good = scores[poison & mine], scores[~poison & mine]
    above = (bad.unsqueeze(1) > good).double().mean() + 0.5 * (bad.unsqueeze(1) == good).double().mean()
    require(
        above > _CHANCE,
        f"a stamped sample ranks above a clean one of its class in {float(above):.0%} of all pairs; chance is 50 %",
    )


def _order(tool: Sanitiser) -> None:
    data = planted().poisoned.data
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    x, y = data.x[order], data.y[order]
    moved = replace(data, x=x, y=y, sha256=fingerprint_arrays(x, y))
    require(
        torch.allclose(_scores(tool)[order], _scores(tool, moved), rtol=1e-6, atol=1e-9),
        "the order of the data changes the scores",
    )


def _few_of_a_class(tool: Sanitiser) -> None:
    data = planted().poisoned.data
    others = (data.y != 3).nonzero().squeeze(1)
    rows = torch.cat([others[:100], (data.y == 3).nonzero().squeeze(1)[:1]])
    x, y = data.x[rows], data.y[rows]
    scores = _scores(tool, replace(data, x=x, y=y, sha256=fingerprint_arrays(x, y)))
    require(
        scores.shape == (len(y),) and bool(scores.isfinite().all()), "a sample alone in its class spoils the scores"
    )


def _mode(tool: Sanitiser) -> None:
    data = planted().poisoned.data
    model = forgetful(planted().model)
    one, two = (tool.scores(data, model.train(mode)) for mode in (False, True))
    require(
        torch.allclose(one, two, rtol=1e-6, atol=1e-9),
        "a model in training mode has other scores: it is asked in evaluation mode, whatever it comes in",
    )


def _same_again(tool: Sanitiser) -> None:
    require(torch.equal(_scores(tool), _scores(tool)), "the same data have other scores the second time")


def _blind(tool: Sanitiser) -> None:
    _scores(tool, watched(planted().poisoned.data))


def _untouched(tool: Sanitiser) -> None:
    data = planted().poisoned.data
    with leaving_alone(data, planted().model):
        _scores(tool)


def _without_model(tool: Sanitiser) -> None:
    data = planted().poisoned.data
    try:
        scores = tool.scores(data)
    except UsageError:
        return  # it needs a model, and says so
    require(scores.shape == (len(data),) and bool(scores.isfinite().all()), "without a model its scores are not finite")


CHECKS: dict[str, Callable[[Sanitiser], None]] = {
    "card": whole_card,
    "shape": _shape,
    "ranks-poison-first": _ranks_poison_first,
    "order": _order,
    "few-of-a-class": _few_of_a_class,
    "mode": _mode,
    "same-again": _same_again,
    "blind": _blind,
    "untouched": _untouched,
    "without-model": _without_model,
}

SANITISER_SUITE = ContractSuite("a sanitiser", Sanitiser, CHECKS)

SANITISER_CHECKS = tuple(CHECKS)
"""Names of the checks, in the order in which they run."""


def check_sanitiser(sanitiser: str | type[Sanitiser] | Sanitiser, *, only: Iterable[str] | None = None) -> None:
    """Runs the contract of a sanitiser; each check is made, and all that fail are told together.

    Args:
        sanitiser: a registered name, a class that needs no arguments, or an instance.
        only: names of `SANITISER_CHECKS`; all by default.

    Raises:
        ContractError: what is wrong, check by check.
        UsageError: no such method or check.

    Example:
        >>> check_sanitiser("spectral_signatures", only=["shape", "order"])
    """
    SANITISER_SUITE(sanitiser, only)
