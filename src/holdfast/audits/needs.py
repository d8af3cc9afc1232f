"""How many rows an audit may send to a prediction API, told before the first one."""

from __future__ import annotations

from dataclasses import dataclass

from typing_extensions import override

from holdfast.audits.plan import Plan
from holdfast.core.errors import BudgetError
from holdfast.core.findings import Finding, Severity
from holdfast.core.registry import method
from holdfast.core.words import counted
from holdfast.session.allowance import JUDGED

__all__ = ["PREFLIGHT_ROWS", "Need", "need"]

PREFLIGHT_ROWS = 50
"""Rows that the pre-flight asks an API about."""
_HALVINGS = 13
_CANARY = 1000
_LOOK = 20, 300  # samples, and queries for each attack, of a first look


@dataclass(frozen=True, kw_only=True)
class Need:
    """Rows that a run may send.

    Attributes:
        samples: how many are audited.
        attacks: how many attacks each may see.
        least: what it takes to know the clean accuracy; a run with less finds nothing.
        most: what it takes if every attack uses all of its queries on every sample.
        look: what a first look takes at most, at 20 samples with 300 queries for each attack.
    """

    samples: int
    attacks: int
    least: int
    most: int
    look: int

    @override
    def __str__(self) -> str:
        return f"an audit may send {self.most:,} rows at most ({self.least:,} before the first attack): {self._made_of}"

    @property
    def _made_of(self) -> str:
        return (
            f"{counted(self.samples, 'sample')}, {counted(self.attacks, 'attack')} with all of their queries, and what judges "
            "their witnesses"
        )

    def finding(self, allowed: int | None) -> list[Finding]:
        """What is wrong with a budget, before a run is begun with it; nothing where it is enough."""
        if allowed is None or allowed >= self.most:
            return []
        data: dict[str, float | int | str] = {"allowed": allowed, "least": self.least, "most": self.most}
        fewer = f"allow --max-queries {self.most}, or take fewer --samples or --queries"
        if self.look < self.most:
            fewer += f": --samples {_LOOK[0]} --queries {_LOOK[1]} need {self.look:,}"
        if allowed < self.least:
            text = f"--max-queries {allowed:,} does not pay for the clean predictions of an audit, {self.least:,} rows"
            return [
                Finding(
                    code="budget.too_small",
                    severity=Severity.ERROR,
                    title="the budget is too small",
                    message=f"{text}.",
                    remedy=f"{fewer}.",
                    data=data,
                )
            ]
        text = f"--max-queries {allowed:,} may end an audit before its suite does, which may send {self.most:,} rows"
        more = f"{fewer}; a run that ends early says INCOMPLETE and goes on with a larger one."
        return [
            Finding(
                code="budget.short",
                severity=Severity.WARNING,
                title="the budget may end early",
                message=f"{text}.",
                remedy=more,
                data=data,
            )
        ]

    def told(self, allowed: int | None) -> str:
        """In one sentence, beside what is allowed.

        Raises:
            BudgetError: nothing is allowed, or too little to begin with.
        """
        may = f"this run may send {self.most:,} rows at most: {self._made_of}"
        if allowed is None:
            raise BudgetError(f"{may}; the API may bill them, so say how many you allow: --max-queries N")
        if allowed < self.least:
            raise BudgetError(
                f"--max-queries {allowed} does not even pay for the clean predictions: {self.least:,} rows for "
                f"{counted(self.samples, 'sample')} before the first attack; {may}"
            )
        if allowed >= self.most:
            return f"{may}; --max-queries {allowed:,} allows them"
        return (
            f"{may}; --max-queries {allowed:,} may end before the suite does: the report then says INCOMPLETE, and a "
            "larger --max-queries goes on from there; fewer --samples or --queries need less"
        )


def need(plan: Plan, samples: int) -> Need:
    """The rows of a plan for so many samples.

    Example:
        >>> plan = Plan.of(model="http://127.0.0.1/", classes=3, suite="black-box", certify="none", queries=100)
        >>> need(plan, 10).least
        20
    """
    look = min(samples, _LOOK[0]), min(plan.queries or _LOOK[1], _LOOK[1])
    return Need(
        samples=samples,
        attacks=len(plan.entries),
        least=_least(samples),
        most=_most(plan, samples, plan.queries),
        look=_most(plan, *look),
    )


def _least(samples: int) -> int:
    return min(samples, PREFLIGHT_ROWS) + samples


def _most(plan: Plan, samples: int, limit: int | None) -> int:
    queries = [_queries(r.method, dict(r.parameters), limit) for r in plan.entries]
    curve = len(plan.eps_grid) * (queries[0] + JUDGED) if queries else 0
    each = sum(q + JUDGED for q in queries) + curve + _HALVINGS + JUDGED + (JUDGED + 1) * (plan.grid is not None)
    most = _least(samples) + samples * each
    return most + most // _CANARY


def _queries(name: str, parameters: dict[str, object], limit: int | None) -> int:
    """The most that one attack asks about a sample."""
    made = method(name)(**parameters)
    own = getattr(made, "queries", None)
    steps = getattr(made, "steps", 1)
    most = own if isinstance(own, int) else steps if isinstance(steps, int) else 1
    return most if limit is None else min(most, limit)
