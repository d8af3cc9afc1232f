"""What an attack may ask of a model that can only be asked, and which attacks can do with it."""

from __future__ import annotations

from collections.abc import Sequence

from holdfast.attacks.attack import Attack
from holdfast.core.cards import Card
from holdfast.core.errors import BudgetError, UsageError
from holdfast.core.registry import card, names
from holdfast.core.threat import Access, Goal, Norm
from holdfast.judge.ledger import Budget
from holdfast.models.http import HttpModel
from holdfast.session.session import Session

__all__ = ["JUDGED", "allowance", "candidates", "check_access", "given_access"]

JUDGED = 14
"""Most rows with which the referee judges one witness: two ways of asking, where it stands and at six places outward."""


def candidates(norm: Norm, goal: Goal, access: Access, patterns: Sequence[str] = ("*",)) -> list[str]:
    """Names of the attacks on single samples that serve a norm and a goal and ask no more than an access allows.

    Example:
        >>> "pgd" in candidates(Norm.LINF, Goal.UNTARGETED, Access.WHITE_BOX, ["p*"])
        True
    """
    matching = {n for pattern in patterns for n in names("attack", pattern.replace("-", "_").lower())}
    able: list[str] = []
    for name in sorted(matching):
        its = card(name)
        if Attack.supports(its, norm, goal) and its.access is not None and Access.TRANSFER < its.access <= access:
            able.append(name)
    return able


def given_access(session: Session) -> Access:
    """The most that may be asked of the model."""
    if session.differentiable:
        return Access.WHITE_BOX
    return Access.HARD_LABEL if session.spec.answers == "labels" else Access.SOFT_LABEL


def check_access(session: Session, card: Card) -> None:
    """Refuses an attack that needs more than the threat allows or the model answers; the message lists those that work.

    Raises:
        UsageError: it does.
    """
    allowed = session.threat.access
    if card.access is not None and card.access > allowed:
        raise UsageError(
            f"{card.title} is {card.access.label}, and the threat allows {allowed.label}; these work: "
            f"{_working(session, allowed)}"
        )
    if session.differentiable:
        return
    session.check_answers()
    given = given_access(session)
    if card.access is not None and card.access > given:
        raise UsageError(
            f"{card.title} is {card.access.label}, and {session.source} is only asked for {session.spec.answers} "
            f"({session.why}); these work: {_working(session, given)}"
        )


def _working(session: Session, access: Access) -> str:
    return ", ".join(candidates(session.threat.norm, session.threat.goal, access)) or "none for this norm and goal"


def allowance(session: Session, tool: object, title: str) -> tuple[Budget, str]:
    """What an attack may ask for one sample: of an API no more than its share of all rows allowed, so that it ends well.

    Returns:
        The budget, and what a person must know of it; empty where nothing is shared.

    Raises:
        BudgetError: there is nothing to share.
    """
    n = len(session.data)
    if not isinstance(session.base, HttpModel):
        return Budget(queries=session.queries), ""
    most = session.base.max_queries
    own = getattr(tool, "queries", None)
    asked = min((q for q in (session.queries, own) if isinstance(q, int)), default=None)
    share = most // n - JUDGED
    if share < 1:
        raise BudgetError(
            f"--max-queries {most} leaves no query for {n} samples, {JUDGED} rows of each being kept for the "
            f"referee; allow {n * (JUDGED + 100):,}, or take fewer --samples"
        )
    if asked is not None and asked <= share:
        return Budget(queries=asked), (
            f"{title} may send {n * (asked + JUDGED):,} rows at most; --max-queries {most:,} allows them"
        )
    wanted = "has no limit of its own" if asked is None else f"would use up to {asked:,}"
    return Budget(queries=share), (
        f"--max-queries {most:,} gives each of {n} samples {share:,} queries; {title} {wanted}"
    )
