"""The contract of a backdoor: that of a poisoner, and a trigger that does what it is for.

from holdfast.testing import check_backdoor
check_backdoor("badnets")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch

from holdfast.attacks.backdoor import Backdoor
from holdfast.attacks.poisoner import poison
from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.testing._training_case import SHAPE, accuracy, clean_digits, learnt, planted, reached, what_is_known
from holdfast.testing.contract import ContractSuite, refuses, require
from holdfast.testing.poisoner import CHECKS as AS_A_POISONER

__all__ = ["BACKDOOR_CHECKS", "BACKDOOR_SUITE", "check_backdoor"]

_LOSS, _SUCCESS, _CONTROL = 0.05, 0.8, 0.2
_OTHER = (2, 3, 12, 10)


def _trigger(tool: Backdoor) -> None:
    x = clean_digits()[1].x[:64]
    trigger = tool.trigger(SHAPE)
    before = x.clone()
    stamped = trigger(x, x.new_zeros(len(x), len(trigger.axes)))
    require(torch.equal(x, before), "the trigger changed its input in place")
    require(stamped.shape == x.shape and stamped.dtype == x.dtype, "the trigger gives another shape or type")
    require(float(stamped.min()) >= 0 and float(stamped.max()) <= 1, "the trigger leaves the range of the data")
    require((stamped != x).flatten(1).any(1).all(), "the trigger leaves some inputs as they are")
    again = tool.trigger(SHAPE).stamp(x)
    require(torch.equal(again, stamped), "two triggers of one backdoor differ: nothing may be drawn for a trigger")
    alone = torch.cat([trigger.stamp(one) for one in torch.split(x[:8], 1)])
    require(torch.equal(alone, stamped[:8]), "an input is stamped otherwise alone than among others")


def _other_shape(tool: Backdoor) -> None:
    x = torch.rand(_OTHER, generator=torch.Generator().manual_seed(0)) / 2
    try:
        stamped = tool.trigger(_OTHER[1:]).stamp(x)
    except UnsupportedError:
        return  # it is made for other inputs, and says so
    require(
        stamped.shape == x.shape and bool((stamped != x).flatten(1).any(1).all()),
        f"its trigger is not made for the shape {_OTHER[1:]} that it was asked for",
    )


def _gradient(tool: Backdoor) -> None:
    x = clean_digits()[1].x[:4].clone().requires_grad_()
    with torch.enable_grad():
        stamped = tool.trigger(SHAPE).stamp(x)
    require(
        stamped.requires_grad, "no gradient leads through the trigger: who attacks under it, or undoes it, needs one"
    )


def _works(tool: Backdoor) -> None:
    train, test = clean_digits()
    victim = learnt(poison(tool, train, knowledge=what_is_known()).data)
    trigger = tool.trigger(SHAPE)
    success, control = (reached(m, trigger, tool.target, test) for m in (victim, planted().clean))
    require(
        success >= _SUCCESS,
        f"the trigger carries {success:.0%} of other classes to {tool.target} on a model trained on the poisoned data; "
        "its trigger is not what was stamped, or the labels do not teach the target",
    )
    require(
        control <= _CONTROL, f"the trigger carries {control:.0%} to {tool.target} on a clean model: it is no backdoor"
    )
    kept, clean = accuracy(victim, test), accuracy(planted().clean, test)
    require(kept >= clean - _LOSS, f"clean accuracy falls from {clean:.0%} to {kept:.0%}: a backdoor keeps it")


def _target(tool: Backdoor) -> None:
    given: Any = tool
    for target in (-1, 10):
        refuses(
            lambda t=target: poison(replace(given, target=t), clean_digits()[0]), UsageError, f"class {target} of 10"
        )


CHECKS: dict[str, Callable[[Backdoor], None]] = {
    **AS_A_POISONER,
    "trigger": _trigger,
    "other-shape": _other_shape,
    "gradient": _gradient,
    "works": _works,
    "target": _target,
}

BACKDOOR_SUITE = ContractSuite("a backdoor", Backdoor, CHECKS)

BACKDOOR_CHECKS = tuple(CHECKS)
"""Names of the checks, in the order in which they run."""


def check_backdoor(backdoor: str | type[Backdoor] | Backdoor, *, only: Iterable[str] | None = None) -> None:
    """Runs the contract of a backdoor; each check is made, and all that fail are told together.

    Args:
        backdoor: a registered name, a class that needs no arguments, or an instance.
        only: names of `BACKDOOR_CHECKS`; all by default.

    Raises:
        ContractError: what is wrong, check by check.
        UsageError: no such method or check.

    Example:
        >>> check_backdoor("badnets", only=["trigger", "manifest"])
    """
    BACKDOOR_SUITE(backdoor, only)
