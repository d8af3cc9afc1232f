"""The contract of a shared attack, as checks that anyone can run on a method of their own.

from holdfast.testing import check_shared_attack
check_shared_attack("uap")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.attacks.shared import Artefact, Fitted, SharedAttack, evaluate, fit
from holdfast.core.draws import Draws
from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.core.problem import Problem
from holdfast.core.registry import method, name_of
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.numerics.distance import contains, within
from holdfast.testing._attack_case import EPS
from holdfast.testing._manners import declared_parameters, leaving_alone, under_two_states
from holdfast.testing.contract import ContractError, reduced, require, run_checks
from holdfast.testing.toys import Metered, digits, net

__all__ = ["SHARED_ATTACK_CHECKS", "check_shared_attack"]

_FIT, _HELD = 48, 32
_LIMITS = {"steps": 30, "passes": 2, "queries": 300, "rounds": 2, "epochs": 2, "draws": 4}
_ROOMY = {"area": 0.25}  # a tenth of 64 pixels has no pattern: a shuffled patch would be as good


@dataclass(frozen=True)
class _Case:
    whole: SharedAttack[Any, Any]
    small: SharedAttack[Any, Any]
    norm: Norm

    def problem(self, n: int, offset: int = 0, eps: float | None = None) -> Problem:
        """Digits from ``offset`` on, in balls that an attack on each sample would break most digits in, twice over."""
        x, y = digits(offset + n)
        size = 2 * EPS[self.norm] if eps is None else eps
        ball = LpBall.uniform(self.norm, size, n, dtype=torch.float64)
        return Problem.of(x[offset:], y[offset:], ball, ids=np.arange(offset, offset + n))

    def fit(self, model: nn.Module | None = None, **more: Any) -> Fitted:
        """The small attack fitted on the first digits."""
        return fit(self.small, more.pop("problem", None) or self.problem(_FIT), model or net(), **more)


def _card(case: _Case) -> None:
    card = case.whole.card
    require(card.shared, "card: a shared attack says so (shared=True)")
    require(card.access is not None and card.title and card.paper and card.summary, "card: something is missing")
    require(card.failure_modes, "card: an attack says when it is known to fail")
    declared_parameters(case.small)
    if card.norms and (absent := set(Norm) - set(card.norms)):
        other = replace(case, norm=min(absent))
        try:
            case.small.check(other.problem(2), 1)
        except UnsupportedError:
            return
        raise ContractError(f"it must refuse {other.norm}, which is not on its card")


def _artefact(case: _Case) -> None:
    made = case.fit().artefact
    require(made.method == name_of(case.whole), f"the artefact names '{made.method}' as its method")
    with TemporaryDirectory() as folder:
        made.save(Path(folder) / "a.safetensors")
        again = Artefact.load(Path(folder) / "a.safetensors")
    require(again.sha256 == made.sha256, "an artefact that was saved and loaded is another one")
    require(all(bool(t.isfinite().all()) for t in made.tensors.values() if t.is_floating_point()), "not finite")


def _inside(case: _Case) -> None:
    made, held = case.fit().artefact, case.problem(_HELD, _FIT)
    draws = Draws(0, "check").of(held.ids)
    with leaving_alone(held.x, *made.tensors.values()):
        applied = case.small.apply(made, held.x, draws, held)
        try:
            bare = case.small.apply(made, held.x, draws).x
        except UsageError:
            bare = held.x  # it needs the set, and says so
    require(bare.shape == held.x.shape, "without a set to keep, x' has another shape than x")
    require(applied.x.shape == held.x.shape and applied.x.dtype == held.x.dtype, "x' has another shape or dtype than x")
    if case.whole.card.norms:
        require(contains(held.set, applied.x, held.x).all(), "x' lies outside its set")
    else:
        require(within(applied.x, held.set.lower, held.set.upper).all(), "x' lies outside the box")
    wrong = [k for k, v in applied.conditions.items() if v.shape != (len(held),)]
    require(not wrong, f"conditions {wrong} are not one number a sample")


def _alone(case: _Case) -> None:
    made, held = case.fit().artefact, case.problem(_HELD, _FIT)
    draws = Draws(0, "check")
    both = case.small.apply(made, held.x, draws.of(held.ids), held)
    part = held.select(np.arange(3, 5))
    few = case.small.apply(made, part.x, draws.of(part.ids), part)
    require(torch.allclose(both.x[3:5], few.x, atol=1e-9), "x' of a sample depends on who else is in the batch")


def _eps_zero(case: _Case) -> None:
    if not case.whole.card.norms:
        return
    made, held = case.fit(problem=case.problem(_FIT, eps=0.0)).artefact, case.problem(_HELD, _FIT, eps=0.0)
    applied = case.small.apply(made, held.x, Draws(0, "check").of(held.ids), held)
    require(torch.equal(applied.x, held.x), "at eps = 0 the clean input must come back")


def _works(case: _Case) -> None:
    made, held = case.fit().artefact, case.problem(_HELD, _FIT)
    found = evaluate(case.small, made, held, net(), draws=2)
    idle = _random_success(case, made, held)
    require(found.success > idle, f"it breaks {found.success:.0%} of held-out samples, a random artefact {idle:.0%}")


def _random_success(case: _Case, made: Artefact, held: Problem) -> float:
    """The same artefact with its values shuffled: as large, but not fitted."""
    generator = torch.Generator().manual_seed(0)

    def shuffled(t: Tensor) -> Tensor:
        return t.flatten()[torch.randperm(t.numel(), generator=generator)].view_as(t) if t.is_floating_point() else t

    other = Artefact(made.method, {k: shuffled(v) for k, v in made.tensors.items()}, made.facts)
    return evaluate(case.small, other, held, net(), draws=2).success


def _seeds(case: _Case) -> None:
    one, two = under_two_states(lambda: case.fit(seed=3))
    same = all(torch.equal(v, two.artefact.tensors[k]) for k, v in one.artefact.tensors.items())
    require(same, "the same seed gave another artefact: draw from `problem.keyed` or `Draws.generator`")


class _Interrupted(Exception):
    pass


def _resume(case: _Case) -> None:
    plain = case.fit()
    if plain.steps < 2:
        return

    def stop(done: int, total: int) -> None:
        if done == (total + 1) // 2:
            raise _Interrupted

    with TemporaryDirectory() as folder:
        file = Path(folder) / "c.safetensors"
        try:
            case.fit(checkpoint=file, every=1, progress=stop)
        except _Interrupted:
            case.fit(problem=case.problem(8))  # a new process would know nothing of the fit before; this one another's
        else:
            raise ContractError("progress was not told half of the steps")
        resumed = case.fit(checkpoint=file, every=1)
    require(
        resumed.artefact.sha256 == plain.artefact.sha256,
        "a resumed fit gives another artefact: what the next step needs belongs into the state",
    )
    spent = [int(f.ledger.forwards.sum() + f.ledger.backwards.sum()) for f in (plain, resumed)]
    again = spent[1] - spent[0]  # the clean pass of the resumed process is asked anew, and told
    require(0 <= again <= _FIT, f"a resumed fit tells another cost: {spent}")


def _untouched(case: _Case) -> None:
    model, problem = net(), case.problem(_FIT)
    with leaving_alone(model, problem.x, problem.y):
        made = case.fit(model, problem=problem)
        evaluate(case.small, made.artefact, case.problem(4, _FIT), model)


def _ledger(case: _Case) -> None:
    model = Metered(net())
    made = case.fit(model)
    told = int(made.ledger.forwards.sum())
    require(told == model.total, f"the ledger says {told} forwards, the model saw {model.total}")


_CHECKS: dict[str, Callable[[_Case], None]] = {
    "card": _card,
    "artefact": _artefact,
    "inside": _inside,
    "alone": _alone,
    "eps-zero": _eps_zero,
    "works": _works,
    "seeds": _seeds,
    "resume": _resume,
    "untouched": _untouched,
    "ledger": _ledger,
}

SHARED_ATTACK_CHECKS = tuple(_CHECKS)
"""Names of the checks, in the order in which they run."""


def check_shared_attack(
    attack: str | type[SharedAttack[Any, Any]] | SharedAttack[Any, Any], *, only: Iterable[str] | None = None
) -> None:
    """Runs the contract of a shared attack; each check is made, and all that fail are told together.

    Args:
        attack: a registered name, a class that needs no arguments, or an instance.
        only: names of `SHARED_ATTACK_CHECKS`; all by default.

    Raises:
        ContractError: what is wrong, check by check.
        UsageError: no such method or check.
    """
    given = method(attack) if isinstance(attack, str) else attack
    whole: Any = given() if isinstance(given, type) else given
    known = {f.name for f in fields(whole)}
    roomy = {k: max(v, getattr(whole, k)) for k, v in _ROOMY.items() if k in known}
    norm = next((n for n in (Norm.LINF, *whole.card.norms) if not whole.card.norms or n in whole.card.norms), Norm.LINF)
    case = _Case(whole, replace(reduced(whole, _LIMITS), **roomy), norm)
    run_checks(f"{whole.card.title} breaks the contract of a shared attack", _CHECKS, case, only)
