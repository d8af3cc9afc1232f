"""Attacks ordered by cost: what a cheap one breaks, the dear ones never see.

On samples whose gradients lead nowhere it runs what `black-box` runs.
"""

from __future__ import annotations

from typing_extensions import override

from holdfast.audits.suite import Suite, SuiteEntry, SuiteRequest, came_close, where_gradients_fail
from holdfast.core.threat import Norm

__all__ = ["Fast"]

# On five real networks every sample that AutoAttack breaks and the first entry leaves standing has lost more than half of
# its margin by then, most of them two thirds, while half of the survivors have lost less than a third.
_ENTRIES = (
    SuiteEntry.of("cosine_margin", steps=20, targets=3),
    SuiteEntry(
        name="cosine_margin_wide",
        method="cosine_margin",
        parameters={"steps": 20, "targets": 9, "restarts": 2},
        wants=came_close(0.5),
        spares=True,
    ),
    SuiteEntry(
        name="cosine_margin_deep",
        method="cosine_margin",
        parameters={"steps": 40, "targets": 4, "restarts": 4},
        wants=came_close(0.65),
        spares=True,
    ),
    SuiteEntry(
        name="square_short",
        method="square",
        parameters={"queries": 2000},
        wants=lambda known: came_close(0.7)(known) & ~known.is_hindered,
        spares=True,
    ),
)
_ENTRIES_L0 = (
    SuiteEntry.of("sigma_zero", steps=300),
    SuiteEntry.of("pgd", steps=100, restarts=5, loss="margin"),
)


class Fast(Suite):
    """Holdfast's own composition."""

    uses_gradients = True
    proves_early = True

    @override
    def composition(self, request: SuiteRequest) -> tuple[SuiteEntry, ...]:
        return (*(_ENTRIES_L0 if request.norm is Norm.L0 else _ENTRIES), *where_gradients_fail(request))

    @override
    def stamp(self, request: SuiteRequest) -> str:
        return "fast: Holdfast's own ladder; not the AutoAttack composition"
