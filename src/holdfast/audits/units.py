"""Units of work: how the samples of each stage are cut into units, and what is known before each.

Dear stages have small units, so that little is lost when a run is killed and processes share them evenly; cheap ones have
large units, for speed. A unit of one size reads units of another: evidence takes of each record what is of its samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from holdfast.audits.context import Context
from holdfast.audits.evidence import Evidence
from holdfast.audits.journal import DIAGNOSTICS, PREFLIGHT, Key, Records
from holdfast.audits.order import stages
from holdfast.audits.records import AnyRecord
from holdfast.audits.stage import AnyStage, UnitSize

__all__ = ["Layout"]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The units of a run.

    Attributes:
        order: its stages.
        labels: (samples,) of all rows of the data.
        eps: the size at which they are judged.
        sizes: by stage, samples of a unit.
    """

    order: tuple[AnyStage, ...]
    labels: np.ndarray
    eps: float
    sizes: Mapping[str, int]

    @classmethod
    def of(cls, context: Context) -> Layout:
        """The units of a plan; they hang on the plan, the model and the data alone."""
        order = stages(context.plan)
        sizes = {stage.name: _limit(stage.unit_size, context) for stage in order}
        return cls(order=order, labels=context.data.y.numpy(), eps=float(context.plan.eps), sizes=sizes)

    @property
    def samples(self) -> int:
        """Rows of the data."""
        return len(self.labels)

    def stage(self, name: str) -> AnyStage:
        """The stage of a name."""
        return next(stage for stage in self.order if stage.name == name)

    def units(self, stage: str) -> list[np.ndarray]:
        """The ids of each unit of a stage."""
        ids, size = np.arange(self.samples), self.sizes[stage]
        return [ids[k : k + size] for k in range(0, self.samples, size)]

    def ids(self, key: Key) -> np.ndarray:
        """The ids of a unit."""
        return self.units(key[0])[key[1]]

    def all_keys(self) -> list[Key]:
        """All units, stage by stage."""
        return [(stage.name, k) for stage in self.order for k in range(len(self.units(stage.name)))]

    def missing(self, records: Records) -> list[Key]:
        """The units of the plan, its looks at the whole run among them, that have no record."""
        return [key for key in (PREFLIGHT, *self.all_keys(), DIAGNOSTICS) if key not in records]

    def covering(self, stage: str, ids: np.ndarray) -> list[Key]:
        """The units of a stage that have any of some ids, which follow one another."""
        size = self.sizes[stage]
        return [(stage, k) for k in range(int(ids[0]) // size, int(ids[-1]) // size + 1)] if len(ids) else []

    def needed(self, stage: str) -> list[str]:
        """The stages that a unit of this one reads."""
        names = [s.name for s in self.order]
        at = names.index(stage)
        reads = self.order[at].reads
        return [s.name for s in self.order[:at] if (s.name in reads if reads is not None else not s.is_apart)]

    def before(self, records: Records, key: Key) -> Evidence:
        """What is known of the samples of a unit when it is begun."""
        return self.evidence(records, self.needed(key[0]), self.ids(key))

    def evidence(self, records: Records, names: Sequence[str], ids: np.ndarray) -> Evidence:
        """What some stages, in their order, say of some samples, which follow one another."""
        evidence = Evidence(ids=ids, labels=self.labels[ids], eps=self.eps)
        for name in names:
            for key in self.covering(name, ids):
                if key in records:
                    evidence.add(name, records[key])
        return evidence

    def whole(self, records: Records) -> list[Evidence]:
        """What is known in the end of each chunk whose clean stage is done, with what the diagnostics met."""
        names, parts = [stage.name for stage in self.order], list[Evidence]()
        for k, ids in enumerate(self.units("clean")):
            if ("clean", k) in records:
                evidence = self.evidence(records, names, ids)
                if DIAGNOSTICS in records:
                    evidence.add(DIAGNOSTICS[0], records[DIAGNOSTICS])
                parts.append(evidence)
        return parts

    def ordered(self, records: Records) -> dict[Key, AnyRecord]:
        """Records stage by stage, whoever did them when; what looks at the whole run stands around them."""
        mine = [key for key in self.all_keys() if key in records]
        around = [key for key in records if key[0] not in self.sizes]
        return {key: records[key] for key in [*around, *mine]}

    def stale(self, failed: Sequence[Key]) -> set[Key]:
        """Units that failed, with all that were built on them."""
        gone = set(failed)
        for stage in self.order:
            needed = self.needed(stage.name)
            for k, ids in enumerate(self.units(stage.name)):
                if any(key in gone for earlier in needed for key in self.covering(earlier, ids)):
                    gone.add((stage.name, k))
        return gone


def _limit(size: UnitSize, context: Context) -> int:
    limits = [context.plan.chunk, size.most, size.if_heavy if context.heavy else None]
    return min(limit for limit in limits if limit is not None)
