"""Suites: which attacks run, in which order, and on which samples that are still open.

`standard` is AutoAttack's composition and is never tuned. `fast` is a ladder ordered by cost: what a cheap step breaks, the
dear ones never see. `minimal` looks for the nearest witness of every sample, whatever eps is. `black-box` asks queries only.
On samples whose gradients lead nowhere, `fast` and `minimal` run what `black-box` runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from holdfast.attacks.attack import Attack
from holdfast.audits.evidence import Standing
from holdfast.audits.plan import Plan
from holdfast.core.cards import Card
from holdfast.core.registry import method
from holdfast.core.threat import Access, Norm

__all__ = ["SPARED_SHARE", "Rung", "rungs", "stamp"]

SPARED_SHARE = 20
"""`fast` spares certified samples the dear rungs, but for one in this many, chosen by its id."""


@dataclass(frozen=True)
class Rung:
    """One attack of a suite.

    Attributes:
        name: unique in the suite; names its stage and its draws.
        method: name of the attack.
        parameters: what differs from its defaults.
        wants: which of the open samples it is run on; (n,) bool from the standing so far.
        spares: certified samples are left out, but for the keyed share.
        nearest: it looks for the nearest witness at any distance, of broken samples too.
        under: for an attack inside a budget, with ``nearest``: its eps as a share of the nearest distance known.
        takes_over: it stands in for the others where gradients lead nowhere, and has nothing to do elsewhere.
    """

    name: str
    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    wants: Callable[[Standing], np.ndarray] = lambda standing: np.ones(len(standing.ids), dtype=bool)
    spares: bool = False
    nearest: bool = False
    under: float | None = None
    takes_over: bool = False

    def attack(self) -> Attack[Any, Any]:
        """The attack with its parameters."""
        return method(self.method)(**self.parameters)

    @property
    def stage(self) -> str:
        """Name of its stage."""
        return f"attack:{self.name}"


def _came_close(share: float) -> Callable[[Standing], np.ndarray]:
    """Samples whose margin has lost at least this share of its clean size: where a further search has a chance."""
    return lambda standing: standing.progress >= share


_STANDARD = (
    Rung("apgd_ce", "apgd_ce", {"steps": 100, "restarts": 1}),
    Rung("apgd_t", "apgd_t", {"steps": 100}),
    Rung("fab_t", "fab_t", {"steps": 100}),
    Rung("square", "square", {"queries": 5000}),
)
# On five real networks every sample that AutoAttack breaks and the first rung leaves standing has lost more than half of its
# margin by then, most of them two thirds, while half of the survivors have lost less than a third.
_FAST = (
    Rung("cosine_margin", "cosine_margin", {"steps": 20, "targets": 3}),
    Rung(
        "cosine_margin_wide", "cosine_margin", {"steps": 20, "targets": 9, "restarts": 2}, _came_close(0.5), spares=True
    ),
    Rung(
        "cosine_margin_deep",
        "cosine_margin",
        {"steps": 40, "targets": 4, "restarts": 4},
        _came_close(0.65),
        spares=True,
    ),
    Rung("square_short", "square", {"queries": 2000}, lambda s: _came_close(0.7)(s) & ~s.is_hindered, spares=True),
)


# For each norm the three whose per-sample best came nearest on three real networks at 800 passes each, the cheap before
# the dear; in linf the third looks for what is just inside the others' witnesses.
_MINIMAL: Mapping[Norm, tuple[Rung, ...]] = {
    norm: tuple(Rung(name, name, nearest=True) for name in chosen)
    for norm, chosen in {
        Norm.L0: ("sigma_zero", "pdpgd", "brendel_bethge"),
        Norm.L1: ("pdpgd", "alma", "brendel_bethge"),
        Norm.L2: ("ddn", "alma", "fab_t"),
        Norm.LINF: ("fmn", "pdpgd"),
    }.items()
}
_INSIDE = Rung("apgd_ce_inside", "apgd_ce", nearest=True, under=0.97)


_FAST_L0 = (
    Rung("sigma_zero", "sigma_zero", {"steps": 300}),
    Rung("pgd", "pgd", {"steps": 100, "restarts": 5, "loss": "margin"}),
)


def rungs(plan: Plan) -> tuple[Rung, ...]:
    """The attacks of a plan's suite that serve its norm and goal, in order."""
    if plan.suite == "standard":
        ladder = _STANDARD
    elif plan.suite == "fast":
        ladder = (*(_FAST_L0 if plan.norm is Norm.L0 else _FAST), *_blind(plan))
    elif plan.suite == "minimal":
        ladder = (*_MINIMAL[plan.norm], *((_INSIDE,) if plan.norm is Norm.LINF else ()), *_blind(plan))
    else:
        ladder = _black_box(plan)
    return tuple(r for r in ladder if Attack.supports(_card(r), plan.norm, plan.goal))


def _black_box(plan: Plan) -> tuple[Rung, ...]:
    queries = {"queries": plan.queries or 5000}
    soft = {Norm.L0: ("one_pixel",)}.get(plan.norm, ("square",)) if plan.answers == "scores" else ()
    hard = {Norm.LINF: ("rays", "hopskipjump"), Norm.L2: ("hopskipjump",), Norm.L1: ("geoda",)}.get(plan.norm, ())
    ladder = [Rung(name, name, queries) for name in (*soft, *hard)]
    if plan.surrogate is not None or plan.train_data is not None:
        ladder.insert(0, Rung("surrogate_transfer", "surrogate_transfer"))
    return tuple(ladder)


def _blind(plan: Plan) -> tuple[Rung, ...]:
    """What takes over where gradients lead nowhere: scores at full strength, then labels, should the scores be flat too."""
    return tuple(
        replace(
            rung,
            name=f"{rung.name}_blind",
            wants=lambda s: s.is_hindered & ~np.isin(s.ids, list(s.proved)),
            takes_over=True,
        )
        for rung in _black_box(plan)
        if not transfers(rung)
    )


def stamp(plan: Plan) -> str:
    """What the suite may be called."""
    if plan.suite == "standard" and plan.queries is not None:
        return f"not standard: the AutoAttack composition, cut at {plan.queries} queries a sample and attack"
    if plan.suite == "standard":
        return "standard: the AutoAttack composition (APGD-CE, APGD-T, FAB-T, Square 5000), untuned"
    if plan.suite == "fast":
        return "fast: Holdfast's own ladder; not the AutoAttack composition"
    if plan.suite == "minimal":
        return "minimal: the nearest witness of a few minimal-distortion attacks, sample by sample"
    return f"black-box: queries only, at most {plan.queries or 5000} a sample and attack"


def transfers(rung: Rung) -> bool:
    """Whether the rung searches on the attacker's own model."""
    return _card(rung).access is Access.TRANSFER


def _card(rung: Rung) -> Card:
    return method(rung.method).card  # type: ignore[attr-defined]
