"""The inputs of a run: what its pages and tables show. Its records keep what the model says of them, so none is opened."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from holdfast.audits.folder import RunFolder
from holdfast.audits.plan import Plan
from holdfast.data.dataset import Dataset
from holdfast.session.reading import open_data

__all__ = ["RunInputs"]


@dataclass(frozen=True, kw_only=True)
class RunInputs:
    """Clean inputs of a run from its data, adversarial ones from its folder.

    Attributes:
        plan: the run's.
        folder: the run's, in which the witnesses lie.
        data: its samples.
    """

    plan: Plan
    folder: RunFolder
    data: Dataset

    @classmethod
    def open(cls, plan: Plan, folder: RunFolder, *, at: Plan | None = None) -> RunInputs:
        """Loads the data of a plan; ``at`` is the plan with its files where they are now.

        Raises:
            DataError: they are not there, or are no data.
        """
        place = plan if at is None else at
        data = open_data(place.data, class_names=place.class_names, table=place.table)
        if plan.samples is not None:
            data = data.head(plan.samples)
        moved = place is not plan and data.name == Path(place.data).name
        # the document names files as the plan does, wherever they are now
        return cls(plan=plan, folder=folder, data=replace(data, name=Path(plan.data).name) if moved else data)
