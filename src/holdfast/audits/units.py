"""Units of work: how the samples of each stage are cut into units, and what a unit reads of those before it.

Dear stages have small units, so that little is lost when a run is killed and processes share them evenly; cheap ones have
large units, for speed. A unit of one size reads units of another: payloads are by sample, and are joined and cut here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from holdfast.audits.context import Context
from holdfast.audits.journal import Payload
from holdfast.audits.stages.suite import Stage, stages

__all__ = ["Layout", "Units"]

Units = Mapping[tuple[str, int], Payload]
"""Payloads by stage and number of the unit."""

# what a payload has for each of its ``ids``, for each of some ids, and by id
_PER_ROW = ("scores", "prediction", "forwards", "backwards", "queries", "found_at", "low_margin")
_IDS = ("ids", "failed", "proved", "hindered", "rejected", "broken_here", "broken_on_grid")
_BY_ID = ("witnesses", "marginal", "certificates", "no_answer")


@dataclass(frozen=True)
class Layout:
    """The units of a run.

    Attributes:
        order: its stages.
        samples: rows of the data.
        sizes: by stage, samples of a unit.
    """

    order: tuple[Stage, ...]
    samples: int
    sizes: Mapping[str, int]

    @classmethod
    def of(cls, context: Context) -> Layout:
        """The units of a plan; they hang on the plan, the model and the data alone."""
        order = tuple(stages(context.plan))
        return cls(order, len(context.data.x), {s.name: _size(s, context) for s in order})

    def units(self, stage: str) -> list[np.ndarray]:
        """The ids of each unit of a stage."""
        ids, size = np.arange(self.samples), self.sizes[stage]
        return [ids[k : k + size] for k in range(0, self.samples, size)]

    def all_keys(self) -> list[tuple[str, int]]:
        """All units, stage by stage."""
        return [(stage.name, k) for stage in self.order for k in range(len(self.units(stage.name)))]

    def covering(self, stage: str, ids: np.ndarray) -> list[tuple[str, int]]:
        """The units of a stage that have any of some ids, which follow one another."""
        size = self.sizes[stage]
        return [(stage, k) for k in range(int(ids[0]) // size, int(ids[-1]) // size + 1)] if len(ids) else []

    def needed(self, stage: str) -> list[str]:
        """The stages that a unit of this one reads."""
        names = [s.name for s in self.order]
        at = names.index(stage)
        needs = self.order[at].needs
        return [name for name in names[:at] if (name in needs if needs is not None else not self._apart(name))]

    def before(self, units: Units, stage: str, ids: np.ndarray) -> dict[str, Payload]:
        """What a unit of a stage reads: by stage, what is known of its samples."""
        return self.known(units, self.needed(stage), ids)

    def known(self, units: Units, names: Sequence[str], ids: np.ndarray) -> dict[str, Payload]:
        """By stage, what is known of some samples, which follow one another; stages of which nothing is done are left out."""
        found: dict[str, Payload] = {}
        for name in names:
            done = [units[key] for key in self.covering(name, ids) if key in units]
            if done:
                found[name] = _joined(done, ids)
        return found

    def around(self, units: Units, ids: np.ndarray) -> dict[str, Payload]:
        """By stage, what the looks at the whole run say of some samples, which follow one another."""
        mine = {stage: unit for (stage, _), unit in units.items() if stage not in self.sizes}
        return {stage: _joined([unit], ids) for stage, unit in mine.items() if any(unit.get(name) for name in _BY_ID)}

    def ordered(self, units: Units) -> dict[tuple[str, int], Payload]:
        """Units stage by stage, whoever did them when; what looks at the whole run stands around them."""
        mine = [key for key in self.all_keys() if key in units]
        around = [key for key in units if key[0] not in self.sizes]
        return {key: units[key] for key in [*around, *mine]}

    def stale(self, failed: Sequence[tuple[str, int]]) -> set[tuple[str, int]]:
        """Units that failed, with all that were built on them."""
        gone = set(failed)
        names = [s.name for s in self.order]
        for name in names:
            needed = self.needed(name)
            for k, ids in enumerate(self.units(name)):
                if any(key in gone for earlier in needed for key in self.covering(earlier, ids)):
                    gone.add((name, k))
        return gone

    def _apart(self, name: str) -> bool:
        """The stage is read by none but those that name it."""
        return next(s.apart for s in self.order if s.name == name)


def _size(stage: Stage, context: Context) -> int:
    limits = [context.plan.chunk, stage.most, stage.most_if_heavy if context.heavy else None]
    return min(limit for limit in limits if limit is not None)


def _joined(parts: Sequence[Payload], ids: np.ndarray) -> Payload:
    """One payload of some samples, made of payloads of units of any size; what is not by sample is left out."""
    low, high = int(ids[0]), int(ids[-1])
    joined: Payload = {}
    for part in parts:
        rows = [k for k, i in enumerate(part.get("ids", ())) if low <= i <= high]
        for name in _PER_ROW:
            if name in part and len(part[name]) == len(part.get("ids", ())):
                joined.setdefault(name, []).extend(part[name][k] for k in rows)
        for name in _IDS:
            if name in part:
                joined.setdefault(name, []).extend(i for i in part[name] if low <= i <= high)
        for name in _BY_ID:
            if name in part:
                joined.setdefault(name, {}).update({i: v for i, v in part[name].items() if low <= int(i) <= high})
    return joined
