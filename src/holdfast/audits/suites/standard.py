"""AutoAttack's composition, never tuned."""

from __future__ import annotations

from typing_extensions import override

from holdfast.audits.suite import Suite, SuiteEntry, SuiteRequest
from holdfast.core.errors import UsageError
from holdfast.core.threat import Goal, Norm

__all__ = ["Standard"]


class Standard(Suite):
    """APGD-CE, APGD-T, FAB-T and Square, as Croce and Hein run them."""

    @override
    def composition(self, request: SuiteRequest) -> tuple[SuiteEntry, ...]:
        return (
            SuiteEntry.of("apgd_ce", steps=100, restarts=1),
            SuiteEntry.of("apgd_t", steps=100),
            SuiteEntry.of("fab_t", steps=100),
            SuiteEntry.of("square", queries=5000),
        )

    @override
    def stamp(self, request: SuiteRequest) -> str:
        if request.queries is not None:
            return f"not standard: the AutoAttack composition, cut at {request.queries} queries a sample and attack"
        return "standard: the AutoAttack composition (APGD-CE, APGD-T, FAB-T, Square 5000), untuned"

    @override
    def refuse(self, request: SuiteRequest) -> None:
        if request.norm is Norm.L0 or request.goal is Goal.TARGETED:
            raise UsageError("AutoAttack's composition is untargeted, in l1, l2 and linf; use --suite fast")
