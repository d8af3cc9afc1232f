"""What is known of the samples of a chunk after the stages so far; read from their payloads and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from holdfast.audits.journal import Payload
from holdfast.core.criterion import MASKED
from holdfast.core.threat import Guarantee
from holdfast.core.verdict import Certificate, NoAnswer, Witness

__all__ = ["Claim", "Standing", "decoded", "encoded"]

_NEVER = "-inf"


@dataclass(frozen=True)
class Claim:
    """A witness that the referee let stand, with the rounding of its margin."""

    witness: Witness
    rounding: float
    stage: str


@dataclass
class Standing:
    """Both sides of each sample of a chunk, so far.

    Attributes:
        ids: (n,) rows of the data set.
        labels: (n,) their labels.
        scores: (n, K) clean scores.
        prediction: (n,) clean predictions.
        error: (n,) bool: the clean input has no answer that can be judged.
        failed: (n,) bool: an attack or a probe on the sample failed; it is judged only if another stage settles it.
        broken: by id, the nearest witness within eps.
        nearest: by id, the nearest witness at any distance.
        marginal: by id, a witness on the edge that does not hold every way it is asked.
        proved: ids that a cheap certificate proved at eps.
        no_answer: by id, the nearest input that the model gives no usable answer to.
        hindered: ids on which the gradients of the model lead nowhere.
        tried: by attack stage, the ids that it ran on.
        certificates: by id.
        low_margin: (n,) the least margin that any attack reached; inf where none was tried.
        forwards: (n,) in the attack stages and the clean pass.
        backwards: (n,) likewise.
        queries: (n,) likewise.
    """

    ids: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    prediction: np.ndarray
    error: np.ndarray
    failed: np.ndarray
    low_margin: np.ndarray
    forwards: np.ndarray
    backwards: np.ndarray
    queries: np.ndarray
    broken: dict[int, Claim] = field(default_factory=dict)
    nearest: dict[int, Claim] = field(default_factory=dict)
    marginal: dict[int, Claim] = field(default_factory=dict)
    no_answer: dict[int, NoAnswer] = field(default_factory=dict)
    proved: set[int] = field(default_factory=set)
    hindered: set[int] = field(default_factory=set)
    tried: dict[str, set[int]] = field(default_factory=dict)
    certificates: dict[int, Certificate] = field(default_factory=dict)

    @classmethod
    def of(cls, ids: np.ndarray, labels: np.ndarray, eps: float, units: Mapping[str, Payload]) -> Standing:
        """The standing of a chunk from the payloads of its finished stages, in their order."""
        clean = units["clean"]
        scores = decoded(clean["scores"])
        # NaN, +infinity (which is read as NaN), or no class that can be: no decision
        error = ~(scores.max(1) > MASKED) | np.isin(ids, clean.get("failed", ()))
        attacks = [unit for stage, unit in units.items() if stage.startswith("attack:") or stage == "probe"]
        failed = np.isin(ids, [i for unit in attacks for i in unit.get("failed", ())])
        n = len(ids)
        standing = cls(
            ids, labels, scores, np.array(clean["prediction"], dtype=np.int64), error, failed, np.full(n, np.inf),
            np.array(clean["forwards"], dtype=np.int64), np.zeros(n, dtype=np.int64), np.array(clean["forwards"]),
        )  # fmt: skip
        for stage, unit in units.items():
            standing._add(stage, unit, eps)
        return standing

    def _add(self, stage: str, unit: Payload, eps: float) -> None:
        for key, record in unit.get("witnesses", {}).items():
            claim = _claim(stage, record)
            i = int(key)
            if claim.witness.distance <= eps and i not in self.broken:
                self.broken[i] = claim
            if i not in self.nearest or claim.witness.distance < self.nearest[i].witness.distance:
                self.nearest[i] = claim
        for key, record in unit.get("marginal", {}).items():
            self.marginal.setdefault(int(key), _claim(stage, record))
        for key, record in unit.get("no_answer", {}).items():
            known = self.no_answer.get(int(key))
            if known is None or record["distance"] < known.distance:
                self.no_answer[int(key)] = NoAnswer(**record)
        self.proved.update(unit.get("proved", ()))
        self.hindered.update(unit.get("hindered", ()))
        for key, record in unit.get("certificates", {}).items():
            self.certificates[int(key)] = Certificate(**record | {"guarantee": Guarantee(record["guarantee"])})
        if stage.startswith("attack:"):
            at = {int(i): k for k, i in enumerate(self.ids.tolist())}
            rows = [at[i] for i in unit.get("ids", ())]
            self.tried[stage] = {int(i) for i in unit.get("ids", ())}
            for name in ("forwards", "backwards", "queries"):
                getattr(self, name)[rows] += np.array(unit[name], dtype=np.int64) if rows else 0
            if rows:
                self.low_margin[rows] = np.minimum(self.low_margin[rows], unit["low_margin"])

    @property
    def correct(self) -> np.ndarray:
        """(n,) bool: classified as labelled."""
        return (self.prediction == self.labels) & ~self.error

    @property
    def clean_margin(self) -> np.ndarray:
        """(n,) margin of the clean inputs."""
        rows = np.arange(len(self.ids))
        others = self.scores.copy()
        others[rows, self.labels] = -np.inf
        with np.errstate(invalid="ignore"):  # of a sample without an answer there is none
            return self.scores[rows, self.labels] - others.max(1)

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


def encoded(scores: np.ndarray) -> list[list[float | str | None]]:
    """(n, K) scores as JSON can hold them. Minus infinity is a score, that of a class which is never chosen; not a
    number and plus infinity are none.
    """
    return [
        [v if np.isfinite(v) else _NEVER if v == -np.inf else None for v in row] for row in np.asarray(scores).tolist()
    ]


def decoded(rows: list[list[float | str | None]]) -> np.ndarray:
    """(n, K) float64 scores from `encoded`; not a number where there is none.

    Example:
        >>> decoded(encoded(np.array([[1.0, -np.inf, np.inf]]))).tolist()
        [[1.0, -inf, nan]]
    """
    found = np.full((len(rows), max([2, *map(len, rows)])), np.nan)
    for k, row in enumerate(rows):  # a row without an answer is shorter
        found[k, : len(row)] = [np.nan if v is None else float(v) for v in row]
    return found


def _claim(stage: str, record: Payload) -> Claim:
    witness = Witness(
        record["distance"],
        record["attack"],
        record["sha256"],
        record["margin"],
        tuple(record["arithmetics"]),
        record["prediction"],
    )
    return Claim(witness, record["rounding"], stage)
