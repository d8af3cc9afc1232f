"""Queries only: what an attacker can do who sees scores or labels, and a surrogate where he has one."""

from __future__ import annotations

from typing_extensions import override

from holdfast.audits.suite import Suite, SuiteEntry, SuiteRequest
from holdfast.core.errors import UsageError
from holdfast.core.threat import Norm

__all__ = ["BlackBox"]

_QUERIES = 5000


class BlackBox(Suite):
    """A transfer attack where there is a surrogate, then searches on scores, then on labels."""

    queries_only = True
    runs_on_everyone = True

    @override
    def composition(self, request: SuiteRequest) -> tuple[SuiteEntry, ...]:
        queries = request.queries or _QUERIES
        soft = () if request.labels_only else {Norm.L0: ("one_pixel",)}.get(request.norm, ("square",))
        hard = {Norm.LINF: ("rays", "hopskipjump"), Norm.L2: ("hopskipjump",), Norm.L1: ("geoda",)}
        asking = [SuiteEntry.of(name, queries=queries) for name in (*soft, *hard.get(request.norm, ()))]
        return (*([SuiteEntry.of("surrogate_transfer")] if request.has_surrogate else []), *asking)

    @override
    def stamp(self, request: SuiteRequest) -> str:
        return f"black-box: queries only, at most {request.queries or _QUERIES} a sample and attack"

    @override
    def refuse(self, request: SuiteRequest) -> None:
        if request.norm is Norm.L0 and request.labels_only:
            raise UsageError("no attack that sees labels alone serves l0; use --answers scores, or another norm")
