"""The journal held against the model: its cheap units are done again, its claims judged anew, its dear units held to who
must have been attacked.

Every witness is judged; certificates of bounds are proved again, those of smoothing drawn again with the run's own key. An
attack's search is not repeated: what it spent and that it found no more stays the journal's word.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from holdfast.audits.context import Context
from holdfast.audits.evidence import Claim, Evidence
from holdfast.audits.journal import DIAGNOSTICS, PREFLIGHT, Key, Records, diagnosed, preflighted
from holdfast.audits.records import AnyRecord, ClaimsRecord, CleanRecord, findings_of
from holdfast.audits.rejudge import Notes, is_deterministic, reask, rejudge
from holdfast.audits.reprove import reprove
from holdfast.audits.stage import AnyStage, Doubt, Repeatable, ids_of
from holdfast.audits.stages.diagnostics import diagnose
from holdfast.audits.units import Layout
from holdfast.audits.workers import Progress
from holdfast.core.errors import JournalError
from holdfast.core.findings import Finding
from holdfast.models.checks import preflight

__all__ = ["Replay"]

_COUNTS = re.compile(r"\d[\d.,]*(e[+-]?\d+)?( samples?\b)?")


class Replay:
    """One look at a journal.

    Attributes:
        notes: what it comes to.
    """

    def __init__(self, context: Context, records: Records, progress: Progress | None = None) -> None:
        """Takes the run's context, with what the journal says of randomness, its records and whom to tell of samples."""
        self.context, self.records = context, records
        self.layout = Layout.of(context)
        self.notes = Notes()
        self._progress = progress or _silent

    def run(self) -> None:
        """Looks at everything."""
        self._all_there()
        if not self._files():
            return  # what is built on them cannot be looked at
        self._preflight()
        if not is_deterministic(self.context):
            remote = self.context.plan.remote
            why = "the API is asked about witnesses alone" if remote else "the model answers at random"
            self.notes.unread.append(f"clean predictions, findings and margins: {why}")
        for stage in self.layout.order:
            for k, ids in enumerate(self.layout.units(stage.name)):
                if (stage.name, k) in self.records:
                    self._unit(stage, (stage.name, k))
                self._progress(stage.title, int(ids[-1]) + 1, self.layout.samples)
        parts = self.layout.whole(self.records)
        for part in parts:
            self.judge(part.broken.items(), part.eps)
            reprove(self.context, self.layout, self.records, part, self.notes, self._progress)
        self._diagnostics(parts)

    def _all_there(self) -> None:
        for stage, k in self.layout.missing(self.records):
            self.notes.problems.append(
                f"the journal has no unit {stage} of chunk {k}: it is unfinished, or one was removed"
            )
        known = {*self.layout.all_keys(), PREFLIGHT, DIAGNOSTICS}
        for stage, k in self.records:
            if (stage, k) not in known:
                self.notes.problems.append(f"the journal has a unit {stage} of chunk {k}, which is not in the plan")

    def _files(self) -> bool:
        """Whether every witness that the journal names is there, unaltered and of the data's shape."""
        before = len(self.notes.problems)
        for i, sha256 in (named for record in self.records.values() for named in _stored(record)):
            try:
                if self.context.folder.witness(sha256).shape != self.context.data.x.shape[1:]:
                    self.notes.sample(i, "a witness has another shape than the data")
            except JournalError as error:
                self.notes.sample(i, str(error))
        return len(self.notes.problems) == before

    def _say(self, key: Key, doubt: Doubt) -> None:
        stage, k = key
        if doubt.sample is not None:
            self.notes.sample(doubt.sample, doubt.text)
        else:
            self.notes.problems.append(f"the journal's unit {stage} of chunk {k} {doubt.text}")

    def _unit(self, stage: AnyStage, key: Key) -> None:
        record, before = self.records[key], self.layout.before(self.records, key)
        if record.fault is not None:
            if record.fault.ids != ids_of(stage.lost(self.context, before)):
                self._say(key, Doubt("failed, and names other samples than it was run on"))
            self.notes.unread.append(f"that the stage {stage.name} failed in chunk {key[1]}: {record.fault.why}")
        else:
            if isinstance(stage, Repeatable) and is_deterministic(self.context):
                for doubt in stage.differences(record, stage.unit(self.context, before)):
                    self._say(key, doubt)
            if before.seen.all():
                for doubt in (*stage.doubts(self.context, before, record), *_authors(stage, before, record)):
                    self._say(key, doubt)
        reask(self.context, record.no_answer, self.notes)
        if isinstance(record, ClaimsRecord):
            self.judge([(i, claim) for i, claim in _claims(stage, record) if i in before], float("inf"))

    def judge(self, claims: Collection[tuple[int, Claim]], eps: float) -> None:
        """Claims (id, claim), judged by a referee that has not seen them."""
        sizes = {i: self._score_size(i) for i, _ in claims}
        rejudge(self.context, claims, eps, sizes, self.notes)

    def _score_size(self, i: int) -> float:
        """The largest clean score of a sample."""
        records = (self.records[key] for key in self.layout.covering("clean", np.array([i])) if key in self.records)
        for record in records:
            if isinstance(record, CleanRecord) and i in record.ids:
                scores = np.array(record.scores[record.ids.index(i)], dtype=np.float64)
                return float(np.abs(scores[np.isfinite(scores)]).max(initial=0))
        return 0.0

    def _preflight(self) -> None:
        """The look at model and data, and whether the model is random: not for the journal alone to say."""
        context = self.context
        if context.plan.remote:
            return
        findings = preflight(context.base, context.data, context.plan.threat, device=context.device)
        random = any(f.code == "model.randomised" for f in findings)
        if random != context.randomised:
            told = "random" if context.randomised else "the same each time"
            self.notes.problems.append(f"the journal says that the model's answers are {told}, and they are not")
        context.randomised = random
        if not random:
            findings += [f for f in [context.referee().finding(context.inputs(np.arange(1)))] if f is not None]
        look = preflighted(self.records)
        self._compare_findings("preflight", () if look is None else look.findings, findings_of(findings))

    def _diagnostics(self, parts: Sequence[Evidence]) -> None:
        told = diagnosed(self.records)
        if told is None or told.fault is not None or not is_deterministic(self.context):
            return
        due = diagnose(self.context, parts)
        self._compare_findings("diagnostics", told.findings, due.findings)
        if told.no_answer.keys() != due.no_answer.keys():
            self._say(DIAGNOSTICS, Doubt("names other samples than the model has no answer for"))
        reask(self.context, told.no_answer, self.notes)

    def _compare_findings(self, stage: str, told: Sequence[Finding], due: Sequence[Finding]) -> None:
        for words, findings, others in (("lacks", due, told), ("has", told, due)):
            known = {_worded(f) for f in others}
            for finding in findings:
                if _worded(finding) not in known:
                    self.notes.problems.append(
                        f"the journal's {stage} {words} the finding {finding.code} ({finding.severity}: {finding.title})"
                        + ("" if words == "lacks" else ", which the model does not give")
                    )


