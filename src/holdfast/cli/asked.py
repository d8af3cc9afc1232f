"""What the commands say and refuse of models that can only be asked: prediction APIs, onnxruntime, estimators, functions."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

from holdfast.cli.console import note
from holdfast.core.errors import BudgetError, UsageError

if TYPE_CHECKING:
    from holdfast.audits.context import Context
    from holdfast.core.cards import Card
    from holdfast.judge.ledger import Budget

__all__ = ["budget", "check_access", "first_answers", "rows_at_once"]

_ROWS = 20


def check_access(context: Context, card: Card) -> None:
    """Refuses an attack that needs more than the model answers; the message lists those that work.

    Raises:
        UsageError: it does.
    """
    from holdfast.core.threat import Access
    from holdfast.studies.comparison import candidates

    if context.differentiable:
        return
    context.check_answers()
    plan = context.plan
    given = Access.HARD_LABEL if plan.answers == "labels" else Access.SOFT_LABEL
    if card.access is not None and card.access > given:
        works = candidates(plan.norm, plan.goal, given) or ["none for this norm and goal"]
        raise UsageError(
            f"{card.title} is {card.access.label}, and {context.source} is only asked for {plan.answers} ({context.why}); "
            f"these work: {', '.join(works)}"
        )


def budget(context: Context, tool: Any, title: str) -> Budget:
    """What an attack may ask for one sample: of an API no more than its share of all rows allowed, so that it ends well.

    Raises:
        BudgetError: there is nothing to share.
    """
    from holdfast.audits.needs import JUDGED
    from holdfast.judge.ledger import Budget
    from holdfast.models.http import HttpModel

    plan, n = context.plan, len(context.data)
    if not isinstance(context.base, HttpModel) or plan.max_queries is None:
        return Budget(queries=plan.queries)
    own = getattr(tool, "queries", None)
    asked = min((q for q in (plan.queries, own) if isinstance(q, int)), default=None)
    share = plan.max_queries // n - JUDGED
    if share < 1:
        raise BudgetError(
            f"--max-queries {plan.max_queries} leaves no query for {n} samples, {JUDGED} rows of each being kept for the "
            f"referee; allow {n * (JUDGED + 100):,}, or take fewer --samples"
        )
    if asked is not None and asked <= share:
        note(f"{title} may send {n * (asked + JUDGED):,} rows at most; --max-queries {plan.max_queries:,} allows them")
        return Budget(queries=asked)
    wanted = "has no limit of its own" if asked is None else f"would use up to {asked:,}"
    note(f"--max-queries {plan.max_queries:,} gives each of {n} samples {share:,} queries; {title} {wanted}")
    return Budget(queries=share)


def rows_at_once(context: Context) -> int | None:
    """How many rows doctor may ask of an API at once; None for a model that runs here."""
    from holdfast.models.http import HttpModel

    if not isinstance(context.base, HttpModel):
        return None
    most = context.base.max_queries // 3
    if most < 1:
        raise BudgetError("doctor asks an API three times at least; give --max-queries 3 or more")
    rows = min(_ROWS, most, len(context.data))
    note(f"asks {context.source} {3 * rows} rows")
    return rows


def first_answers(context: Context, rows: int) -> dict[str, Any]:
    """What the first rows are answered with: form, accuracy, steadiness and how long it takes.

    Raises:
        ModelError: nothing that can be read.
    """
    import numpy as np
    import torch

    from holdfast.models.http import HttpModel

    ids = np.arange(rows)
    x = context.inputs(ids)
    with torch.no_grad():
        start = perf_counter()
        out = context.model(x.clone())
        seconds = perf_counter() - start
        again = context.model(x.clone())
    hard = bool((out.isneginf().sum(1) == out.shape[1] - 1).all())
    moved = float((again.double().exp() - out.double().exp()).abs().nan_to_num(0).max()) if rows else 0.0
    told: dict[str, Any] = {
        "rows": rows, "classes": out.shape[1], "answers": "labels" if hard else "scores",
        "accuracy": float((out.argmax(1) == context.labels(ids)).double().mean()), "milliseconds_a_row": 1e3 * seconds / rows,
        "moved": moved,
    }  # fmt: skip
    if isinstance(context.base, HttpModel):
        told |= {"rows_sent": context.base.usage.sent, "requests": context.base.usage.requests}
    return told
