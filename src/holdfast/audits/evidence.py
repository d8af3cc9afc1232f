"""What is known of some samples after the stages so far: it grows by their records, and by nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from holdfast.audits.records import (
    AnyRecord,
    AttackRecord,
    CertificateRecord,
    ClaimsRecord,
    CleanRecord,
    GradientsRecord,
    Ids,
    ProbeRecord,
    TriageRecord,
    WitnessRecord,
)
from holdfast.core.criterion import MASKED
from holdfast.core.verdict import Certificate, NoAnswer, Witness

__all__ = ["Claim", "Evidence"]


@dataclass(frozen=True)
class Claim:
    """A witness as the referee left it, with the rounding of its margin and the stage that it is from."""

    witness: Witness
    rounding: float
    stage: str


@dataclass(kw_only=True)
class Evidence:
    """Both sides of some samples, so far.

    Attributes:
        ids: (n,) rows of the data set, rising.
        labels: (n,) their labels.
        eps: the size at which they are judged.
        scores: (n, K) clean scores; not a number where there is none.
        prediction: (n,) clean predictions; -1 where there is none.
        error: (n,) bool: the clean input has no answer that can be judged, or was not asked about yet.
        failed: (n,) bool: an attack or a probe on the sample failed; it is judged only if another stage settles it.
        seen: (n,) bool: the clean input was asked about.
        low_margin: (n,) the least margin that any attack reached; inf where none was tried.
        forwards: (n,) in the attack stages and the clean pass.
        backwards: (n,) likewise.
        queries: (n,) likewise.
        broken: by id, the nearest witness within eps.
        nearest: by id, the nearest witness at any distance.
        marginal: by id, a witness on the edge that does not hold every way it is asked.
        no_answer: by id, the nearest input that the model gives no usable answer to.
        proved: ids that a cheap certificate proved at eps.
        hindered: ids on which the gradients of the model lead nowhere.
        tried: by attack stage, the ids that it ran on.
        certificates: by id.
    """

    ids: np.ndarray
    labels: np.ndarray
    eps: float
    scores: np.ndarray = field(init=False)
    prediction: np.ndarray = field(init=False)
    error: np.ndarray = field(init=False)
    failed: np.ndarray = field(init=False)
    seen: np.ndarray = field(init=False)
    low_margin: np.ndarray = field(init=False)
    forwards: np.ndarray = field(init=False)
    backwards: np.ndarray = field(init=False)
    queries: np.ndarray = field(init=False)
    broken: dict[int, Claim] = field(default_factory=dict[int, Claim], init=False)
    nearest: dict[int, Claim] = field(default_factory=dict[int, Claim], init=False)
    marginal: dict[int, Claim] = field(default_factory=dict[int, Claim], init=False)
    no_answer: dict[int, NoAnswer] = field(default_factory=dict[int, NoAnswer], init=False)
    proved: set[int] = field(default_factory=set[int], init=False)
    hindered: set[int] = field(default_factory=set[int], init=False)
    tried: dict[str, set[int]] = field(default_factory=dict[str, set[int]], init=False)
    certificates: dict[int, Certificate] = field(default_factory=dict[int, Certificate], init=False)

    def __post_init__(self) -> None:
        n = len(self.ids)
        self._known = frozenset(self.ids.tolist())
        self.scores = np.full((n, 2), np.nan)
        self.prediction = np.full(n, -1, dtype=np.int64)
        self.error, self.failed, self.seen = np.ones(n, dtype=bool), np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
        self.low_margin = np.full(n, np.inf)
        self.forwards, self.backwards, self.queries = (np.zeros(n, dtype=np.int64) for _ in range(3))

    def add(self, stage: str, record: AnyRecord) -> None:
        """Takes in what the record of a stage says of these samples; earlier stages first."""
        self._add_no_answers(record)
        match record:
            case CleanRecord():
                self._add_clean(record)
            case TriageRecord():
                self.proved.update(self._mine(record.proved))
            case GradientsRecord():
                self.hindered.update(self._mine(record.hindered))
            case CertificateRecord():
                self.certificates |= {i: c for i, c in record.certificates.items() if i in self}
            case ClaimsRecord():
                self._add_claims(stage, record)
            case _:  # of the whole run, or of the grid: nothing about a verdict
                return

    def __contains__(self, i: int) -> bool:
        return i in self._known

    def _mine(self, ids: Ids) -> list[int]:
        return [i for i in ids if i in self]

    def _rows(self, ids: Ids) -> tuple[np.ndarray, np.ndarray]:
        """Places in a record's ids, and the rows here, of the samples that both have."""
        theirs = np.array(ids, dtype=np.int64)
        places = np.flatnonzero(np.isin(theirs, self.ids))
        return places, np.searchsorted(self.ids, theirs[places])

    def _add_clean(self, record: CleanRecord) -> None:
        places, rows = self._rows(record.ids)
        kept: list[int] = places.tolist()
        told = [record.scores[k] for k in kept]  # a row without an answer is shorter
        width = max([self.scores.shape[1], *map(len, told)])
        if width > self.scores.shape[1]:
            more = np.full((len(self.ids), width - self.scores.shape[1]), np.nan)
            self.scores = np.concatenate([self.scores, more], 1)
        for row, scores in zip(rows.tolist(), told, strict=True):
            self.scores[row, : len(scores)] = scores
        self.prediction[rows] = np.array(record.prediction, dtype=np.int64)[places]
        # NaN, +infinity (which is read as NaN), or no class that can be: no decision
        with np.errstate(invalid="ignore"):
            undecided = ~(self.scores[rows].max(1) > MASKED)
        self.error[rows] = undecided | np.isin(self.ids[rows], record.failed)
        self.seen[rows] = True
        self._add_spent(record, places, rows)

    def _add_spent(self, record: CleanRecord | AttackRecord, places: np.ndarray, rows: np.ndarray) -> None:
        spent = record.spent if isinstance(record, CleanRecord) else record.claims.spent
        for mine, theirs in (
            (self.forwards, spent.forwards),
            (self.backwards, spent.backwards),
            (self.queries, spent.queries),
        ):
            mine[rows] += np.array(theirs, dtype=np.int64)[places]

    def _add_claims(self, stage: str, record: ClaimsRecord) -> None:
        for i, told in record.claims.witnesses.items():
            if i in self:
                self._add_witness(i, _claim(stage, told))
        for i, told in record.claims.marginal.items():
            if i in self:
                self.marginal.setdefault(i, _claim(stage, told))
        if isinstance(record, AttackRecord | ProbeRecord):
            self.failed |= np.isin(self.ids, record.failed)
        if isinstance(record, AttackRecord):
            places, rows = self._rows(record.ids)
            self.tried.setdefault(stage, set()).update(self.ids[rows].tolist())
            self._add_spent(record, places, rows)
            low = np.array(record.claims.low_margin, dtype=np.float64)[places]
            self.low_margin[rows] = np.minimum(self.low_margin[rows], low)

    def _add_witness(self, i: int, claim: Claim) -> None:
        if claim.witness.distance <= self.eps and i not in self.broken:
            self.broken[i] = claim
        if i not in self.nearest or claim.witness.distance < self.nearest[i].witness.distance:
            self.nearest[i] = claim

    def _add_no_answers(self, record: AnyRecord) -> None:
        for i, told in record.no_answer.items():
            if i in self and (i not in self.no_answer or told.distance < self.no_answer[i].distance):
                self.no_answer[i] = told

    @property
    def correct(self) -> np.ndarray:
        """(n,) bool: classified as labelled."""
        return (self.prediction == self.labels) & ~self.error

    @property
    def clean_margin(self) -> np.ndarray:
        """(n,) margin of the clean inputs; not a number where there is none."""
        rows = np.arange(len(self.ids))
        missing = max(0, int(self.labels.max(initial=0)) + 1 - self.scores.shape[1])
        scores = np.pad(self.scores, ((0, 0), (0, missing)), constant_values=np.nan)
        others = scores.copy()
        others[rows, self.labels] = -np.inf
        with np.errstate(invalid="ignore"):  # of a sample without an answer there is none
            return scores[rows, self.labels] - others.max(1)

    @property
    def progress(self) -> np.ndarray:
        """(n,) share of the clean margin that the attacks have taken away; 0 where none was tried."""
        gone = self.clean_margin - np.where(np.isfinite(self.low_margin), self.low_margin, self.clean_margin)
        return gone / np.maximum(self.clean_margin, 1e-12)

    @property
    def is_hindered(self) -> np.ndarray:
        """(n,) bool: the gradients of the model lead nowhere."""
        return np.isin(self.ids, list(self.hindered))

    @property
    def open(self) -> np.ndarray:
        """(n,) bool: right, and not broken within eps."""
        return self.correct & ~np.isin(self.ids, list(self.broken))

    def scores_of(self, ids: np.ndarray) -> np.ndarray:
        """(m, K) clean scores of some of the samples."""
        return self.scores[np.searchsorted(self.ids, ids)]


def _claim(stage: str, told: WitnessRecord) -> Claim:
    return Claim(told.witness, told.rounding, stage)
