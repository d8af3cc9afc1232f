"""The report of an audit: what was found, its files, and what changed from one run to another."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from holdfast.api.results import Block, Result, Saved
from holdfast.core.errors import DataError, JournalError, UsageError

if TYPE_CHECKING:
    from holdfast.api.voice import Voice
    from holdfast.audits.document import Document
    from holdfast.audits.plan import Plan
    from holdfast.audits.sections import FindingEntry, Headline, Sample, Side
    from holdfast.core.cost import Cost
    from holdfast.core.verdict import Status
    from holdfast.report.audits.diff import AuditDiff

__all__ = ["AuditComparison", "Report"]


@dataclass(frozen=True, kw_only=True, repr=False)
class Report(Result):
    """What an audit found of every sample.

    Attributes:
        document: all of it, as ``report.json`` has it.
        folder: of the run.
        at: the plan with its files where they are now; None: the folder's own, which is trusted with nothing.
    """

    document: Document
    folder: Path
    at: Plan | None = None

    @classmethod
    def load(cls, run: str | Path) -> Report:
        """The report of a finished run.

        Raises:
            DataError: there is none in the folder, or it is not one that this version reads.
        """
        from holdfast.audits.document import Document

        return cls(document=Document.load(Path(run)), folder=Path(run))

    @property
    def headline(self) -> Headline:
        """The figures that an audit is for; ``headline.statement`` says them in a sentence."""
        return self.document.headline

    @property
    def samples(self) -> list[Sample]:
        """Both sides of each sample: status, witness and certificate."""
        return self.document.samples

    @property
    def findings(self) -> list[FindingEntry]:
        """What is wrong or worth knowing."""
        return self.document.findings

    @property
    def complete(self) -> bool:
        """The figures are final."""
        return self.document.complete

    @property
    @override
    def cost(self) -> Cost:
        from holdfast.core.cost import Cost

        spent = self.document.cost
        return Cost(forwards=spent.forwards, backwards=spent.backwards, queries=spent.queries)

    def counts(self) -> dict[Status, int]:
        """Samples in each status, every status named."""
        return self.document.counts()

    def gated(self, threshold: float, side: Side = "empirical", *, allow_weak: bool = False) -> Report:
        """The same report, held to a threshold; ``document.gate`` says whether it passed.

        Args:
            threshold: the least robust accuracy, in [0, 1].
            side: the bound that must reach it.
            allow_weak: let an upper bound pass that the attacks were too hindered to make.
        """
        return replace(self, document=self.document.gated(threshold, side, allow_weak=allow_weak))

    def compare(self, before: Report | str | Path) -> AuditComparison:
        """What changed since another run, sample by sample.

        Raises:
            DataError: there is no finished run in the folder.
        """
        from holdfast.report.audits.diff import diff

        other = before if isinstance(before, Report) else Report.load(before)
        return AuditComparison(diff=diff(other.document, self.document))

    def page(self, path: str | Path) -> Saved:
        """Writes the page for people: one HTML file that opens offline and prints."""
        from holdfast.core.files import write_whole
        from holdfast.report.audits.page import render

        there = self.folder / "report.html"
        text = there.read_text(encoding="utf-8") if there.is_file() else str(render(self.document))
        write_whole(Path(path), text)
        return Saved(files=(Path(path),))

    def write(self, voice: Voice) -> None:
        """Writes the run's report files; the page goes without the broken samples where the data cannot be opened."""
        from holdfast.audits.folder import RunFolder
        from holdfast.audits.inputs import RunInputs
        from holdfast.audits.places import Places
        from holdfast.report.audits import write
        from holdfast.report.audits.shown import broken_rows, pictured, pictures

        folder, shown, rows = RunFolder(self.folder), [], None
        if pictured(self.document):
            try:
                plan = folder.plan()
                at = Places().located(plan, folder, names=("data",)) if self.at is None else self.at
                run = RunInputs.open(plan, folder, at=at)
                shown, rows = pictures(run, self.document), broken_rows(run, self.document)
            except (DataError, JournalError, UsageError) as fault:
                voice.note(f"the page goes without the broken samples: {fault}")
        write(self.folder, self.document, shown, rows)

    @override
    def blocks(self) -> list[Block]:
        from holdfast.report.audits.text import plain

        return list(plain(self.document).rstrip().splitlines())

    @override
    def columns(self) -> Mapping[str, Sequence[Any]]:
        samples = self.samples
        return {
            "id": [s.id for s in samples],
            "label": [s.label for s in samples],
            "prediction": [s.prediction for s in samples],
            "status": [str(s.status) for s in samples],
            "distance": [None if s.witness is None else s.witness.distance for s in samples],
            "attack": [None if s.witness is None else s.witness.attack for s in samples],
            "radius": [None if s.certificate is None else s.certificate.radius for s in samples],
            "method": [None if s.certificate is None else s.certificate.method for s in samples],
            "queries": [s.queries for s in samples],
        }

    @override
    def to_dict(self) -> dict[str, Any]:
        return self.document.model_dump(mode="json")

    @override
    def save(self, path: str | Path) -> Saved:
        """Writes ``report.json`` under another name."""
        self.document.save(Path(path))
        return Saved(files=(Path(path),))


@dataclass(frozen=True, kw_only=True)
class AuditComparison:
    """What changed from one audit to another.

    Attributes:
        diff: figures, settings, and which samples moved.
    """

    diff: AuditDiff

    @property
    def comparable(self) -> bool:
        """Both audits ask the same question of the same samples."""
        return self.diff.comparable

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return self.diff.as_dict()

    def save(self, path: str | Path) -> Saved:
        """Writes what `to_dict` gives, as JSON."""
        from holdfast.core.files import write_whole

        write_whole(Path(path), json.dumps(self.to_dict(), indent=1))
        return Saved(files=(Path(path),))

    @override
    def __str__(self) -> str:
        return self.diff.text().rstrip()

    def _repr_html_(self) -> str:
        from html import escape

        return f"<pre>{escape(str(self))}</pre>"
