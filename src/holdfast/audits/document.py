"""The model of ``report.json``: what an audit found, in plain values.

``python -m holdfast.audits.document > docs/report.schema.json`` writes its JSON Schema. A document refuses to say two
different things: the headline must follow from the samples, a broken sample needs its witness and a certified one its
certificate.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationError, model_validator

from holdfast.core.errors import DataError
from holdfast.core.files import read_json, write_whole
from holdfast.core.findings import Severity
from holdfast.core.threat import Goal, Guarantee, Norm
from holdfast.core.verdict import Status

__all__ = ["SCHEMA_ID", "SCHEMA_VERSION", "Document", "Side", "schema"]

SCHEMA_VERSION = "1"
SCHEMA_ID = "urn:holdfast:report:1"

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Size = Annotated[float, Field(ge=0)]
Interval = tuple[Share, Share]
Side = Literal["empirical", "certified"]
"""The bound that a gate holds: the upper one or the lower one."""


def _finite(value: Any) -> Any:
    """Measured values as JSON can hold them: a number that is not finite becomes the word for it."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in cast("dict[str, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in cast("list[Any]", value)]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Measured = Annotated[dict[str, JsonValue], BeforeValidator(_finite)]


class _DocumentPart(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, from_attributes=True, use_attribute_docstrings=True
    )


class Intervals(_DocumentPart):
    """95 % Clopper-Pearson intervals: what the accuracies of the audited samples say of the population."""

    clean: Interval
    empirical: Interval
    certified: Interval | None = None


class Headline(_DocumentPart):
    """The figures that an audit is for; shares are of all audited samples."""

    samples: Count
    clean_accuracy: Share
    empirical_robust_accuracy: Share
    """1 - (MISCLASSIFIED + BROKEN + TIMEOUT + ERROR) / samples: an upper bound of the true robust accuracy once every
    sample was judged; what could not be judged counts as broken, and makes the run incomplete."""
    certified_robust_accuracy: Share | None
    """CERTIFIED / samples: a lower bound; null when nothing was certified on purpose (`--certify none`)."""
    unknown: Share
    """UNKNOWN and MARGINAL / samples: neither broken nor certified, the gap between the bounds, never counted robust."""
    upper_bound_weak: bool
    """The attacks were hindered (gradient masking, few queries): the upper bound is likely too high."""
    upper_bound_note: str | None = None
    """Why the upper bound is weak, or under how many queries it holds."""
    marginal: Count = 0
    timeouts: Count = 0
    errors: Count = 0
    intervals: Intervals
    statement: str
    """One line, for example ``certified 41.2 % <= true robust accuracy <= empirical 55.0 %``."""


class StageCost(_DocumentPart):
    """What one stage spent; forwards and backwards count samples through the model, not calls."""

    forwards: Count = 0
    backwards: Count = 0
    queries: Count = 0
    seconds: Size = 0.0
    samples: Count = 0


class TotalCost(_DocumentPart):
    """What the attack stages and the clean pass asked, and the working time of all stages; `by_stage` has every stage."""

    forwards: Count
    backwards: Count
    queries: Count
    seconds: Size
    by_stage: dict[str, StageCost]


class SampleWitness(_DocumentPart):
    """An input that breaks the model, by reference to `witnesses/`."""

    distance: Size
    """From the clean input, in the threat model's norm."""
    attack: str
    sha256: str
    margin: Annotated[float | None, BeforeValidator(_finite_or_none)]
    """The criterion's margin there: negative, the further the surer; null where the access shows no finite one."""
    arithmetics: list[str] = Field(default_factory=list[str])
    """The types in which it held when the referee asked: the model's own, and float64 where the model can be asked there."""
    prediction: int | None = None
    """The class that the model gives it; null where its answer names none."""


