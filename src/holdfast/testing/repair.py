"""The contract of a repair of models.

from holdfast.testing import check_repair
check_repair("fine_pruning")
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import lru_cache

import torch
from torch import nn

from holdfast.data.dataset import Dataset
from holdfast.defences.repair import Repair
from holdfast.testing._manners import leaving_alone, weights_of, whole_card
from holdfast.testing._training_case import accuracy, clean_digits, planted, reached, some, watched
from holdfast.testing.contract import ContractError, ContractSuite, require

__all__ = ["REPAIR_CHECKS", "REPAIR_SUITE", "check_repair"]

_LOSS, _FALL = 0.06, 0.2


def _known() -> Dataset:
    return some(clean_digits()[1], 0, 200)


def _fresh() -> Dataset:
    return some(clean_digits()[1], 200, 500)


@lru_cache(maxsize=8)
def _repaired(tool: Repair) -> nn.Module:
    return tool.repair(planted().model, _known())


def _same_interface(tool: Repair) -> None:
    model, x = _repaired(tool), _fresh().x[:8]
    require(not model.training, "a repaired model is given in evaluation mode")
    with torch.no_grad():
        require(model(x).shape == (8, 10), f"8 digits have scores of the shape {tuple(model(x).shape)}")
        require(bool(model(x).isfinite().all()), "a score is not finite")


def _changes(tool: Repair) -> None:
    model = _repaired(tool)
    require(model is not planted().model, "it gives the model itself back; work on a copy")
    require(weights_of(model) != weights_of(planted().model), "it changes nothing")
    given = {t.data_ptr() for t in planted().model.state_dict().values() if t.numel()}
    shared = [name for name, t in model.state_dict().items() if t.data_ptr() in given]
    require(not shared, f"{shared} are the given model's own: who trains the repaired one changes that too")


def _saved(tool: Repair) -> None:
    """What a person keeps are the weights: another copy of the given network must answer with them as the repaired one."""
    model, other = _repaired(tool), copy.deepcopy(planted().clean)
    try:
        other.load_state_dict(model.state_dict())
    except RuntimeError as fault:
        raise ContractError(f"its weights do not fit the network that it was given: {fault}") from fault
    with torch.no_grad():
        same = torch.allclose(other(_fresh().x), model(_fresh().x), atol=1e-6)
    require(same, "saved and loaded, its weights answer otherwise: the repair must stand in them, not in hooks")
    trained = [p.requires_grad for p in model.parameters()]
    require(
        trained == [p.requires_grad for p in planted().model.parameters()],
        "it leaves parameters that cannot be trained any more, or can be where they could not",
    )


def _keeps(tool: Repair) -> None:
    before, after = accuracy(planted().model, _fresh()), accuracy(_repaired(tool), _fresh())
    require(after >= before - _LOSS, f"clean accuracy falls from {before:.0%} to {after:.0%}")


def _removes(tool: Repair) -> None:
    target, trigger = planted().backdoor.target, planted().trigger
    before, after = (reached(m, trigger, target, _fresh()) for m in (planted().model, _repaired(tool)))
    require(after <= before - _FALL, f"the trigger's success falls from {before:.0%} to {after:.0%} alone")


def _same_again(tool: Repair) -> None:
    again = tool.repair(planted().model, _known())
    require(weights_of(again) == weights_of(_repaired(tool)), "repaired twice, the models differ: key what is drawn")


def _blind(tool: Repair) -> None:
    tool.repair(planted().model, watched(some(_known(), 0, 64)))


def _untouched(tool: Repair) -> None:
    data, model = some(_known(), 0, 64), planted().model
    with leaving_alone(data, model):
        tool.repair(model, data)


CHECKS: dict[str, Callable[[Repair], None]] = {
    "card": whole_card,
    "same-interface": _same_interface,
    "changes": _changes,
    "saved": _saved,
    "keeps": _keeps,
    "removes": _removes,
    "same-again": _same_again,
    "blind": _blind,
    "untouched": _untouched,
}

REPAIR_SUITE = ContractSuite("a repair", Repair, CHECKS)

REPAIR_CHECKS = tuple(CHECKS)
"""Names of the checks, in the order in which they run."""


def check_repair(repair: str | type[Repair] | Repair, *, only: Iterable[str] | None = None) -> None:
    """Runs the contract of a repair; each check is made, and all that fail are told together.

    Args:
        repair: a registered name, a class that needs no arguments, or an instance.
        only: names of `REPAIR_CHECKS`; all by default.

    Raises:
        ContractError: what is wrong, check by check.
        UsageError: no such method or check.

    Example:
        >>> check_repair("fine_pruning", only=["card"])
    """
    REPAIR_SUITE(repair, only)
