"""The sections of ``report.json``: plain values, each said once. `holdfast.audits.document` puts them together."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue

from holdfast.core.findings import Severity
from holdfast.core.threat import Goal, Guarantee, Norm
from holdfast.core.verdict import Status

__all__ = [
    "AttackRun",
    "Contradiction",
    "Curves",
    "Data",
    "DocumentPart",
    "Environment",
    "EpsPoint",
    "FindingEntry",
    "Gate",
    "Grid",
    "Hashes",
    "Headline",
    "Intervals",
    "Method",
    "MethodParameter",
    "Model",
    "QueryCurve",
    "RadiusPoint",
    "Sample",
    "SampleCertificate",
    "SampleNoAnswer",
    "SampleWitness",
    "Side",
    "StageCost",
    "StageSummary",
    "SubjectEntry",
    "SuiteSummary",
    "Threat",
    "TotalCost",
]

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


class DocumentPart(BaseModel):
    """Plain values, frozen, with no name beside those that are declared."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, from_attributes=True, use_attribute_docstrings=True
    )


class Intervals(DocumentPart):
    """95 % Clopper-Pearson intervals: what the accuracies of the audited samples say of the population."""

    clean: Interval
    empirical: Interval
    certified: Interval | None = None


class Headline(DocumentPart):
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


class StageCost(DocumentPart):
    """What one stage spent; forwards and backwards count samples through the model, not calls."""

    forwards: Count = 0
    backwards: Count = 0
    queries: Count = 0
    seconds: Size = 0.0
    samples: Count = 0


class TotalCost(DocumentPart):
    """What the attack stages and the clean pass asked, and the working time of all stages; `by_stage` has every stage."""

    forwards: Count
    backwards: Count
    queries: Count
    seconds: Size
    by_stage: dict[str, StageCost]


class SampleWitness(DocumentPart):
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


class SampleNoAnswer(DocumentPart):
    """An input to which the model gives no answer that can be judged, by reference to `witnesses/`."""

    distance: Size
    """From the clean input, in the threat model's norm."""
    attack: str
    sha256: str
    met: str
    """What the model answers there: NaN, +infinity, -infinity for every class."""


class SampleCertificate(DocumentPart):
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


class Sample(DocumentPart):
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


class FindingEntry(DocumentPart):
    """One thing that a check noticed."""

    code: str
    severity: Severity
    title: str
    message: str
    remedy: str = ""
    data: Measured = Field(default_factory=dict)


class Threat(DocumentPart):
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


class SubjectEntry(DocumentPart):
    """What the verdicts are about: the model f, or a smoothed g made of it."""

    kind: Literal["model", "smoothed", "learner"]
    sha256: str
    detail: str = ""


class Model(DocumentPart):
    """The audited model."""

    source: str
    parameters: Count | None = None
    held_against: str | None = None
    """What the graph, on which bounds rest, was compared with on the box around all samples' sets; null where nothing was
    certified from a graph, or by a version that did not note it."""


class Data(DocumentPart):
    """The audited data."""

    source: str
    sha256: str
    samples: Count
    shape: list[Count]
    """Of one sample."""
    classes: Count
    class_names: list[str] = Field(default_factory=list[str])


class AttackRun(DocumentPart):
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


class SuiteSummary(DocumentPart):
    """The attacks that were run on any sample, and how hard certified samples were attacked."""

    name: str
    stamp: str | None = None
    """What the suite stands for, for example that it is AutoAttack's composition."""
    attacks: list[AttackRun]
    certified_attacked: Count = 0
    certified_full_ladder: Count = 0


class EpsPoint(DocumentPart):
    """Empirical robust accuracy at a perturbation size."""

    eps: Size
    accuracy: Share
    kind: Literal["witness", "grid"]
    """From the witnesses' distances, or from an explicit run at this size."""


class RadiusPoint(DocumentPart):
    """Share of samples that are right and certified at least up to a radius."""

    radius: Size
    accuracy: Share


class QueryCurve(DocumentPart):
    """Accuracy that is left after so many queries per sample."""

    attack: str
    points: list[tuple[Size, Share]]


class Curves(DocumentPart):
    """Security curves, points in rising order."""

    eps: list[EpsPoint] = Field(default_factory=list[EpsPoint])
    certified: list[RadiusPoint] = Field(default_factory=list[RadiusPoint])
    queries: list[QueryCurve] = Field(default_factory=list[QueryCurve])


class Grid(DocumentPart):
    """The same question where inputs must lie on a grid, and with pictures saved and loaded again."""

    grid: str
    empirical_robust_accuracy: Share
    pictures_saved: Count
    pictures_still_breaking: Count


class MethodParameter(DocumentPart):
    """One parameter of a method as it was run."""

    name: str
    value: JsonValue
    meaning: str
    source: str


class Method(DocumentPart):
    """The card of a method that was used."""

    name: str
    title: str
    paper: str
    section: str
    summary: str
    parameters: list[MethodParameter] = Field(default_factory=list[MethodParameter])
    failure_modes: list[str] = Field(default_factory=list[str])


class StageSummary(DocumentPart):
    """One stage of the run."""

    name: str
    status: Literal["done", "partial", "skipped", "failed"]
    chunks: Count = 0
    seconds: Size = 0.0


class Contradiction(DocumentPart):
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


class Environment(DocumentPart):
    """Where and when the run was made."""

    python: str
    torch: str
    holdfast: str
    device: str
    threads: Count
    platform: str
    when: str
    """ISO 8601, UTC."""


class Hashes(DocumentPart):
    """SHA-256 of what the run stands on."""

    plan: str
    model: str
    data: str
    journal: str | None = None


class Gate(DocumentPart):
    """The least robust accuracy that the run was held to (`--fail-under`), and whether it passed."""

    side: Side
    threshold: Share
    allow_weak: bool = False
    """A weak upper bound was accepted (`--allow-weak`)."""
    passed: bool
    reasons: list[str]
    """Why it did not pass; empty if it did."""
