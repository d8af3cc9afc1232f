"""From the records to a verdict on each sample: both sides of it, and what they make of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from holdfast.audits.context import Context
from holdfast.audits.evidence import Evidence
from holdfast.audits.journal import Key, Records
from holdfast.audits.records import AnyRecord, Record
from holdfast.audits.units import Layout
from holdfast.core.threat import Guarantee
from holdfast.core.verdict import Status, Verdict

__all__ = ["UNJUDGED", "RunResults", "verdicts"]

R = TypeVar("R", bound=Record)

UNJUDGED = (Status.TIMEOUT, Status.ERROR)


@dataclass(frozen=True, kw_only=True)
class RunResults:
    """A run as far as it got.

    Attributes:
        context: its plan, model and data.
        layout: its units.
        records: the finished ones, stage by stage.
        seconds: working seconds by stage.
        parts: what is known of each chunk in the end.
        verdicts: on every sample.
    """

    context: Context
    layout: Layout
    records: Mapping[Key, AnyRecord]
    seconds: Mapping[str, float]
    parts: Sequence[Evidence]
    verdicts: Sequence[Verdict]

    @classmethod
    def of(cls, context: Context, records: Records, seconds: Mapping[str, float]) -> RunResults:
        """What the records of a run say."""
        layout = Layout.of(context)
        parts = layout.whole(records)
        return cls(
            context=context,
            layout=layout,
            records=layout.ordered(records),
            seconds=seconds,
            parts=parts,
            verdicts=verdicts(parts),
        )

    @property
    def n(self) -> int:
        """How many samples shares are of; 1 where there are none."""
        return max(1, len(self.verdicts))

    @property
    def eps(self) -> float:
        """The size at which samples are judged."""
        return float(self.context.plan.eps)

    def count(self, *statuses: Status) -> int:
        """Samples of some statuses."""
        return sum(v.status in statuses for v in self.verdicts)

    def of_stage(self, stage: str, kind: type[R]) -> list[R]:
        """The records of a stage."""
        return [r for (name, _), r in self.records.items() if name == stage and isinstance(r, kind)]

    def of_kind(self, kind: type[R]) -> list[R]:
        """The records of a kind, whatever their stage."""
        return [record for record in self.records.values() if isinstance(record, kind)]

    def tried(self) -> dict[str, set[int]]:
        """By entry of the suite, the ids that it ran on."""
        entries = self.context.plan.entries
        return {e.name: set().union(*(part.tried.get(e.stage, ()) for part in self.parts)) for e in entries}


def verdicts(parts: Sequence[Evidence]) -> list[Verdict]:
    """Both sides of every sample."""
    return [_verdict(part, k) for part in parts for k in range(len(part.ids))]


def _verdict(part: Evidence, k: int) -> Verdict:
    i = int(part.ids[k])
    nearest = part.nearest.get(i)
    return Verdict(
        id=i,
        label=int(part.labels[k]),
        prediction=int(part.prediction[k]),
        status=_status(part, k),
        witness=None if nearest is None else nearest.witness,
        certificate=part.certificates.get(i),
        forwards=int(part.forwards[k]),
        backwards=int(part.backwards[k]),
        queries=int(part.queries[k]),
        no_answer=part.no_answer.get(i),
    )


def _status(part: Evidence, k: int) -> Status:
    i, certificate = int(part.ids[k]), part.certificates.get(int(part.ids[k]))
    if part.error[k]:
        return Status.ERROR
    if not part.correct[k]:
        return Status.MISCLASSIFIED
    if i in part.broken:
        return Status.BROKEN
    if i in part.no_answer and part.no_answer[i].distance <= part.eps:
        return Status.ERROR  # no decision somewhere in the set, whatever was proved of it in another arithmetic
    if certificate is not None and certificate.guarantee is not Guarantee.ESTIMATE and certificate.radius >= part.eps:
        return Status.CERTIFIED
    if part.failed[k]:
        return Status.ERROR
    edge = i in part.marginal and part.marginal[i].witness.distance <= part.eps
    return Status.MARGINAL if edge else Status.UNKNOWN