def _silent(title: str, done: int, total: int) -> None:
    return


def _stored(record: AnyRecord) -> Iterator[tuple[int, str]]:
    """The inputs beside the journal that a record names: (id, hash)."""
    if isinstance(record, ClaimsRecord):
        for claims in (record.claims.witnesses, record.claims.marginal):
            yield from ((i, claim.sha256) for i, claim in claims.items())
    yield from ((i, end.sha256) for i, end in record.no_answer.items())


def _authors(stage: AnyStage, before: Evidence, record: AnyRecord) -> Iterator[Doubt]:
    """A witness bears the name of the attack whose stage it is from; a nearer one that of the one it was made of."""
    if not isinstance(record, ClaimsRecord):
        return
    named = [(i, claim.attack, stage.author(before, i)) for i, claim in record.claims.witnesses.items()]
    named += [(i, end.attack, stage.searcher) for i, end in record.no_answer.items()]
    for i, told, due in named:
        if told != due:
            yield Doubt(f"ascribes the input of sample {i} to '{told}', not to '{due}'")


def _claims(stage: AnyStage, record: ClaimsRecord) -> Iterator[tuple[int, Claim]]:
    """What a record claims; what the referee did not uphold is of no stage, and need only lie in the set."""
    for i, told in record.claims.witnesses.items():
        yield i, Claim(told.witness, told.rounding, stage.name)
    for i, told in record.claims.marginal.items():
        yield i, Claim(told.witness, told.rounding, stage="")


def _worded(finding: Finding) -> tuple[str, ...]:
    """A finding but for its figures, which rounding may change."""
    texts = (finding.code, str(finding.severity), finding.title, finding.message, finding.remedy)
    return tuple(_COUNTS.sub("#", text) for text in texts)
