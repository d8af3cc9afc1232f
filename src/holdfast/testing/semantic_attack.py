"""The contract of a semantic attack, as checks that anyone can run on a method of their own.

from holdfast.testing import check_semantic_attack
check_semantic_attack("hue_saturation")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from math import prod
from typing import Any

import torch

from holdfast.attacks.semantic import SemanticAttack
from holdfast.core.errors import UnsupportedError
from holdfast.core.registry import method
from holdfast.core.threat import Goal
from holdfast.judge.archive import Keep
from holdfast.numerics.distance import contains
from holdfast.numerics.evaluation import evaluating
from holdfast.testing._manners import declared_parameters, leaving_alone, under_two_states
from holdfast.testing._semantic_case import SemanticCase
from holdfast.testing.contract import ContractError, reduced, require, run_checks
from holdfast.testing.toys import Metered

__all__ = ["SEMANTIC_ATTACK_CHECKS", "check_semantic_attack"]

_LIMITS = {
    "trials": 64,
    "angles": 9,
    "shifts": 3,
    "levels": 5,
    "steps": 12,
    "restarts": 2,
    "epochs": 6,
    "judge_epochs": 6,
}


def _card(case: SemanticCase) -> None:
    card = case.whole.card
    require(card.access is not None and card.title and card.paper and card.summary, "card: something is missing")
    require(card.failure_modes, "card: an attack says when it is known to fail")
    require(card.modality == ("image",), "card: a semantic attack says what it changes (modality)")
    declared_parameters(case.small)


def _refuses(case: SemanticCase) -> None:
    x, y = case.samples()
    for what, wrong in (("flat inputs", x.flatten(1)), ("values outside [0, 1]", 2 * x - 1)):
        try:
            case.run(x=wrong, y=y)
        except UnsupportedError:
            continue
        raise ContractError(f"it must refuse {what}")


def _axes(case: SemanticCase) -> None:
    setting = case.setting()
    axes = setting.transform.axes
    require(axes and len({a.name for a in axes}) == len(axes), "axes need names of their own")
    require(all(a.unit and a.extent > 0 for a in axes), "an axis has no unit or no range")
    require(len(setting.origin) == case.n, "one origin for each sample")


def _identity(case: SemanticCase) -> None:
    """At theta = 0 nothing has changed; where the origin is a code, its picture is near."""
    setting, (x, _) = case.setting(), case.samples()
    if not setting.refers:
        return
    with torch.no_grad(), evaluating(setting.transform):
        same = setting.transform(setting.origin, setting.origin.new_zeros(case.n, len(setting.transform.axes)))
    if setting.origin.shape == x.shape:  # a code has another
        require(torch.equal(same, x), "theta = 0 changes the image")
    else:
        error = float((same - x).square().mean())
        require(
            error < float((x - x.mean(0)).square().mean()), f"the picture of a code is no picture of its image: {error}"
        )


def _inside(case: SemanticCase) -> None:
    setting = case.setting()
    out, problem, lifted = case.search(setting, case.small.eps)
    require(contains(problem.set, out.x, problem.x).all(), "z lies outside its set")
    d = prod(setting.origin.shape[1:])
    require(torch.equal(out.x[:, :d], problem.x[:, :d]), "the origin was changed: only theta may move")
    with torch.no_grad(), evaluating(lifted):
        moved = lifted.transformed(out.x)
    require(moved.isfinite().all() and moved.min() >= 0 and moved.max() <= 1, "x' lies outside [0, 1]")


def _upheld(case: SemanticCase) -> None:
    """What is reported is an image that the bare model gets wrong, and the parameters that make it."""
    out, (_, y) = case.run(), case.samples()
    with torch.no_grad(), evaluating(case.model):
        wrong = case.model(out.x).argmax(1) != y
    require(wrong[out.found].all(), "an image was reported as broken that the model gets right")
    require(out.distance.isfinite().equal(out.found), "found and distance disagree")
    for k, axis in enumerate(out.lifted.transform.axes):
        require(
            torch.equal(out.natural[axis.name], axis.natural(out.theta[:, k])), "natural values are not those of theta"
        )


def _works(case: SemanticCase) -> None:
    out = case.run()
    require(out.right.any() and out.success > 0.1, f"it breaks {out.success:.0%} of the digits")


def _range(case: SemanticCase) -> None:
    setting = case.setting()
    whole = min(case.small.eps, 1.0)
    found = [int(case.search(setting, whole * share)[0].found.sum()) for share in (0.0, 0.2, 1.0)]
    require(found == sorted(found), f"fewer are broken in a larger range: {found} at 0, 0.2 and 1")


def _seeds(case: SemanticCase) -> None:
    one, two = under_two_states(lambda: case.run(seed=3))
    require(
        torch.equal(one.theta, two.theta) and torch.equal(one.found, two.found), "the same seed gave another result"
    )


def _alone(case: SemanticCase) -> None:
    whole, few = case.setting(), case.with_samples(5).setting()
    near = torch.allclose(whole.origin[:5], few.origin, atol=1e-6)
    require(near, "the origin of a sample depends on who else is in the batch")
    both = case.search(whole, case.small.eps)[0]
    slots = case.with_samples(5).search(replace(few, origin=whole.origin[:5]), case.small.eps)[0]
    require(torch.equal(both.found[:5], slots.found), "whether a sample breaks depends on who else is in the batch")
    require(torch.allclose(both.x[:5], slots.x, atol=1e-6), "z of a sample depends on who else is in the batch")


def _untouched(case: SemanticCase) -> None:
    x, y = case.samples()
    with leaving_alone(case.model, x, y):
        case.run(x=x, y=y)


def _ledger(case: SemanticCase) -> None:
    model = Metered(case.model)
    setting = case.setting(model)
    model.total = 0
    out, *_ = case.search(setting, case.small.eps, keep=Keep.NEAREST)
    told = int(out.ledger.forwards.sum())
    require(told == model.total, f"the ledger says {told} forwards, the model saw {model.total}")


def _targets(case: SemanticCase) -> None:
    _, y = case.samples()
    target = (y + 1) % 10
    if Goal.TARGETED not in case.whole.card.goals:
        try:
            case.run(target=target)
        except UnsupportedError:
            return
        raise ContractError("it must refuse targets, which are not on its card")
    out = case.run(target=target)
    with torch.no_grad(), evaluating(case.model):
        reached = case.model(out.x).argmax(1) == target
    require(reached[out.found].all(), "a target was reported as reached that is not")


def _few(case: SemanticCase) -> None:
    x, y = case.samples()
    for n in (0, 1):
        out = case.run(x=x[:n], y=y[:n])
        require(out.x.shape == x[:n].shape and len(out.found) == n, f"a batch of {n} comes back as another")


_CHECKS: dict[str, Callable[[SemanticCase], None]] = {
    "card": _card,
    "refuses": _refuses,
    "axes": _axes,
    "identity": _identity,
    "inside": _inside,
    "upheld": _upheld,
    "works": _works,
    "range": _range,
    "seeds": _seeds,
    "alone": _alone,
    "untouched": _untouched,
    "ledger": _ledger,
    "targets": _targets,
    "few": _few,
}

SEMANTIC_ATTACK_CHECKS = tuple(_CHECKS)
"""Names of the checks, in the order in which they run."""


def check_semantic_attack(
    attack: str | type[SemanticAttack] | SemanticAttack, *, only: Iterable[str] | None = None
) -> None:
    """Runs the contract of a semantic attack on digits in colours; all checks that fail are told together.

    Args:
        attack: a registered name, a class that needs no arguments, or an instance.
        only: names of `SEMANTIC_ATTACK_CHECKS`; all by default.

    Raises:
        ContractError: what is wrong, check by check.
        UsageError: no such method or check.
    """
    given = method(attack) if isinstance(attack, str) else attack
    whole: Any = given() if isinstance(given, type) else given
    case = SemanticCase(whole, reduced(whole, _LIMITS))
    run_checks(f"{whole.card.title} breaks the contract of a semantic attack", _CHECKS, case, only)