class SampleNoAnswer(_DocumentPart):
    """An input to which the model gives no answer that can be judged, by reference to `witnesses/`."""

    distance: Size
    """From the clean input, in the threat model's norm."""
    attack: str
    sha256: str
    met: str
    """What the model answers there: NaN, +infinity, -infinity for every class."""


class SampleCertificate(_DocumentPart):
    """A radius within which nothing breaks the model."""

    radius: Size
    guarantee: Guarantee
    method: str
    arithmetic: str = ""
    alpha: Share | None = None
    fit: Share | None = None
    """For an estimate by a fitted distribution, the p-value of the fit."""
    deployed: str | None = None
    """The type in whose arithmetic it holds of the model as it runs; null where it holds in real numbers."""


class Sample(_DocumentPart):
    """Both sides of one sample; made from a `Verdict` by ``Sample.model_validate(verdict)``."""

    id: int
    label: int
    prediction: int
    status: Status
    witness: SampleWitness | None
    certificate: SampleCertificate | None
    forwards: Count
    backwards: Count
    queries: Count
    no_answer: SampleNoAnswer | None = None
    """The nearest input that the model has no decision for; where it lies within eps and no witness does, the sample is
    ERROR."""


class FindingEntry(_DocumentPart):
    """One thing that a check noticed."""

    code: str
    severity: Severity
    title: str
    message: str
    remedy: str = ""
    data: Measured = Field(default_factory=dict)


class Threat(_DocumentPart):
    """What every figure is relative to."""

    norm: Norm
    eps: str
    """As it was typed, exact: ``8/255`` or ``0.1``."""
    eps_value: Size
    goal: Goal
    access: str
    low: float
    high: float
    grid: str | None = None
    known: list[str] = Field(default_factory=list[str])


class SubjectEntry(_DocumentPart):
    """What the verdicts are about: the model f, or a smoothed g made of it."""

    kind: Literal["model", "smoothed", "learner"]
    sha256: str
    detail: str = ""


class Model(_DocumentPart):
    """The audited model."""

    source: str
    parameters: Count | None = None
    held_against: str | None = None
    """What the graph, on which bounds rest, was compared with on the box around all samples' sets; null where nothing was
    certified from a graph, or by a version that did not note it."""


class Data(_DocumentPart):
    """The audited data."""

    source: str
    sha256: str
    samples: Count
    shape: list[Count]
    """Of one sample."""
    classes: Count
    class_names: list[str] = Field(default_factory=list[str])


class AttackRun(_DocumentPart):
    """One attack of the suite."""

    name: str
    title: str
    broken: Count
    """Samples that it broke first."""
    samples: Count = 0
    """Samples that it was run on."""
    note: str = ""
    """What sets it apart from others of its title: parameters, and where it is run."""
    forwards: Count = 0
    backwards: Count = 0
    queries: Count = 0
    seconds: Size = 0.0


class SuiteSummary(_DocumentPart):
    """The attacks that were run on any sample, and how hard certified samples were attacked."""

    name: str
    stamp: str | None = None
    """What the suite stands for, for example that it is AutoAttack's composition."""
    attacks: list[AttackRun]
    certified_attacked: Count = 0
    certified_full_ladder: Count = 0


class EpsPoint(_DocumentPart):
    """Empirical robust accuracy at a perturbation size."""

    eps: Size
    accuracy: Share
    kind: Literal["witness", "grid"]
    """From the witnesses' distances, or from an explicit run at this size."""


class RadiusPoint(_DocumentPart):
    """Share of samples that are right and certified at least up to a radius."""

    radius: Size
    accuracy: Share


class QueryCurve(_DocumentPart):
    """Accuracy that is left after so many queries per sample."""

    attack: str
    points: list[tuple[Size, Share]]


class Curves(_DocumentPart):
    """Security curves, points in rising order."""

    eps: list[EpsPoint] = Field(default_factory=list[EpsPoint])
    certified: list[RadiusPoint] = Field(default_factory=list[RadiusPoint])
    queries: list[QueryCurve] = Field(default_factory=list[QueryCurve])


