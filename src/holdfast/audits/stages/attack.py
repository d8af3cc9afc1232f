"""One attack of the suite, on the samples that the suite sends there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.engine import run
from holdfast.audits.claims import claims_of, raised_on
from holdfast.audits.context import Context
from holdfast.audits.evidence import Evidence
from holdfast.audits.records import AnyRecord, AttackRecord, Claims, Fault, Ids
from holdfast.audits.stage import Stage, ids_of
from holdfast.audits.suite import SPARED_SHARE, SuiteEntry
from holdfast.core.errors import ModelError
from holdfast.judge.ledger import Budget

__all__ = ["AttackStage", "attacked"]


@dataclass(frozen=True, kw_only=True)
class AttackStage(Stage[AttackRecord]):
    """An entry of a suite.

    Attributes:
        entry: the attack.
    """

    record: ClassVar[type[AnyRecord]] = AttackRecord

    entry: SuiteEntry

    @property
    @override
    def searcher(self) -> str:
        return self.entry.name

    @override
    def chosen(self, context: Context, evidence: Evidence) -> np.ndarray:
        entry = self.entry
        wanted = entry.wants(evidence)
        if entry.spares:  # proved samples are spared, but for a keyed share that sees the whole suite
            proved = np.isin(evidence.ids, list(evidence.proved))
            wanted = np.where(proved, _keyed(evidence.ids, context.plan.seed) % SPARED_SHARE == 0, wanted)
        return evidence.ids[wanted & (evidence.correct if entry.nearest else evidence.open)]

    @override
    def lost(self, context: Context, evidence: Evidence) -> np.ndarray:
        return self.chosen(context, evidence)

    @override
    def unit(self, context: Context, evidence: Evidence) -> AttackRecord:
        ids = self.chosen(context, evidence)
        eps = _radius(context, self.entry, ids, evidence) if self.entry.nearest else None
        claims, raised, referee = attacked(context, self.entry, ids, evidence, eps)
        return AttackRecord(ids=ids_of(ids), claims=claims, raised=raised, referee=referee)

    @override
    def failed(self, ids: Ids, why: str) -> AttackRecord:
        return AttackRecord(fault=self.fault(why, ids))


def attacked(
    context: Context, entry: SuiteEntry, ids: np.ndarray, evidence: Evidence, eps: float | Tensor | None
) -> tuple[Claims, Fault | None, int]:
    """One attack on some samples: its claims, what the model raised on, and the referee's rows.

    Args:
        context: the run.
        entry: the attack.
        ids: of the samples.
        evidence: what is known of them.
        eps: the size; None is the plan's.
    """
    if not len(ids):
        return Claims(), None, 0
    plan = context.plan
    problem = context.problem(ids, eps)
    scores = torch.as_tensor(evidence.scores_of(ids)).to(context.device, problem.x.dtype)
    outcome = run(
        entry.attack(),
        problem,
        context.surrogate if entry.transfers else context.search,
        judge=context.model if entry.transfers else None,
        seed=plan.seed,
        budget=Budget(queries=plan.queries),
        top_k=plan.top_k,
        clean=scores,
        settings=context.settings,
        progress=context.progress,
    )
    if entry.transfers and context.subject.kind == "smoothed":  # g answers with not-a-number where it abstains
        outcome = replace(outcome, no_answer=None)
    failed, answered = outcome.failed, outcome.low_margin.isfinite() | outcome.found
    if len(ids) > 1 and failed is not None and bool(failed.all()) and not bool(answered.any()):
        raise ModelError(f"the model raises {outcome.fault}")  # whatever it is asked here: the stage's fault
    claims, referee = claims_of(context, problem, outcome, entry.name)
    return claims, raised_on(ids, outcome.failed, outcome.fault), referee


def _radius(context: Context, entry: SuiteEntry, ids: np.ndarray, evidence: Evidence) -> Tensor | float:
    """Where an attack looks that is after the nearest witness: anywhere, or just inside what is known."""
    if entry.under is None:
        return float("inf")
    known = [evidence.nearest[i].witness.distance if i in evidence.nearest else None for i in ids.tolist()]
    radii = [evidence.eps if d is None else entry.under * d for d in known]
    return torch.tensor(radii, dtype=torch.float64, device=context.device)


def _keyed(ids: np.ndarray, seed: int) -> np.ndarray:
    """A mixing of ids that looks random and depends on nothing but id and seed."""
    mixed = [(int(i) + seed * 0x9E3779B97F4A7C15) * 0xBF58476D1CE4E5B9 % (1 << 64) >> 33 for i in ids]
    return np.array(mixed, dtype=np.int64)