class Grid(_DocumentPart):
    """The same question where inputs must lie on a grid, and with pictures saved and loaded again."""

    grid: str
    empirical_robust_accuracy: Share
    pictures_saved: Count
    pictures_still_breaking: Count


class MethodParameter(_DocumentPart):
    """One parameter of a method as it was run."""

    name: str
    value: JsonValue
    meaning: str
    source: str


class Method(_DocumentPart):
    """The card of a method that was used."""

    name: str
    title: str
    paper: str
    section: str
    summary: str
    parameters: list[MethodParameter] = Field(default_factory=list[MethodParameter])
    failure_modes: list[str] = Field(default_factory=list[str])


class StageSummary(_DocumentPart):
    """One stage of the run."""

    name: str
    status: Literal["done", "partial", "skipped", "failed"]
    chunks: Count = 0
    seconds: Size = 0.0


class Contradiction(_DocumentPart):
    """A witness inside a radius that was proved safe: one of the two is wrong."""

    id: int
    radius: Size
    distance: Size
    guarantee: Guarantee
    method: str
    attack: str
    sha256: str
    """Of the witness."""
    message: str = ""


class Environment(_DocumentPart):
    """Where and when the run was made."""

    python: str
    torch: str
    holdfast: str
    device: str
    threads: Count
    platform: str
    when: str
    """ISO 8601, UTC."""


class Hashes(_DocumentPart):
    """SHA-256 of what the run stands on."""

    plan: str
    model: str
    data: str
    journal: str | None = None


class Gate(_DocumentPart):
    """The least robust accuracy that the run was held to (`--fail-under`), and whether it passed."""

    side: Side
    threshold: Share
    allow_weak: bool = False
    """A weak upper bound was accepted (`--allow-weak`)."""
    passed: bool
    reasons: list[str]
    """Why it did not pass; empty if it did."""


class Document(_DocumentPart):
    """``report.json``."""

    schema_version: Literal["1"] = SCHEMA_VERSION
    headline: Headline
    complete: bool
    """False when a stage did not end or a sample could not be judged (TIMEOUT, ERROR): the figures are not final."""
    contradictions: list[Contradiction] = Field(default_factory=list[Contradiction])
    gate: Gate | None = None
    """Null when no threshold was asked for."""
    threat: Threat
    subject: SubjectEntry
    model: Model
    data: Data
    suite: SuiteSummary
    cost: TotalCost
    samples: list[Sample]
    findings: list[FindingEntry] = Field(default_factory=list[FindingEntry])
    curves: Curves = Field(default_factory=Curves)
    grid: Grid | None = None
    methods: list[Method] = Field(default_factory=list[Method])
    not_tested: list[str] = Field(default_factory=list[str])
    stages: list[StageSummary] = Field(default_factory=list[StageSummary])
    seed: int
    command: str
    environment: Environment
    hashes: Hashes

    def counts(self) -> dict[Status, int]:
        """Samples in each status, every status named."""
        number = Counter(s.status for s in self.samples)
        return {status: number[status] for status in Status}

    def gated(self, threshold: float, side: Side = "empirical", *, allow_weak: bool = False) -> Self:
        """The same document, held to a threshold.

        Args:
            threshold: the least robust accuracy, in [0, 1].
            side: the bound that must reach it.
            allow_weak: let an upper bound pass that the attacks were too hindered to make.
        """
        reasons = self._shortcomings(threshold, side, allow_weak)
        gate = Gate(side=side, threshold=threshold, allow_weak=allow_weak, passed=not reasons, reasons=reasons)
        return self.model_copy(update={"gate": gate})

    def _shortcomings(self, threshold: float, side: Side, allow_weak: bool) -> list[str]:
        """Why a threshold is not reached, in words; nothing if it is."""
        head, reasons = self.headline, list[str]()
        if self.contradictions:
            reasons.append("a witness lies inside a certified radius")
        if not self.complete:
            reasons.append("the run is incomplete: its figures are not final")
        reached = head.empirical_robust_accuracy if side == "empirical" else head.certified_robust_accuracy
        if reached is None or reached < threshold:
            share = "unknown, nothing was certified" if reached is None else f"{100 * reached:.1f} %"
            reasons.append(f"{side} robust accuracy is {share}, below {100 * threshold:.1f} %")
        # the lower bound is proved: hindered attacks cannot raise it
        if side == "empirical" and head.upper_bound_weak and not allow_weak:
            reasons.append(f"the upper bound is weak ({head.upper_bound_note}); --allow-weak accepts it")
        return reasons

    @property
    def exit_code(self) -> int:
        """What the command line ends with: 3 for figures that are not final, 1 for a gate that did not pass, else 0."""
        if self.contradictions or not self.complete or any(f.severity is Severity.ERROR for f in self.findings):
            return 3
        return 1 if self.gate is not None and not self.gate.passed else 0

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        n, head, count = len(self.samples), self.headline, self.counts()
        if head.samples != n or len({s.id for s in self.samples}) != n:
            raise ValueError(f"the headline names {head.samples} samples, the table has {n}, each id once")
        for s in self.samples:
            if s.status is Status.BROKEN and s.witness is None:
                raise ValueError(f"sample {s.id} is BROKEN without a witness")
            if s.status is Status.CERTIFIED and s.certificate is None:
                raise ValueError(f"sample {s.id} is CERTIFIED without a certificate")
        unjudged = count[Status.TIMEOUT] + count[Status.ERROR]
        if unjudged and self.complete:
            raise ValueError(f"{unjudged} samples could not be judged, and the run is said to be complete")
        lost, certified = count[Status.MISCLASSIFIED] + count[Status.BROKEN] + unjudged, count[Status.CERTIFIED]
        due = {"empirical_robust_accuracy": n - lost, "unknown": n - lost - certified}
        if head.certified_robust_accuracy is not None or certified:
            due["certified_robust_accuracy"] = certified
        for name, number in due.items():
            told = getattr(head, name)
            if n and (told is None or abs(told - number / n) > 1e-9):
                raise ValueError(f"headline.{name} is {told}, the samples make it {number} of {n}")
        if (gate := self.gate) is not None:
            reasons = self._shortcomings(gate.threshold, gate.side, gate.allow_weak)
            if gate.reasons != reasons or gate.passed != (not reasons):
                raise ValueError(f"the gate is said to have {'passed' if gate.passed else 'failed'}: {gate.reasons}")
        return self

    @classmethod
    def load(cls, path: Path) -> Document:
        """Reads a ``report.json``, or the one in a run folder.

        Raises:
            DataError: there is none, or it is not one that this version reads.
        """
        file = path / "report.json" if path.is_dir() else path
        try:
            raw = read_json(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise DataError(f"no report at {file}: {error.strerror}") from None
        except ValueError as error:
            raise DataError(f"{file} is no JSON: {error}") from None
        version = cast("dict[str, Any]", raw).get("schema_version") if isinstance(raw, dict) else None
        if version != SCHEMA_VERSION:
            raise DataError(f"{file} has schema_version {version!r}; this version of Holdfast reads {SCHEMA_VERSION!r}")
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "the report as a whole"
            raise DataError(f"{file} is no report: {where}: {first['msg']} ({error.error_count()} faults)") from None

    def text(self) -> str:
        """The document as JSON, the same bytes for the same values; no number in it is infinite or not a number."""
        return json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def save(self, path: Path) -> None:
        """Writes ``report.json``, whole or not at all."""
        write_whole(path, self.text())


def schema() -> dict[str, Any]:
    """The JSON Schema of ``report.json``."""
    body = Document.model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA_ID, **body}


if __name__ == "__main__":
    print(json.dumps(schema(), indent=2, sort_keys=True))
